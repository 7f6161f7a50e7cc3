"""Augmented views of training photographs: which one an epoch sees depends on the seed, the epoch and the photograph,
and on nothing else; not on how many processes share the work, nor on where an interrupted run went on."""

import hashlib
import struct
from typing import Any

import datasets
import torch

from ..data.photographs import Photographs, TrainTransform


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose seed is drawn from whole numbers, unrelated for different ones."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def order_of_epoch(num_images: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch, counted from 0, goes through the images."""
    return torch.randperm(num_images, generator=seeded(seed, epoch)).tolist()


class Views(torch.utils.data.Dataset):
    """Rows `{"pixel_values": (3, size, size) uint8, "labels": int, "index": int}` by (epoch, index): the view of a
    photograph that an epoch sees, which `transform.normalise` is still to be applied to."""

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
