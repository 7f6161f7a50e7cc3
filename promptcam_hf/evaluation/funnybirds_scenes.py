"""Scenes with interventions, for the scores of `funnybirds.py`. They are kept in a folder like this:

scenes.jsonl                        a line a scene: `class` (a number), `folder`, `parts` (those of the bird),
                                    `object_pixels` (of each background object), and `target_sensitivity` (two
                                    entries with `class` and the parts that are `shared` with it, or null)
<folder>/full.jpg                   the scene
<folder>/parts.png                  its mask: 2, 3, ... are the parts in the order of the alphabet, 1 is the body
<folder>/objects.png                its mask: k is the background object k, from 1
<folder>/keep_<letters>.jpg         only the parts with these initials, in the order of the alphabet, or `none`
<folder>/no_object_<k>.jpg          without background object k
"""

import json
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..data.parts import read_mask
from ..data.photographs import EvaluationTransform
from ..modeling.images_promptcam import load_photograph, over_photographs, photograph_shares
from .explainers import TOP_MAPS, Explainer, explainer_logits, explainer_maps
from .funnybirds import Scene, funnybirds_scores, importance
from .prediction import EVALUATION_BATCH_SIZE


def measure_funnybirds(
    explainer: Explainer,
    folder: str | os.PathLike,
    names: Sequence[str],
    image_processor: BaseImageProcessor,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    progress: bool = True,
) -> dict[str, float | None]:
    """
    The scores of FunnyBirds of a classifier and its maps (the sum of the four most important ones).

    Args:
        explainer: The classifier and its maps.
        folder: Scenes with interventions, in the layout above.
        names: The explainer's class names. The scenes number their classes in the same order, from 0.
        image_processor: The model's image processor.
        batch_size: Images per forward pass.
        progress: Whether to show a progress bar.

    Returns:
        As `funnybirds_scores`, and `num_images`.

    Raises:
        ValueError: If the folder has no `scenes.jsonl`, a scene is of another class, or a file cannot be read.
    """
    file = Path(folder) / "scenes.jsonl"
    if not file.is_file():
        raise ValueError(f"{folder} has no scenes.jsonl; expected scenes with interventions.")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if unknown := [row["class"] for row in rows if row["class"] not in range(len(names))]:
        raise ValueError(f"{file}: class {unknown[0]}; expected one of the model's {len(names)} classes, from 0.")
    transform = EvaluationTransform(image_processor)
    scenes = [
        _read_scene(explainer, file.parent / row["folder"], row, transform, batch_size)
        for row in tqdm(rows, desc="FunnyBirds", unit="scene", leave=False, disable=not progress)
    ]
    return {"num_images": len(scenes), **funnybirds_scores(scenes)}


def _read_scene(
    explainer: Explainer, folder: Path, row: dict[str, Any], transform: EvaluationTransform, batch_size: int
) -> Scene:
    parts, label = sorted(row["parts"]), row["class"]
    sets = [frozenset(kept) for count in range(len(parts) + 1) for kept in combinations(parts, count)]
    objects = [number for number, pixels in enumerate(row["object_pixels"], start=1) if pixels]
    files = [_kept_file(folder, kept, parts) for kept in sets]
    files += [folder / f"no_object_{number}.jpg" for number in objects]
    batches = torch.stack([transform(load_photograph(file)) for file in files]).split(batch_size)
    logits = torch.cat([explainer_logits(explainer, batch) for batch in batches])

    masks, of_objects = (torch.from_numpy(read_mask(folder / name)) for name in ("parts.png", "objects.png"))
    pair = row["target_sensitivity"] or []
    classes = [label, *(entry["class"] for entry in pair)]
    full = transform(load_photograph(folder / "full.jpg")).expand(len(classes), -1, -1, -1)
    maps = explainer_maps(explainer, full, torch.tensor(classes))[:, :TOP_MAPS].sum(1, keepdim=True)
    shares = photograph_shares(transform.image_processor, [(masks.shape[1], masks.shape[0])] * len(classes))
    maps = over_photographs(maps, shares)
    maps = interpolate(maps, masks.shape, mode="bilinear")[:, 0]  # (classes, H, W), over the masks
    by_class = [
        {part: importance(values, masks == value) for value, part in enumerate(parts, start=2)} for values in maps
    ]
    shared = [frozenset(entry["shared"]) for entry in pair]
    return Scene(
        label=label,
        kept=dict(zip(sets, logits, strict=False)),
        without_object=logits[len(sets) :, label].tolist(),
        parts=by_class[0],
        objects=[importance(maps[0], of_objects == number) for number in objects],
        overlaps=((by_class[1], shared[0]), (by_class[2], shared[1])) if pair else None,
    )


def _kept_file(folder: Path, kept: frozenset[str], parts: list[str]) -> Path:
    if len(kept) == len(parts):
        return folder / "full.jpg"
    return folder / f"keep_{''.join(part[0] for part in parts if part in kept) or 'none'}.jpg"
