"""What the heads of an explained photograph show, in the words of a vocabulary: `promptcam explain --traits`."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .names import display_name, read_names
from .occurrences import FEATURES, SETTINGS, model_fingerprint
from .viewing import watched_patches
from .vocabulary import Vocabulary


class TraitNames:
    """
    Names the traits that heads look at, for `explain` and `PromptCamPredictor`.

    ```python
    >>> explain("photos/", "runs/orioles", "explained/", traits=TraitNames("runs/traits"))
    ```

    A head shows the trait to which the place of its peak is assigned. It shows none if the place is farther from that
    trait than 95 % of the occurrences from which the vocabulary was made.

    Args:
        folder: The folder of `promptcam traits`.

    Raises:
        ValueError: If the folder has no vocabulary, a file in it is damaged, or `names.csv` has an error.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.vocabulary = Vocabulary.load(self.folder)
        names = read_names(self.folder, len(self.vocabulary))
        self.names = [display_name(names, trait + 1) for trait in range(len(self.vocabulary))]
        settings = self.folder / FEATURES / SETTINGS
        try:
            self._model = json.loads(settings.read_text(encoding="utf-8"))["model"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{settings}, which says what model the traits are of, is missing or damaged; expected a folder as "
                "`promptcam traits` has written it."
            ) from None

    def check(self, model: Any) -> None:
        """Raise a `ValueError` if the vocabulary was made with another model."""
        if model_fingerprint(model) != self._model:
            raise ValueError(f"{self.folder} has the traits of another model; make this one's with `promptcam traits`.")

    @contextmanager
    def watch(self, model: Any, shares: torch.Tensor) -> Iterator[Callable[[np.ndarray], Any]]:
        """
        Watch a model while it looks at a batch in the block.

        Args:
            model: A `PromptCamForImageClassification`.
            shares: How much of what it sees the photographs are, from `photograph_shares`.

        Returns:
            A function from trait maps `(B, ..., h, w)` of the batch to nested lists `(B, ...)`: the name of the trait
            at the peak of each map, or None.
        """
        with watched_patches(model, shares) as features:

            def names_at(trait_maps: np.ndarray) -> Any:
                *shape, height, width = trait_maps.shape
                peaks = trait_maps.reshape(shape[0], -1, height * width).argmax(-1)  # (B, maps of an image)
                patches = features(height, width).flatten(1, 2).cpu().numpy()  # (B, patches, D)
                places = np.take_along_axis(patches, peaks[..., None], axis=1)
                traits, distances = self.vocabulary.assign(places.reshape(-1, patches.shape[-1]))
                names = np.array(self.names, dtype=object)[traits]
                names[distances > self.vocabulary.reach[traits]] = None
                return names.reshape(shape).tolist()

            yield names_at
