"""Photographs as a model sees them: which heads matter, where they look, and how the backbone describes each patch.

Shapes: B images, C classes, H heads, a grid of h x w patches, D features per patch.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import avg_pool2d
from tqdm.auto import tqdm

from ..data.photographs import EvaluationTransform, Photographs
from ..data.splits import load_splits
from ..evaluation.prediction import class_names, with_model_labels
from ..messages import first_line
from ..modeling import PromptCamHeadRanking, PromptCamPipeline
from ..modeling.images_promptcam import over_photographs, photograph_shares
from ..modeling.pipeline_promptcam import check_finite

BATCH_SIZE = 16
NEIGHBOURHOOD = 3  # patches: features are means over squares of this side, which vary less than those of one patch


@dataclass(frozen=True, eq=False)
class Views:
    """
    What a model sees on a batch of photographs.

    Args:
        rows: The photographs' rows in their split.
        labels: Their classes.
        sizes: Their widths and heights in pixels.
        ranking: The heads of the true class, ranked: `order` `(B, H)`, `trait_maps` `(B, H, h, w)`, `logits` `(B, C)`.
        features: Normed patches as they enter the last layer, averaged over 3 x 3 patches, `(B, h, w, D)`, float32.
    """

    rows: list[int]
    labels: list[int]
    sizes: list[tuple[int, int]]
    ranking: PromptCamHeadRanking
    features: torch.Tensor


def load_photographs(pipe: PromptCamPipeline, data: str | os.PathLike) -> dict[str, Photographs]:
    """
    The photographs of a dataset by split, with the model's labels: "train" first, then the split to evaluate on.

    Args:
        pipe: The model.
        data: The data, as for `load_splits`. Training photographs may be missing.

    Raises:
        ValueError: If the data cannot be read, or have a class that the model does not know.
    """
    splits, names = load_splits(data, training=False), class_names(pipe.model)
    found = {"train": splits.train, splits.split: splits.evaluation}
    transform = EvaluationTransform(pipe.image_processor)
    return {
        name: Photographs(with_model_labels(split, splits.names, names, data), transform)
        for name, split in found.items()
        if len(split)
    }


def photograph_path(photographs: Photographs, row: int) -> str:
    """The path of a photograph; for one inside a table, its place there, such as `train[17]`."""
    path = (photographs.split[row]["image"] or {}).get("path")
    return path if path and Path(path).is_file() else photographs.name(row)


def photograph_state(photographs: Photographs, row: int) -> str:
    """What changes when a photograph is replaced: its path, size and time of change."""
    path = photograph_path(photographs, row)
    try:
        status = os.stat(path)
    except OSError:
        return path
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def view(
    pipe: PromptCamPipeline,
    photographs: Photographs,
    rows: Sequence[int],
    unreadable: dict[int, str],
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
    bar: tqdm | None = None,
) -> Iterator[Views]:
    """
    Look at photographs, batch by batch.

    Args:
        pipe: The model.
        photographs: A split, as from `load_photographs`.
        rows: Which of its photographs.
        unreadable: Gets the row of each photograph that cannot be read, and why. They are left out.
        batch_size: Photographs per forward pass.
        num_workers: Processes that read photographs.
        bar: A progress bar, advanced by each photograph.

    Raises:
        FloatingPointError: If the model's scores are not finite.
    """
    loader = torch.utils.data.DataLoader(
        _Readings(photographs, rows),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # so that the caller's random numbers stay the same
    )
    with pipe.model.cached_prompts():
        for batch in loader:
            unreadable.update((item["row"], item["error"]) for item in batch if "error" in item)
            read = [item for item in batch if "error" not in item]
            if read:
                pixel_values = torch.stack([item["pixel_values"] for item in read]).to(pipe.device)
                labels = torch.tensor([item["label"] for item in read], device=pipe.device)
                rows_read, sizes = [item["row"] for item in read], [item["size"] for item in read]
                shares = photograph_shares(pipe.image_processor, sizes)
                ranking, features = look(pipe.model, pixel_values, labels, shares)
                yield Views(rows_read, labels.tolist(), sizes, ranking, features)
            if bar is not None:
                bar.update(len(batch))


@torch.no_grad()
def look(
    model: Any, pixel_values: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor
) -> tuple[PromptCamHeadRanking, torch.Tensor]:
    """
    Rank the heads of each image's class, and keep what the last layer was given, in one pass.

    Args:
        model: A `PromptCamForImageClassification`.
        pixel_values: Images `(B, 3, height, width)` on the model's device.
        labels: Their classes `(B,)`.
        shares: Of `photograph_shares`.

    Returns:
        The ranking, with maps over the photographs, and features `(B, h, w, D)` as in `Views`.

    Raises:
        FloatingPointError: If the model's scores are not finite.
    """
    with watched_patches(model, shares) as features:
        ranking = model.rank_heads(pixel_values, labels)
    check_finite(ranking.logits, pixel_values)
    ranking["trait_maps"] = over_photographs(ranking.trait_maps, shares)
    return ranking, features(*ranking.trait_maps.shape[-2:])


@contextmanager
def watched_patches(model: Any, shares: torch.Tensor) -> Iterator[Callable[[int, int], torch.Tensor]]:
    """
    Watch what the last layer is given while the block runs.

    Args:
        model: A `PromptCamForImageClassification`.
        shares: Of `photograph_shares`, for the images that the model sees.

    Returns:
        A function that takes the height and width of the grid, and returns the features `(B, h, w, D)`, as in `Views`,
        of the images that the model saw last.
    """
    normed: list[torch.Tensor] = []

    def features(height: int, width: int) -> torch.Tensor:
        tokens = normed[-1]  # prompts that enter here are normed before; patches are the last tokens
        patches = tokens[:, -height * width :].float().transpose(1, 2).unflatten(-1, (height, width))  # (B, D, h, w)
        padding = NEIGHBOURHOOD // 2
        smooth = avg_pool2d(patches, NEIGHBOURHOOD, stride=1, padding=padding, count_include_pad=False)
        return over_photographs(smooth, shares).permute(0, 2, 3, 1)

    hook = model.layer_parts(model.num_layers).norm1.register_forward_hook(
        lambda module, inputs, output: normed.append(output)
    )
    try:
        yield features
    finally:
        hook.remove()


class _Readings(torch.utils.data.Dataset):
    """Photographs with their sizes, or why they cannot be read."""

    def __init__(self, photographs: Photographs, rows: Sequence[int]):
        self.photographs, self.rows = photographs, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        try:
            photograph, label = self.photographs.example(row)
        except (ValueError, OSError) as error:
            return {"row": row, "error": first_line(error)}
        pixel_values = self.photographs.transform(photograph)
        return {"row": row, "label": label, "size": photograph.size, "pixel_values": pixel_values}
