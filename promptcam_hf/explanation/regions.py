"""Where a trait lies on the photograph, in numbers that other tools can use."""

from typing import Any

import numpy as np

BOX_SHARE = 0.2  # of the attention to the patches


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
