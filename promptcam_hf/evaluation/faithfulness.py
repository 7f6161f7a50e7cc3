"""Are maps faithful to the classifier? Insertion and deletion (RISE; Petsiuk et al., BMVC 2018), as in Table 1 of the
Prompt-CAM paper (Chowdhury et al., CVPR 2025).

If a map shows what the classifier uses, the class's probability falls quickly when the pixels with the highest values
are deleted first, and rises quickly when they are inserted first. If it shows what tells the class from the
runner-up, deleting a few pixels takes more from the class than from the runner-up (relative drop; Zhang et al.,
"Finer-CAM", CVPR 2025). ROAD (Rong et al., ICML 2022) fills what it removes from the surroundings, so that the
classifier cannot recognise the shape of a hole. No parts need to be known.

Shapes: B images of H x W pixels, C classes, maps on a grid of h x w patches.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import conv2d, interpolate, pad

from .explainers import TOP_MAPS, Explainer, explainer_logits, explainer_maps
from .imputation import imputed
from .prediction import EVALUATION_BATCH_SIZE
from .trait_data import TraitData, batches_of, evenly_over_classes

FAITHFULNESS_IMAGES, FAITHFULNESS_STEPS = 200, 20
DROPPED = 0.05  # share of the pixels that `relative_drop` deletes
ROAD_SHARES = (0.2, 0.5, 0.8)  # of the pixels that are removed
RESAMPLES = 2000  # of the bootstrap
Logits = Callable[[torch.Tensor], torch.Tensor]


def measure_faithfulness(
    explainer: Explainer,
    data: TraitData,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    num_images: int = FAITHFULNESS_IMAGES,
    steps: int = FAITHFULNESS_STEPS,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Insertion, deletion, relative drop and ROAD for the predicted class, whether it is right or wrong, in the order of
    the sum of the four most important maps.

    Args:
        explainer: The classifier and its maps.
        data: Test images.
        batch_size: Images per forward pass.
        num_images: How many images to measure, evenly spread over the classes. All of them, if there are fewer.
        steps: Steps of each curve.
        progress: Whether to show a progress bar.

    Returns:
        `num_images`; `insertion` and `deletion`, the areas under the mean curves, in [0, 1]; `insertion_curve` and
        `deletion_curve`, the mean curves, lists of `steps + 1` probabilities; `relative_drop`, the mean of
        `relative_drop` of 5 % of the pixels against the runner-up, in [-2, 2], and `relative_drop_chance`, that
        of random patches; `road`, the mean of `road`, in [-1, 1]; `relative_drop_interval` and `road_interval`, see
        `interval_of_mean`.

    Raises:
        ValueError: If an image cannot be read, or the maps are not as `Explainer` says.
    """
    chosen = evenly_over_classes(data, num_images)
    curves: dict[str, list[torch.Tensor]] = {"insertion": [], "deletion": []}
    values: dict[str, list[torch.Tensor]] = {"relative_drop": [], "relative_drop_chance": [], "road": []}
    random_order, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for rows in batches_of(chosen, batch_size, "faithfulness", progress):
        pixel_values = torch.stack([data.photographs[row]["pixel_values"] for row in rows])
        classes, runners_up = explainer_logits(explainer, pixel_values).topk(2).indices.T
        maps = explainer_maps(explainer, pixel_values, classes)[:, :TOP_MAPS].sum(1)
        logits = partial(explainer_logits, explainer)
        for name, curve in (("insertion", insertion_curve), ("deletion", deletion_curve)):
            curves[name].append(curve(logits, pixel_values, maps, classes, steps))
        for name, order in (("", maps), ("_chance", torch.rand(maps.shape, generator=random_order))):
            values[f"relative_drop{name}"].append(relative_drop(logits, pixel_values, order, classes, runners_up))
        values["road"].append(road(logits, pixel_values, maps, classes, noise))
    means = {name: torch.cat(batches).mean(0) for name, batches in curves.items()}
    results: dict[str, Any] = {"num_images": len(chosen)}
    results |= {name: float(area_under(mean)) for name, mean in means.items()}
    results |= {name: float(torch.cat(batches).mean()) for name, batches in values.items()}
    for name in ("relative_drop", "road"):
        results[f"{name}_interval"] = list(interval_of_mean(torch.cat(values[name]).numpy()))
    return results | {f"{name}_curve": mean.tolist() for name, mean in means.items()}


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values `(n,)`: the 2.5th and the 97.5th percentile of the means of 2000 samples
    of n values, drawn with replacement (percentile bootstrap)."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


# --- Curves -----------------------------------------------------------------------------------------------------------


def replacement_curve(
    logits: Logits,
    start: torch.Tensor,
    end: torch.Tensor,
    maps: torch.Tensor,
    classes: torch.Tensor,
    steps: int = FAITHFULNESS_STEPS,
) -> torch.Tensor:
    """
    A class's probability while the pixels of one image are replaced by those of another, in the order of a map.

    Args:
        logits: Computes scores `(B, C)` for images `(B, 3, H, W)`.
        start, end: Images `(B, 3, H, W)`.
        maps: `(B, h, w)`, resized to H x W bilinearly. The pixel with the highest value is replaced first; among equal
            values, the first pixel.
        classes: One class per image `(B,)`.
        steps: In how many equal steps.

    Returns:
        Probabilities `(B, steps + 1)`, float64: from that for `start` to that for `end`.
    """
    rank = pixel_ranks(maps, start)
    curve = []
    for step in range(steps + 1):
        mixed = torch.where(rank < round(rank[0].numel() * step / steps), end, start)
        curve.append(logits(mixed).double().softmax(-1).gather(1, classes[:, None]))
    return torch.cat(curve, dim=1)


def pixel_ranks(maps: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """The place of each pixel, from 0, in the order of maps `(B, h, w)` that are resized bilinearly to images
    `(B, 3, H, W)`: `(B, 1, H, W)`. The highest value comes first; among equal values, the first pixel."""
    smooth = interpolate(maps[:, None].double(), pixel_values.shape[-2:], mode="bilinear")
    return smooth.flatten(1).argsort(descending=True, stable=True).argsort().view_as(smooth)


def relative_drop(
    logits: Logits, pixel_values: torch.Tensor, maps: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """
    RD@5 % of Finer-CAM: how much class a's probability falls, less how much class b's does, when the 5 % of the pixels
    that a map puts first are replaced by zeros, the mean colour.

    Args:
        logits: Computes scores `(B, C)` for images `(B, 3, H, W)`.
        pixel_values: Images `(B, 3, H, W)`.
        maps: `(B, h, w)`; see `pixel_ranks`.
        a, b: One class per image `(B,)`.

    Returns:
        `(B,)`, float64, in [-2, 2]. The higher, the better the map says what makes it a and not b.
    """
    rank = pixel_ranks(maps, pixel_values)
    without = torch.where(rank < round(rank[0].numel() * DROPPED), 0.0, pixel_values)
    fall = logits(pixel_values).double().softmax(-1) - logits(without).double().softmax(-1)
    return (fall.gather(1, a[:, None]) - fall.gather(1, b[:, None]))[:, 0]


def road(
    logits: Logits,
    pixel_values: torch.Tensor,
    maps: torch.Tensor,
    classes: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    ROAD, both ways: a class's probability without the pixels that a map puts last, less that without those that it puts
    first. Removed pixels are filled by `imputation.imputed`.

    Args:
        logits: Computes scores `(B, C)` for images `(B, 3, H, W)`.
        pixel_values: Images `(B, 3, H, W)`.
        maps: `(B, h, w)`; see `pixel_ranks`.
        classes: One class per image `(B,)`.
        generator: Of the noise in filled pixels, on the CPU.

    Returns:
        `(B,)`, float64, in [-1, 1]: the mean over 20, 50 and 80 % of the pixels. The higher, the better. A random map
        has 0 on average.
    """
    rank = pixel_ranks(maps, pixel_values)

    def probability(is_removed: torch.Tensor) -> torch.Tensor:
        filled = imputed(pixel_values, is_removed, generator=generator)
        return logits(filled).double().softmax(-1).gather(1, classes[:, None])[:, 0]

    counts = [round(rank[0].numel() * share) for share in ROAD_SHARES]
    gains = [probability(rank >= rank[0].numel() - count) - probability(rank < count) for count in counts]
    return torch.stack(gains).mean(0)


def deletion_curve(
    logits: Logits,
    pixel_values: torch.Tensor,
    maps: torch.Tensor,
    classes: torch.Tensor,
    steps: int = FAITHFULNESS_STEPS,
) -> torch.Tensor:
    """`replacement_curve` from the image to zeros, the mean colour. The lower the curve, the better the map."""
    return replacement_curve(logits, pixel_values, torch.zeros_like(pixel_values), maps, classes, steps)


def insertion_curve(
    logits: Logits,
    pixel_values: torch.Tensor,
    maps: torch.Tensor,
    classes: torch.Tensor,
    steps: int = FAITHFULNESS_STEPS,
) -> torch.Tensor:
    """`replacement_curve` from the blurred image to the image. The higher the curve, the better the map."""
    return replacement_curve(logits, blurred(pixel_values), pixel_values, maps, classes, steps)


def area_under(curve: torch.Tensor) -> torch.Tensor:
    """The area `(...)`, in [0, 1], under curves `(..., steps + 1)` over [0, 1], by the trapezoidal rule."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


def blurred(pixel_values: torch.Tensor) -> torch.Tensor:
    """Images `(B, 3, H, W)` without their details, by a Gaussian blur with a standard deviation of 1/20 of the shorter
    side."""
    sigma = min(pixel_values.shape[-2:]) / 20
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(pixel_values.shape[1], 1, 1, -1)
    rows = conv2d(pad(pixel_values, (reach, reach, 0, 0), "reflect"), kernel, groups=len(kernel))
    return conv2d(pad(rows, (0, 0, reach, reach), "reflect"), kernel.mT, groups=len(kernel))
