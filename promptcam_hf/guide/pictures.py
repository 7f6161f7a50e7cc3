"""Crops of photographs around peaks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.photographs import Photographs
from ..files import write_atomically
from ..modeling.images_promptcam import encoded

CROP_SHARE = 0.32  # of a photograph's side: what a person needs to see to recognise a part (72 of 224 pixels)
CROP_PIXELS, GAP = 112, 4
READ_AT = 2 * round(CROP_PIXELS / CROP_SHARE)  # pixels, the shorter side: JPEGs are read no larger than needed
COLUMNS = 6


def crop(photograph: Image.Image, peak: Sequence[float] | np.ndarray, pixels: int = CROP_PIXELS) -> Image.Image:
    """
    A square of a photograph around a peak, moved inside where it would stick out.

    Args:
        photograph: The photograph.
        peak: x and y as shares of its width and height.
        pixels: Side of the result.
    """
    width, height = photograph.size
    side = min(CROP_SHARE * (width * height) ** 0.5, width, height)
    left = min(max(peak[0] * width - side / 2, 0), width - side)
    top = min(max(peak[1] * height - side / 2, 0), height - side)
    box = (left, top, left + side, top + side)
    return photograph.resize((pixels, pixels), Image.Resampling.BICUBIC, box, reducing_gap=2.0)


def gallery(crops: Sequence[Image.Image], columns: int = COLUMNS) -> Image.Image:
    """Crops of one size in rows, on white."""
    pixels, rows = crops[0].width, -(-len(crops) // columns)
    columns = min(columns, len(crops))
    sheet = Image.new("RGB", (columns * (pixels + GAP) - GAP, rows * (pixels + GAP) - GAP), "white")
    for number, picture in enumerate(crops):
        sheet.paste(picture, (number % columns * (pixels + GAP), number // columns * (pixels + GAP)))
    return sheet


def draw_crop(photographs: Photographs, row: int, peak: Sequence[float] | np.ndarray) -> Image.Image | None:
    """The crop around a peak; None if the photograph cannot be read any more."""
    try:
        return crop(photographs.photograph(row, size=READ_AT), peak)
    except ValueError:
        return None


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write a picture as JPEG or WebP, by the ending of the file, completely or not at all."""
    write_atomically(file, encoded(picture, "WEBP" if file.suffix == ".webp" else "JPEG", quality=82))
