"""Do the maps point at what distinguishes species, on photographs? The parts of CUB-200-2011 in which a species differs
from the runner-up are known from the attributes that annotators named, and where they are, from keypoints.

For images that are classified correctly: the distance from the peak of a map (the centre of its patch) to the nearest
visible keypoint of a part in which the class differs from the runner-up, in shares of the bounding box.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from ..data.cub_keypoints import Keypoints
from ..modeling.images_promptcam import over_photographs, photograph_shares
from .explainers import TOP_MAPS, Explainer, explainer_logits, explainer_maps
from .prediction import EVALUATION_BATCH_SIZE
from .trait_data import TraitData, batches_of

NEAR = 0.15  # a peak within this distance of a keypoint is a hit


def measure_keypoints(
    explainer: Explainer,
    data: TraitData,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Measure how near maps point to the parts that distinguish the class from the runner-up.

    Args:
        explainer: The classifier and its maps.
        data: Test images of CUB-200-2011, with their keypoints, and class names as its folders have them.
        batch_size: Images per forward pass.
        progress: Whether to show a progress bar.

    Returns:
        `num_images`, how many were measured: images without a bounding box, that are misclassified, or that show no
        part in which the two classes are known to differ, are left out. Means over them, None if there are none: `hit`
        and `distance` of the first map, `hit_sum` and `distance_sum` of the sum of the first four, and `chance_hit` and
        `chance_distance` of a random patch of those with the centre in the bounding box. A hit is a distance of at most
        0.15, where the box is 1 wide and 1 high.

    Raises:
        ValueError: If an image cannot be read.
    """
    keypoints = data.keypoints
    assert keypoints is not None
    found: list[dict[str, float]] = []
    for rows in batches_of(range(len(data)), batch_size, "keypoints", progress):
        photographs = [data.photographs.photograph(row) for row in rows]
        pixel_values = torch.stack([data.photographs.transform(photograph) for photograph in photographs])
        labels = torch.tensor([data.labels[row] for row in rows])
        classes, runners_up = explainer_logits(explainer, pixel_values).topk(2).indices.T
        correct = (classes == labels).nonzero()[:, 0]
        if not len(correct):
            continue
        shares = photograph_shares(data.image_processor, [photographs[index].size for index in correct.tolist()])
        maps_of_images = over_photographs(explainer_maps(explainer, pixel_values[correct], labels[correct]), shares)
        for index, maps in zip(correct.tolist(), maps_of_images, strict=True):
            image = (data.photographs.split[rows[index]]["image"] or {}).get("path") or ""
            known = keypoints.of(image)
            differing = keypoints.differing(data.names[labels[index]], data.names[runners_up[index]])
            if known is not None and (targets := [point for part, point in known.points.items() if part in differing]):
                found.append(pointing_distances(maps, known, targets, photographs[index].size))
    names = ("hit", "distance", "hit_sum", "distance_sum", "chance_hit", "chance_distance")
    means = {name: fmean(row[name] for row in found) if found else None for name in names}
    return {"num_images": len(found), **means}


def pointing_distances(
    maps: torch.Tensor, known: Keypoints, targets: Sequence[tuple[float, float]], size: tuple[int, int]
) -> dict[str, float]:
    """
    The measures of `measure_keypoints` for one image.

    Args:
        maps: `(M, h, w)`, over the whole image, the most important first.
        known: The image's bounding box.
        targets: The keypoints to point at, x and y in pixels of the original image. One or more.
        size: Width and height of the original image.
    """
    (left, top, width, height), (rows, columns) = known.box, maps.shape[-2:]
    x = (torch.arange(columns, dtype=torch.float64) + 0.5) * size[0] / columns  # centres of patches
    y = (torch.arange(rows, dtype=torch.float64) + 0.5) * size[1] / rows
    distances = [torch.hypot((x[None] - a) / width, (y[:, None] - b) / height) for a, b in targets]
    away = torch.stack(distances).amin(0)  # (h, w)
    inside = ((x >= left) & (x <= left + width))[None] & ((y >= top) & (y <= top + height))[:, None]
    by_chance = away[inside if inside.any() else torch.ones_like(inside)]
    first, summed = (away.flatten()[values.argmax()].item() for values in (maps[0], maps[:TOP_MAPS].sum(0)))
    return {
        "hit": float(first <= NEAR),
        "distance": first,
        "hit_sum": float(summed <= NEAR),
        "distance_sum": summed,
        "chance_hit": float((by_chance <= NEAR).double().mean()),
        "chance_distance": float(by_chance.mean()),
    }
