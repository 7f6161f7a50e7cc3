"""Photographs for training and evaluation: decoding, checking, and transforms."""

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..messages import first_line
from ..modeling.images_promptcam import load_photograph, paddable, pads_to_square, pixels_of
from .duplicates import may_read_files

# --- Photographs ------------------------------------------------------------------------------------------------------


class UnreadablePhotograph(ValueError):
    """A photograph cannot be read; the message names it."""


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
            UnreadablePhotograph: If it cannot be read.
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
        if is_file and not may_read_files(self.split):
            raise UnreadablePhotograph(
                f"{self.name(index)}: the table has only its path, {image['path']!r}; expected its bytes."
            )
        try:
            return load_photograph(image["path"] if is_file else BytesIO(image["bytes"] or b""), size=size)
        except ValueError as error:
            if is_file:
                raise UnreadablePhotograph(str(error)) from None
            reason = re.sub(r"^This \w+: ", "", str(error))  # how `load_photograph` names an image without a file
        raise UnreadablePhotograph(f"{self.name(index)}: {reason}")


def find_unreadable(split: datasets.Dataset, num_workers: int = 0, progress: bool = True) -> dict[int, str]:
    """
    Find the photographs that cannot be read: reads all of them completely.

    Args:
        split: A split of `load_splits`.
        num_workers: Number of processes that read. Default: 0, this process reads.
        progress: Whether to show a progress bar.

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
    with tqdm(total=len(split), desc="checking photographs", unit="photo", disable=not progress) as bar:
        for batch in loader:
            faults.update((index, fault) for index, fault in batch if fault is not None)
            bar.update(len(batch))
    return faults


class _Faults(torch.utils.data.Dataset):
    """Rows `(index, why the photograph cannot be read, or None if it can)`."""

    def __init__(self, split: datasets.Dataset):
        self.photographs = Photographs(split, torch.as_tensor)

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> tuple[int, str | None]:
        try:
            # JPEGs completely, but at an eighth of their size, which is faster
            self.photographs.photograph(index, size=1)
        except UnreadablePhotograph as error:
            return index, str(error)
        return index, None


# --- Transforms -------------------------------------------------------------------------------------------------------


class TrainTransform:
    """
    Augmentation: resize, without keeping the aspect ratio; random crop; random horizontal flip; normalisation.

    By default as in the paper (Chowdhury et al., CVPR 2025): crops of the model's size, 224 x 224, from photographs of
    240 x 240, and in proportion for other sizes. So birds are larger than in evaluation. With `crop`, photographs are
    resized as in evaluation, and crops are smaller; birds are then as large in both (Touvron et al., "Fixing the
    train-test resolution discrepancy", NeurIPS 2019).

    Args:
        image_processor: The model's, which gives size, mean and standard deviation. If it pads photographs to a square,
            so does this.
        crop: Side of the crops, in pixels.
    """

    def __init__(self, image_processor: Any, crop: int | None = None):
        whole, _ = input_size(image_processor)
        self.size, self.resized = (whole, round(whole * 240 / 224)) if crop is None else (crop, whole)
        self.mode = "bicubic" if image_processor.resample == Image.Resampling.BICUBIC else "bilinear"
        self.least_size = 2 * self.resized  # for reading large JPEGs: fewer pixels would blur the photograph
        mean, std = (
            torch.tensor(value)[:, None, None] for value in (image_processor.image_mean, image_processor.image_std)
        )
        self.scale, self.shift = 1 / (255 * std), -mean / std
        is_padded = pads_to_square(image_processor)
        self.padding = tuple(int(255 * value) for value in image_processor.image_mean) if is_padded else None

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
        if self.padding is not None:
            photograph = paddable(photograph)
            photograph = ImageOps.pad(photograph, (max(photograph.size),) * 2, color=self.padding)
        pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)  # (3, height, width)
        # Differs from PIL's resizing by at most one of 255 levels, and takes half the time
        pixels = torch.nn.functional.interpolate(
            pixels[None], (self.resized, self.resized), mode=self.mode, antialias=True
        )[0]
        left, top = torch.randint(self.resized - self.size + 1, (2,), generator=generator).tolist()
        pixels = pixels[:, top : top + self.size, left : left + self.size]
        if torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        return pixels.contiguous()

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise views `(..., 3, size, size)`, uint8, to float32 as the image processor does, on their device."""
        return _normalised(pixels, self.scale, self.shift)


def input_size(image_processor: Any) -> tuple[int, int]:
    """
    Height and width that an image processor resizes all photographs to.

    Raises:
        ValueError: If they depend on the photograph.
    """
    size = getattr(image_processor, "size", None) or {}
    if not getattr(image_processor, "do_resize", True):
        raise ValueError("The image processor does not resize (do_resize=False); expected a fixed height and width.")
    if not (size.get("height") and size.get("width")):
        raise ValueError(f"The image processor's size is {dict(size)}; expected a fixed height and width.")
    return size["height"], size["width"]


class EvaluationTransform:
    """
    The preprocessing of the pipeline: the image processor alone.

    Args:
        image_processor: The model's.

    Raises:
        ValueError: If it does not make all photographs equally large, so that they fit into one batch, or fails.
    """

    def __init__(self, image_processor: BaseImageProcessor):
        input_size(image_processor)
        self.image_processor = image_processor
        self._scale_and_shift = self._normalisation()

    def __call__(self, photograph: Image.Image) -> torch.Tensor:
        """Pixel values `(3, height, width)`, float32, of a photograph of mode `"RGB"`."""
        return self._process(photograph)

    def view(self, photograph: Image.Image) -> torch.Tensor:
        """What `normalise` makes pixel values of: `(3, height, width)`. It is uint8 if the image processor normalises
        last, as nearly all do: that is left to the device then, and a quarter of the bytes go there."""
        if self._scale_and_shift is None:
            return self._process(photograph)
        return self._process(photograph, do_rescale=False, do_normalize=False)

    def normalise(self, views: torch.Tensor) -> torch.Tensor:
        """Pixel values of views `(..., 3, height, width)`, on their device; those of a call, to rounding."""
        if self._scale_and_shift is None:
            return views
        return _normalised(views, *self._scale_and_shift)

    def _process(self, photograph: Image.Image, **options: Any) -> torch.Tensor:
        return pixels_of(self.image_processor, photograph, **options)[0]

    def _normalisation(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Factors and summands `(3, 1, 1)` that do what the image processor does after resizing; None if it does
        something else, which a picture of noise shows."""
        processor: Any = self.image_processor
        # Of a size that it resizes: some processors normalise first, which differs only where pixels are interpolated
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (29, 43, 3), dtype=np.uint8))
        try:
            expected = self._process(noise)
        except Exception as error:  # of any type
            raise ValueError(f"The image processor cannot prepare photographs ({first_line(error)}).") from None
        try:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
            scale, shift = processor.rescale_factor / std, -mean / std
            view = self._process(noise, do_rescale=False, do_normalize=False)
            is_same = view.dtype == torch.uint8 and torch.allclose(_normalised(view, scale, shift), expected, atol=1e-5)
        except (AttributeError, TypeError, ValueError, RuntimeError):  # another kind of image processor
            return None
        return (scale, shift) if is_same else None


def _normalised(views: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Views, uint8, times factors plus summands `(3, 1, 1)`: float32, on the device of the views."""
    return views.to(torch.float32).mul_(scale.to(views.device)).add_(shift.to(views.device))
