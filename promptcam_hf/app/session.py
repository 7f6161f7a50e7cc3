"""What the application computes: one model for all visitors, and each visitor's own photograph.

The network runs once for each photograph. Everything that is asked about it afterwards (another class, blurred heads, a
comparison) starts from the last layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..explanation.predictor import PromptCamPredictor
from ..modeling.head_ranking_promptcam import LastLayer
from ..modeling.images_promptcam import photograph_shares, reduced
from ..modeling.pipeline_promptcam import explanations_from, rank_and_compare
from ..modeling.probabilities_promptcam import probabilities

DISPLAY_SIZE = 640  # pixels of the longer side of a photograph on the page


@dataclass(frozen=True)
class Look:
    """
    A photograph and what the model computes of it.

    Args:
        predictor: The model, which all visitors share.
        photograph: The photograph, no larger than `DISPLAY_SIZE`.
        layer: The last layer, as `model.last_layer` returns it.
    """

    predictor: PromptCamPredictor
    photograph: Image.Image
    layer: LastLayer

    @classmethod
    def at(cls, predictor: PromptCamPredictor, photograph: Image.Image) -> "Look":
        """
        Run the network on a photograph.

        Args:
            predictor: The model.
            photograph: As `load_photograph` returns it, of any size.

        Raises:
            FloatingPointError: If the model's scores are not finite.
        """
        return cls(predictor, reduced(photograph, DISPLAY_SIZE), predictor.last_layer(photograph))

    def ranking(self) -> list[tuple[str, float]]:
        """All classes and their probabilities, in [0, 1], the most probable first."""
        return self._ranked(self.layer.logits)

    @torch.inference_mode()
    def blurred(self, label: str, heads: Sequence[int]) -> list[tuple[str, float]]:
        """
        The same while some heads of a class are blurred.

        Args:
            label: The class.
            heads: Its blurred heads, counted from 0.
        """
        label_id, heads = self._label(label)[:, None], list(heads)
        rows, _, gathered = self.layer.gather(label_id)  # (1, 1, D), (1, 1, H, d)
        gathered[:, :, heads] = self.layer.blurred[:, :, heads]
        score = self.predictor.model.score_attended(rows, gathered.flatten(-2))
        return self._ranked(self.layer.logits.scatter(-1, label_id, score))  # the other classes keep theirs

    @torch.inference_mode()
    def explained(self, label: str, rival: str | None = None) -> dict[str, Any]:
        """
        The explanation of a class, as `pipeline("prompt-cam")` returns it, with all heads and without heatmaps.

        Args:
            label: The class to explain.
            rival: The class to compare it with. Default: none, and there is no comparison.
        """
        model, config = self.predictor.model, self.predictor.model.config
        b = None if rival is None else int(self._label(rival))
        label_id = int(self._label(label))
        shares = photograph_shares(self.predictor.image_processor, [self.photograph.size])
        outputs = rank_and_compare(model, self.layer, shares, classes=[label_id], compare_with=b)
        outputs = {name: value.cpu() for name, value in outputs.items()}
        return explanations_from(outputs, 0, config, model.num_heads)[0]

    def looking_at(self, label: str, x: float, y: float) -> list[tuple[int, float]]:
        """
        The heads of a class, and how much of its attention to the patches each gives to one patch.

        Args:
            label: The class.
            x, y: The place, as a share of the photograph's width and height, in [0, 1].

        Returns:
            Heads, counted from 0, and shares in [0, 1], the largest share first.
        """
        shares = []
        for trait in self.explained(label)["traits"]:
            attention = trait["map"]
            rows, columns = attention.shape
            patch = attention[min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)]
            shares.append((trait["head"], float(patch / attention.sum())))
        return sorted(shares, key=lambda share: -share[1])

    @property
    def num_patches(self) -> int:
        """How many patches the photograph has."""
        height, width = self.predictor.model.grid(self.layer.image_size)
        return height * width

    def _label(self, name: str) -> torch.Tensor:
        return torch.tensor([self.predictor.names.index(name)], device=self.layer.logits.device)

    def _ranked(self, logits: torch.Tensor) -> list[tuple[str, float]]:
        scores, labels = probabilities(logits[0], self.predictor.model.config).sort(descending=True, stable=True)
        return [(self.predictor.names[k], score) for k, score in zip(labels.tolist(), scores.tolist(), strict=True)]
