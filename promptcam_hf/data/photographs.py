"""Photographs for training and evaluation: splits and class names, decoding, checking, and transforms."""

import csv
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..messages import did_you_mean, listed
from ..modeling.images_promptcam import load_photograph
from .class_names import plain_name, plain_names, read_text
from .layouts import EVALUATION_SPLITS, read_splits

logger = logging.getLogger(__name__)


# --- Splits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Splits:
    """
    Photographs to train on and to evaluate on, not decoded yet.

    Args:
        train: Training photographs, with the columns `image` (a dictionary with `path` and `bytes`, one of which may be
            `None`) and `label` (`ClassLabel`).
        evaluation: Evaluation photographs, with the same columns.
        names: Class names in the order of their labels.
        name: Name of the data: `"CUB-200-2011"`, `"Oxford-IIIT Pet"`, the folder's name, or the Hub id.
        split: Name of the evaluation split: `"validation"`, `"val"` or `"test"`.
        hub_id: Id of the dataset on the Hub; `None` for a folder.
    """

    train: datasets.Dataset
    evaluation: datasets.Dataset
    names: list[str]
    name: str
    split: str
    hub_id: str | None


def load_splits(
    data: str | os.PathLike | datasets.DatasetDict,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map: str | os.PathLike | None = None,
    split: str | None = None,
    training: bool = True,
) -> Splits:
    """
    Read the photographs to train on and those to evaluate on.

    Args:
        data: A folder with `train/<class>/*` and `test/<class>/*`, the unpacked download of CUB-200-2011 (or the folder
            around it) or of Oxford-IIIT Pet, a folder of parquet files named by split, a Hub id `"org/name"`, or
            splits that `datasets` has loaded.
        image_column: Column with the images, in parquet files and Hub datasets; see `read_splits`.
        label_column: Column with the classes, in parquet files and Hub datasets; see `read_splits`.
        label_map: CSV file with the columns `class` and `group`. Groups of classes, such as the genera of species, then
            take the place of the classes.
        split: Name of the split to evaluate on. Default: the first of `validation`, `val` and `test` that has any
            photographs.
        training: Whether the data have to have training photographs; if not, `train` may be empty.

    Returns:
        The splits. The classes of image folders, and labels that are strings, integers or groups, are sorted; other
        classes keep their order.

    Raises:
        ValueError: If the data cannot be read, lack a split, have images without a label, fewer than two classes, or a
            class that is evaluated but not trained, or if the label map does not fit the classes.
    """
    name, found = read_splits(data, image_column, label_column)
    is_loaded = isinstance(data, datasets.DatasetDict)
    data = "the DatasetDict" if is_loaded else os.fspath(data)
    wanted = EVALUATION_SPLITS if split is None else (split,)
    missing = "test/ or validation/" if split is None else f"{split}/"
    split = next((name for name in wanted if name in found and len(found[name])), None)
    if split is None or (training and not len(found.get("train", ()))):
        missing = missing if split is None else "train/"
        raise ValueError(f"{data} has no images in {missing}; found {', '.join(found) or 'none'}.")
    splits = (found.get("train", found[split].select([])), found[split])
    names, (train, evaluation) = _classes(data, splits)
    if label_map is not None:
        groups = read_label_map(label_map, names)
        names = sorted(set(groups.values()))
        train, evaluation = ([groups[name] for name in labels] for labels in (train, evaluation))

    if training:
        _check_classes(data, names, train, evaluation, split)
    return Splits(
        train=_relabel(splits[0], train, names),
        evaluation=_relabel(splits[1], evaluation, names),
        names=names,
        name=name,
        split=split,
        hub_id=None if is_loaded or Path(data).exists() else name,
    )


def _check_classes(
    data: str | os.PathLike, names: list[str], train: list[str], evaluation: list[str], split: str
) -> None:
    """Refuse classes that cannot be trained; warn of classes that will be missing from the model or its evaluation."""
    trained, evaluated = set(train), set(evaluation)
    if untrained := [name for name in names if name in evaluated - trained]:
        raise ValueError(f"{data}: no training images of {listed(untrained)}.")
    if len(trained) < 2:
        raise ValueError(f"{data} has training images of one class only, '{train[0]}'; expected two classes or more.")
    if absent := [name for name in names if name not in trained]:
        logger.warning("%s: no images of %s, so the model will not know them.", data, listed(absent))
    if unmeasured := [name for name in names if name in trained - evaluated]:
        logger.warning("%s: no %s images of %s, so their accuracy cannot be measured.", data, split, listed(unmeasured))


def _classes(data: str | os.PathLike, splits: tuple[datasets.Dataset, ...]) -> tuple[list[str], list[list[str]]]:
    """The class names, in order, and for each split the class of each image."""
    feature = splits[0].features["label"]
    is_class_label = isinstance(feature, datasets.ClassLabel)
    columns = [split["label"][:] for split in splits]
    for split, labels in zip(splits, columns, strict=True):
        row = next((row for row, label in enumerate(labels) if label is None or (is_class_label and label < 0)), None)
        if row is not None:
            raise ValueError(f"{data}: the image {split.split}[{row}] has no label; expected one for every image.")
    values = feature.names if is_class_label else sorted({label for labels in columns for label in labels})
    plain = plain_names(map(str, values), os.fspath(data))
    spelled = feature.names.__getitem__ if is_class_label else str
    return [*plain.values()], [[plain[spelled(label)] for label in labels] for labels in columns]


def read_label_map(path: str | os.PathLike, names: list[str]) -> dict[str, str]:
    """Class -> group, from a CSV file with the columns `class` and `group`, with all classes and no others."""
    groups: dict[str, str] = {}
    rows = csv.DictReader(StringIO(read_text(path), newline=""))
    if not {"class", "group"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{path}: its first line is {','.join(rows.fieldnames or ())}; expected class,group.")
    for row in rows:
        name, group = (plain_name(row[column] or "") for column in ("class", "group"))
        if not name or not group:
            raise ValueError(f"{path}, line {rows.line_num}: expected a class and a group.")
        if groups.setdefault(name, group) != group:
            raise ValueError(f"{path}, line {rows.line_num}: '{name}' is in '{group}', and in '{groups[name]}' above.")
    unknown = [name for name in groups if name not in names]
    for name in names:
        if name not in groups:
            raise ValueError(f"{path}: no group for the class '{name}'{did_you_mean(name, unknown, '.')}")
    if unknown:
        raise ValueError(f"{path}: '{unknown[0]}' is not a class of the data{did_you_mean(unknown[0], names, '.')}")
    return groups


def _relabel(split: datasets.Dataset, labels: list[str], names: list[str]) -> datasets.Dataset:
    """The split with the given class of each image in place of its labels."""
    ids = {name: label for label, name in enumerate(names)}
    column = np.array([ids[name] for name in labels])
    return split.remove_columns("label").add_column("label", column, feature=datasets.ClassLabel(names=names))


# --- Photographs ------------------------------------------------------------------------------------------------------


class Photographs(torch.utils.data.Dataset):
    """
    The photographs of a split, read and transformed: rows `{"pixel_values": transformed photograph, "labels": int}`.

    Args:
        split: A split of `load_splits`.
        transform: Turns a photograph, mode `"RGB"`, into pixel values `(3, height, width)`, float32. If it has the
            attribute `least_size`, JPEG files are read at no more than the size it needs (see `load_photograph`).
    """

    def __init__(self, split: datasets.Dataset, transform: Callable[[Image.Image], torch.Tensor]):
        self.split = split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        photograph, label = self.example(index)
        return {"pixel_values": self.transform(photograph), "labels": label}

    def name(self, index: int) -> str:
        """The photograph's folder and file name; or its place in the split, such as `train[17]`, if it has no file."""
        path = (self.split[index]["image"] or {}).get("path")
        return "/".join(Path(path).parts[-2:]) if path else f"{self.split.split or 'image'}[{index}]"

    def example(self, index: int) -> tuple[Image.Image, int]:
        """
        Read a photograph.

        Returns:
            The photograph, upright and of mode `"RGB"` (see `load_photograph`), and its label.

        Raises:
            ValueError: If it cannot be read; the message names it.
        """
        row = self.split[index]
        return self._read(row["image"], index, getattr(self.transform, "least_size", None)), row["label"]

    def photograph(self, index: int, size: int | None = None) -> Image.Image:
        """The photograph without its label, at its full size unless `load_photograph` is to get the argument `size`."""
        return self._read(self.split[index]["image"], index, size)

    def _read(self, image: dict[str, Any] | None, index: int, size: int | None) -> Image.Image:
        image = image or {"path": None, "bytes": None}
        is_file = image["bytes"] is None and image["path"] is not None
        # A table from elsewhere must not make us fetch URLs, or read files that it has no business with
        if is_file and self.split.info.builder_name not in (None, "imagefolder"):
            raise ValueError(f"{self.name(index)}: the table has only its path, {image['path']!r}; expected its bytes.")
        try:
            return load_photograph(image["path"] if is_file else BytesIO(image["bytes"] or b""), size=size)
        except ValueError as error:
            if is_file:
                raise
            reason = re.sub(r"^This \w+: ", "", str(error))  # how `load_photograph` names an image without a file
        raise ValueError(f"{self.name(index)}: {reason}")


def find_unreadable(split: datasets.Dataset, num_workers: int = 0) -> dict[int, str]:
    """
    Find the photographs that cannot be read: reads all of them completely, with a progress bar.

    Args:
        split: A split of `load_splits`.
        num_workers: Number of processes that read. Default: 0, this process reads.

    Returns:
        For each photograph that cannot be read, its index -> the message of the error that `Photographs` raises.
    """
    loader = torch.utils.data.DataLoader(
        _Faults(split),
        batch_size=32,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # so that training's random numbers stay the same
    )
    faults: dict[int, str] = {}
    with tqdm(total=len(split), desc="checking photographs", unit="photo") as progress:
        for batch in loader:
            faults.update((index, fault) for index, fault in batch if fault is not None)
            progress.update(len(batch))
    return faults


class _Faults(torch.utils.data.Dataset):
    """Rows `(index, why the photograph cannot be read, or None if it can)`."""

    def __init__(self, split: datasets.Dataset):
        self.photographs = Photographs(split, torch.as_tensor)

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> tuple[int, str | None]:
        try:
            self.photographs.photograph(
                index, size=1
            )  # JPEGs completely, but at an eighth of their size, which is faster
        except ValueError as error:
            return index, str(error)
        return index, None


# --- Transforms -------------------------------------------------------------------------------------------------------


class TrainTransform:
    """
    The augmentation of the paper (Chowdhury et al., CVPR 2025): resize to 240 x 240 for a model of 224 x 224, in
    proportion for other sizes, without keeping the aspect ratio; random crop; random horizontal flip; normalisation.

    Args:
        image_processor: The model's, which gives size, mean and standard deviation.
    """

    def __init__(self, image_processor: Any):
        self.size = image_processor.size["height"]
        self.resized = round(self.size * 240 / 224)
        self.least_size = 2 * self.resized  # for reading large JPEGs: fewer pixels would blur the photograph
        mean, std = (
            torch.tensor(value)[:, None, None] for value in (image_processor.image_mean, image_processor.image_std)
        )
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, photograph: Image.Image, generator: torch.Generator | None = None) -> torch.Tensor:
        """
        Args:
            photograph: The photograph, of mode `"RGB"` and any size.
            generator: Random number generator. Default: torch's global one.

        Returns:
            A random view `(3, size, size)`, normalised, float32.
        """
        return self.normalise(self.view(photograph, generator))

    def view(self, photograph: Image.Image, generator: torch.Generator | None = None) -> torch.Tensor:
        """A random view `(3, size, size)` as in a call, before normalisation, uint8: a quarter of the bytes to send to
        another process or device."""
        pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)  # (3, height, width)
        # Differs from PIL's resizing by at most one of 255 levels, and takes half the time
        pixels = torch.nn.functional.interpolate(
            pixels[None], (self.resized, self.resized), mode="bilinear", antialias=True
        )[0]
        left, top = torch.randint(self.resized - self.size + 1, (2,), generator=generator).tolist()
        pixels = pixels[:, top : top + self.size, left : left + self.size]
        if torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        return pixels.contiguous()

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise views `(..., 3, size, size)`, uint8, to float32 as the image processor does, on their device."""
        scale, shift = self.scale.to(pixels.device), self.shift.to(pixels.device)
        return pixels.to(torch.float32).mul_(scale).add_(shift)


class EvaluationTransform:
    """
    The preprocessing of the pipeline: the image processor alone.

    Args:
        image_processor: The model's.
    """

    def __init__(self, image_processor: BaseImageProcessor):
        self.image_processor = image_processor

    def __call__(self, photograph: Image.Image) -> torch.Tensor:
        """Pixel values `(3, height, width)`, float32, of a photograph of mode `"RGB"`."""
        return self.image_processor(images=photograph, return_tensors="pt")["pixel_values"][0]
