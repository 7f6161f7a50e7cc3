"""Views of photographs: augmented ones to train on, plain ones to evaluate on. Which view an epoch sees depends only on
the seed, the epoch and the photograph: not on the number of processes, nor on where an interrupted run went on."""

import hashlib
import struct
from typing import Any

import datasets
import torch

from ..data.photographs import EvaluationTransform, Photographs, TrainTransform


def seeded(*numbers: int) -> torch.Generator:
    """A random generator whose seed is a hash of whole numbers, so that similar numbers give unrelated generators."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Views(torch.utils.data.Dataset):
    """
    Rows `{"pixel_values": (3, size, size) uint8, "labels": int, "index": int}` by (epoch, index): the view of a
    photograph that an epoch, counted from 0, sees. `normalise` still has to be applied.

    Args:
        split: Photographs as `load_splits` returns them.
        transform: The augmentation.
        seed: Random seed.
    """

    training = True  # whether drop path is on

    def __init__(self, split: datasets.Dataset, transform: TrainTransform, seed: int):
        self.photographs = Photographs(split, transform)
        self.split = split
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        photograph, label = self.photographs.example(index)
        pixel_values = self.transform.view(photograph, seeded(self.seed, epoch, index))
        return {"pixel_values": pixel_values, "labels": label, "index": index}

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixel values for the model `(B, 3, H, W)`, from those of the rows."""
        return self.transform.normalise(pixels)

    def facts(self) -> Any:
        """What pixels depend on besides the photographs."""
        # As lists, since the `repr` of a tensor is rounded
        transform = {
            name: value.tolist() if isinstance(value, torch.Tensor) else value
            for name, value in vars(self.transform).items()
        }
        return self.seed, sorted(transform.items())


class PlainViews(Views):
    """
    The one view of each photograph that evaluation sees: rows as of `Views`, with float32 pixels that are normalised.

    Args:
        split: Photographs as `load_splits` returns them.
        transform: The preprocessing of evaluation.
    """

    training = False

    def __init__(self, split: datasets.Dataset, transform: EvaluationTransform):
        self.photographs = Photographs(split, transform)
        self.split = split
        self.image_processor = transform.image_processor
        self.seed = 0

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        _, index = item
        return {**self.photographs[index], "index": index}

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def facts(self) -> Any:
        return "plain", self.image_processor.to_json_string()
