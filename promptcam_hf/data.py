"""Photographs for training: a folder of classes, decoded and brought to the model's size."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from .modeling.pipeline_promptcam import load_photograph

EVALUATION_SPLITS = ("validation", "test")


def load_image_folder(data_dir: str | os.PathLike) -> tuple[datasets.Dataset, datasets.Dataset, list[str]]:
    """
    Read `data_dir/train/<class>/*` and `data_dir/validation/<class>/*` (or `val`, or `test`; validation goes first
    where there are both). Images are not decoded yet.

    Returns:
        Training set, evaluation set (columns `image`, a dictionary with `path`, and `label`), and the names of the
        classes in the order of their labels: sorted.

    Raises:
        ValueError: If a folder is missing, holds no images, or the evaluation set has a class that training lacks.
    """
    data_dir = Path(data_dir)
    if not (data_dir / "train").is_dir():
        found = "is no folder" if not data_dir.is_dir() else "has no folder 'train'"
        raise ValueError(f"{data_dir} {found}; expected train/<class>/*.jpg and test/<class>/*.jpg in it.")
    if sum(path.is_dir() for path in (data_dir / "train").iterdir()) < 2:
        raise ValueError(f"{data_dir}/train holds less than two folders; expected one for each class.")
    try:
        splits = datasets.load_dataset("imagefolder", data_dir=str(data_dir))
    except (
        FileNotFoundError,
        datasets.exceptions.DatasetBuildError,
        datasets.data_files.EmptyDatasetError,
        ValueError,
    ):
        raise ValueError(f"{data_dir} holds no images; expected train/<class>/*.jpg and test/<class>/*.jpg.") from None
    name = next((name for name in EVALUATION_SPLITS if name in splits), None)
    if "train" not in splits or name is None:
        missing = "train/" if "train" not in splits else "test/ or validation/"
        raise ValueError(f"{data_dir} has no images in {missing}; found {', '.join(splits) or 'none'}.")
    names = splits["train"].features["label"].names
    train, evaluation = (
        split.cast_column("image", datasets.Image(decode=False)) for split in (splits["train"], splits[name])
    )
    unseen = set(evaluation["label"]) - set(train["label"])
    if unseen:
        raise ValueError(f"{data_dir}: no training images of {', '.join(names[label] for label in sorted(unseen))}.")
    return train, evaluation, names


class Photographs(torch.utils.data.Dataset):
    """Rows `{"pixel_values": (3, height, width) float32, "labels": int}` of an image folder's split."""

    def __init__(self, split: datasets.Dataset, transform: Callable[[Image.Image], torch.Tensor]):
        self.split = split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.split[index]
        return {"pixel_values": self.transform(load_photograph(row["image"]["path"])), "labels": row["label"]}


class TrainTransform:
    """The paper's augmentation: resize to 240 x 240 for a model of 224 x 224 (in proportion for others), aspect
    ignored, random crop, random horizontal flip; normalised as the image processor does."""

    def __init__(self, image_processor: Any):
        self.size = image_processor.size["height"]
        self.resized = round(self.size * 240 / 224)
        self.mean = torch.tensor(image_processor.image_mean)[:, None, None]
        self.std = torch.tensor(image_processor.image_std)[:, None, None]

    def __call__(self, photograph: Image.Image) -> torch.Tensor:
        resized = photograph.resize((self.resized, self.resized), Image.Resampling.BILINEAR)
        left, top = torch.randint(self.resized - self.size + 1, (2,)).tolist()
        crop = resized.crop((left, top, left + self.size, top + self.size))
        if torch.rand(()) < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 255  # (3, height, width)
        return (pixels - self.mean) / self.std


class EvaluationTransform:
    """What the pipeline does to a photograph: the image processor, nothing else."""

    def __init__(self, image_processor: BaseImageProcessor):
        self.image_processor = image_processor

    def __call__(self, photograph: Image.Image) -> torch.Tensor:
        return self.image_processor(images=photograph, return_tensors="pt")["pixel_values"][0]
