"""Trait maps as files, for other programs and for publications.

`maps/<photograph>/<class>_trait<rank>_head<head>_map.png`, and `..._overlay.png` for a map over its photograph, both in
the format that their ending names. The photograph is named as in its contact sheet, `rank` counts from 1 and `head`
from 0.
"""

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..modeling.images_promptcam import COLOUR_MAP, draw_heatmap, encoded
from .drawing import write_sheet

Format = Literal["png", "npy", "svg", "pdf"]
Size = Literal["photograph", "grid"]
SAVED = ("maps", "heads", "overlay", "regions")
LONGEST_LABEL = 80  # characters of a class name in a file name


def check_saved(save: Sequence[str], format: Format, size: Size | None) -> None:
    """Raise a `ValueError` if there is no such file."""
    for name in save:
        if name not in SAVED:
            raise ValueError(f"save={name}: expected {', '.join(SAVED[:-1])} or {SAVED[-1]}.")
    if format not in ("png", "npy", "svg", "pdf"):
        raise ValueError(f"format={format}: expected png, npy, svg or pdf.")
    if size not in (None, "photograph", "grid"):
        raise ValueError(f"size={size}: expected photograph or grid.")
    if "overlay" in save and format == "npy":
        raise ValueError("An overlay is a picture, and cannot be saved as npy; expected png, svg or pdf.")


def safe_labels(names: Sequence[str]) -> dict[str, str]:
    """What the classes are called in file names: without what some systems do not allow; with the class's number where
    two would be the same."""
    safe = [re.sub(r"[^\w.-]+", "_", name)[:LONGEST_LABEL] for name in names]
    plain = [name.casefold() for name in safe]
    return {
        name: safe[label] if plain.count(plain[label]) == 1 else f"{safe[label]}_{label}"
        for label, name in enumerate(names)
    }


def trait_files(
    photograph: Image.Image | None,
    explanations: Sequence[dict[str, Any]],
    labels: dict[str, str],
    save: Sequence[str],
    format: Format,
    size: tuple[int, int] | None,
) -> Iterator[tuple[str, bytes]]:
    """
    The files with the traits of a photograph.

    Args:
        photograph: The photograph at its full size; only needed for overlays.
        explanations: Its explanations, as `pipeline("prompt-cam")` returns them.
        labels: Names of the classes in file names, from `safe_labels`.
        save: "maps" or "heads" for the maps, "overlay" for the maps over the photograph.
        format: Format of the files. In npy, maps are float32 attention; otherwise each map is coloured on a scale of
            its own, from 0 to its largest value.
        size: Width and height of the maps in pixels; None for a pixel a patch.

    Returns:
        Names and contents of the files.
    """
    for explanation in explanations:
        for trait in explanation["traits"]:
            name = f"{labels[explanation['label']]}_trait{trait['rank']}_head{trait['head']}"
            if "maps" in save or "heads" in save:
                trait_map = trait["map"] if size is None else _resized(trait["map"], size)
                content = _npy(trait_map) if format == "npy" else _picture(_coloured(trait_map), format)
                yield f"{name}_map.{format}", content
            if "overlay" in save and photograph is not None:
                yield f"{name}_overlay.{format}", _picture(draw_heatmap(photograph, trait["map"]), format)


def _resized(trait_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smooth = Image.fromarray(np.asarray(trait_map, np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(smooth).clip(0, None)


def _coloured(trait_map: np.ndarray) -> Image.Image:
    strength = trait_map / max(float(trait_map.max()), 1e-30)
    return Image.fromarray(COLOUR_MAP[np.round(strength * 255).astype(np.uint8)])


def _npy(trait_map: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, trait_map.astype(np.float32))
    return file.getvalue()


def _picture(picture: Image.Image, format: Format) -> bytes:
    if format == "pdf":
        return encoded(picture, "PDF")
    content = write_sheet(picture)  # marked as ours, so that it is not explained as a photograph
    if format == "png":
        return content
    width, height = picture.size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{b64encode(content).decode()}"/>'
        "</svg>\n"
    ).encode()
