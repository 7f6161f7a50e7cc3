"""What the pipeline answers: explanations as dictionaries, with the place of every trait, as JSON, and as HTML."""

from base64 import b64encode
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from .html_promptcam import STYLE, explanations_html
from .images_promptcam import encoded, reduced

BOX_SHARE = 0.2  # of the attention to the patches
JSON_PICTURE_SIDE = 512  # longest side of a heatmap in JSON, in pixels


class Explanation(dict):
    """What [`PromptCamPipeline`] says about one class on a photograph. A notebook shows it as a picture."""

    photograph: Image.Image | None = None

    def _repr_html_(self) -> str:
        return f"<style>{STYLE}</style>{explanations_html([self], self.photograph)}"


class Explanations(list):
    """
    The explanations of a photograph, one [`Explanation`] per class. A notebook shows them as a picture.

    Args:
        explanations: Dictionaries without the places of traits. Each trait, of comparisons too, gets `peak` and `box`:
            see `trait_region`. Where a map has two signs, they are those of its positive part.
        size: Width and height of the upright photograph in pixels.
        photograph: What a notebook shows; None shows no pictures.
    """

    def __init__(
        self, explanations: Iterable[dict[str, Any]], size: tuple[int, int], photograph: Image.Image | None = None
    ):
        super().__init__(Explanation(_located(explanation, size)) for explanation in explanations)
        self.size = size
        for explanation in self:
            explanation.photograph = photograph

    def to_json(self, maps: bool = False, images: bool = False) -> dict[str, Any]:
        """
        The answer about a photograph as `json.dumps` takes it: only dictionaries, lists, strings and numbers.

        Args:
            maps: Whether to keep the maps, as lists of rows.
            images: Whether to keep the heatmaps, if there are any, as PNG files in base64, no side longer than 512
                pixels.

        Returns:
            **width** and **height** of the upright photograph, and its **explanations**. All places are in pixels of
            this size, also in smaller heatmaps.
        """
        width, height = self.size
        left_out: list[type] = [type(None), *([] if maps else [np.ndarray]), *([] if images else [Image.Image])]
        return {"width": width, "height": height, "explanations": _as_json(list(self), tuple(left_out))}

    def _repr_html_(self) -> str:
        photograph = self[0].photograph if self else None
        return f"<style>{STYLE}</style>{explanations_html(self, photograph)}"


def trait_region(trait_map: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """
    The place of a trait, in pixels of the upright photograph; x runs to the right and y down.

    Args:
        trait_map: Attention `(grid_height, grid_width)`, 0 or more, over the whole photograph.
        size: Width and height of the photograph in pixels.

    Returns:
        `peak`, the middle `[x, y]` of the patch with the most attention (the first in reading order if several have
        it); `box`, `[left, top, right, bottom]` of the fewest patches that have 20 % of the attention to all patches.
    """
    attention = np.asarray(trait_map, dtype=np.float64)
    rows, columns = attention.shape
    scale_x, scale_y = size[0] / columns, size[1] / rows
    descending = np.argsort(-attention, axis=None, kind="stable")
    running = np.cumsum(attention.ravel()[descending])
    patches = descending[: 1 + int(np.searchsorted(running, BOX_SHARE * running[-1]))]
    y, x = np.unravel_index(patches, attention.shape)
    box = (x.min() * scale_x, y.min() * scale_y, (x.max() + 1) * scale_x, (y.max() + 1) * scale_y)
    peak = ((x[0] + 0.5) * scale_x, (y[0] + 0.5) * scale_y)
    return {"peak": [round(float(value), 1) for value in peak], "box": [round(float(value), 1) for value in box]}


def _located(explanation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """An explanation, or a comparison in it, whose traits say where they are."""
    traits = [{**trait, **trait_region(trait["map"].clip(0), size)} for trait in explanation["traits"]]
    located = {**explanation, "traits": traits}
    if "comparison" in explanation:
        located["comparison"] = _located(explanation["comparison"], size)
    return located


def _as_json(value: Any, left_out: tuple[type, ...]) -> Any:
    """The value as JSON: arrays as lists, pictures in base64; dictionaries without values of the types `left_out`."""
    if isinstance(value, dict):
        return {key: _as_json(item, left_out) for key, item in value.items() if not isinstance(item, left_out)}
    if isinstance(value, list):
        return [_as_json(item, left_out) for item in value]
    if isinstance(value, Image.Image):
        return b64encode(encoded(reduced(value, JSON_PICTURE_SIDE), "PNG")).decode()
    return value.tolist() if isinstance(value, np.ndarray) else value
