"""Test images for measuring maps, with masks of their parts and edited versions where the data have them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..data.cub_keypoints import CubKeypoints, cub_folder
from ..data.parts import PartFolder, PartTable, has_parts
from ..data.photographs import EvaluationTransform, Photographs
from ..data.splits import load_splits
from ..modeling.images_promptcam import load_photograph, pads_to_square
from .prediction import with_model_labels


@dataclass(frozen=True, eq=False)
class TraitImage:
    """
    A test image and the mask of its parts.

    Args:
        pixel_values: `(3, H, W)`, float32, from the image processor.
        label: Its class, by the model's label.
        mask: `(H, W)`, uint8: the part that each pixel shows, 0 for none. None if the data have no masks.
    """

    pixel_values: torch.Tensor
    label: int
    mask: torch.Tensor | None


class TraitData(torch.utils.data.Dataset[TraitImage]):
    """
    Test images, and what the data know about their parts. The attributes are `names` and `labels` (the model's class
    names, and the label of each image), `image_processor`, `photographs` (`Photographs` without masks), and, if the
    parts are known, `part_folder` (a `PartFolder`), `table` (its `PartTable`) and `paths` (of the images); otherwise
    the first two of these are None. `keypoints` (`CubKeypoints`) are those of CUB-200-2011, or None.

    Args:
        split: The images, as from `load_splits`, with the model's labels.
        names: The model's class names, in the order of its labels.
        image_processor: The model's image processor.
        data: Where the split comes from. Parts are known if that is a folder as described in `data/parts.py`, which has
            the images in `test/`, or the unpacked download of CUB-200-2011. Default: no parts are known.

    Raises:
        ValueError: If `PartFolder` or `CubKeypoints` refuse the folder, the image processor crops, or, when an image is
            read, its mask does not fit.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        names: Sequence[str],
        image_processor: BaseImageProcessor,
        data: str | os.PathLike | None = None,
    ):
        self.photographs = Photographs(split, EvaluationTransform(image_processor))
        self.image_processor = image_processor
        self.names, self.labels = list(names), list(split["label"])
        self.part_folder: PartFolder | None = None
        self.table: PartTable | None = None
        self.keypoints: CubKeypoints | None = None
        if data is not None and has_parts(data):
            self.part_folder = PartFolder(data)
            self.table = self.part_folder.table
            self.paths = [Path(image["path"]) for image in split["image"]]
            self.part_folder.check(self.paths)
            if getattr(image_processor, "do_center_crop", None):
                raise ValueError(
                    "The image processor crops (do_center_crop=True), so the masks do not fit; expected one that only "
                    "resizes."
                )
        elif data is not None and cub_folder(data) is not None:
            self.keypoints = CubKeypoints(data)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> TraitImage:
        photograph, label = self.photographs.example(index)
        pixel_values = self.photographs.transform(photograph)
        if self.part_folder is None:
            return TraitImage(pixel_values, label, mask=None)
        height, width = pixel_values.shape[-2:]
        mask = Image.fromarray(self.part_folder.mask(self.paths[index], photograph.size))
        if pads_to_square(self.image_processor):
            mask = ImageOps.pad(mask, (max(mask.size),) * 2)
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
        return TraitImage(pixel_values, label, torch.from_numpy(np.array(mask)))

    def without(self, index: int) -> dict[str, torch.Tensor]:
        """The same scene without one part: part -> `pixel_values`, for each part that the data have removed."""
        return {} if self.part_folder is None else self._read(self.part_folder.without(self.paths[index]))

    def swapped(self, index: int) -> dict[str, torch.Tensor]:
        """The same scene with another class's parts: that class -> `pixel_values`, for each class that the data
        have."""
        return {} if self.part_folder is None else self._read(self.part_folder.swapped(self.paths[index]))

    def _read(self, files: dict[str, Path]) -> dict[str, torch.Tensor]:
        return {name: self.photographs.transform(load_photograph(file)) for name, file in files.items()}


def load_trait_data(folder: str | os.PathLike, names: Sequence[str], image_processor: BaseImageProcessor) -> TraitData:
    """
    The evaluation split of a dataset and, if they are known, its parts.

    Args:
        folder: The data, as for `load_splits`; no training photographs are needed.
        names: The model's class names, in the order of its labels.
        image_processor: The model's image processor.

    Returns:
        The images, with the model's labels.

    Raises:
        ValueError: If the data cannot be read, have a class that the model does not know, or do not fit `TraitData`.
    """
    splits = load_splits(folder, training=False)
    split = with_model_labels(splits.evaluation, splits.names, names, folder)
    return TraitData(split, names, image_processor, folder)


def evenly_over_classes(data: TraitData, num_images: int) -> list[int]:
    """The rows of so many images (all, if there are fewer), evenly spread over the classes."""
    by_class = sorted(range(len(data)), key=lambda row: data.labels[row])
    count = min(num_images, len(data))
    return [by_class[index * len(data) // count] for index in range(count)]


def batches_of(rows: Sequence[int], batch_size: int, title: str, progress: bool) -> Iterator[Sequence[int]]:
    """Rows in batches, with a progress bar if asked for."""
    with tqdm(total=len(rows), desc=title, unit="photo", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            yield batch
            bar.update(len(batch))
