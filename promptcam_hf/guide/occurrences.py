"""Where the important heads of each photograph's class look. The first, long step of `promptcam traits`.

Photographs are looked at once, in shards. A shard is a file `features/<split>_<number>.npz`, written when its
photographs are done, so a run that was interrupted continues, and another number of clusters needs no second look. What
is kept of a photograph is a few kilobytes, in files; the memory needed does not depend on the number of photographs.

Shapes: n photographs and m occurrences of a shard, D features.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.duplicates import byte_sizes, image_paths
from ..data.photographs import Photographs
from ..files import write_arrays, write_atomically, writing_to
from ..modeling import PromptCamConfig, PromptCamPipeline
from ..modeling.probabilities_promptcam import probabilities
from .viewing import Views, view

FEATURES, SETTINGS = "features", "settings.json"
SHARD_SIZE = 256  # photographs
HEADS = 3  # of a photograph: the most important ones of its class


@dataclass(frozen=True, eq=False)
class Shard:
    """
    Some photographs of a split, and the occurrences on those that the model names correctly.

    Args:
        row, label, predicted: Of each photograph its row in the split, its class and the most probable class, `(n,)`.
        probability: Of the most probable class, `(n,)`, in [0, 1].
        size: Width and height in pixels, `(n, 2)`.
        random: Features of one random patch of each photograph `(n, D)`, float16.
        total, num_patches: Sum of the features of all patches `(D,)`, and their number `(1,)`.
        photograph: Of each occurrence its photograph's place in this shard, `(m,)`.
        head, rank: Head, counted from 0, and its rank for its class, counted from 1, `(m,)`.
        peak: Where the head attends most: x and y as shares of width and height, `(m, 2)`, in (0, 1).
        features: Features of the peak `(m, D)`, float16.
        unreadable: Why photographs cannot be read.
    """

    row: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    size: np.ndarray
    random: np.ndarray
    total: np.ndarray
    num_patches: np.ndarray
    photograph: np.ndarray
    head: np.ndarray
    rank: np.ndarray
    peak: np.ndarray
    features: np.ndarray
    unreadable: np.ndarray

    @classmethod
    def load(cls, file: Path) -> "Shard":
        """Read a shard."""
        with np.load(file) as content:
            return cls(**{field.name: content[field.name] for field in fields(cls)})

    def save(self, file: Path) -> None:
        """Write a shard, completely or not at all."""
        write_arrays(file, **{field.name: getattr(self, field.name) for field in fields(self)})


def look_at_photographs(
    pipe: PromptCamPipeline,
    splits: dict[str, Photographs],
    folder: Path,
    *,
    heads: int = HEADS,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = True,
) -> None:
    """
    Write the shards of all photographs. Those that are there already, of the same model and photographs, stay.

    Args:
        pipe: The model.
        splits: Photographs by split, as from `load_photographs`.
        folder: Where to write `features/`.
        heads: How many heads of each photograph, the most important ones.
        batch_size: Photographs per forward pass.
        num_workers: Processes that read photographs.
        progress: Whether to show a progress bar.

    Raises:
        FloatingPointError: If the model's scores are not finite.
        OSError: If a file cannot be written.
    """
    features = folder / FEATURES
    with writing_to(features):
        features.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(fingerprint(pipe, splits) | {"heads": heads}, indent=1)
    if not (features / SETTINGS).is_file() or (features / SETTINGS).read_text(encoding="utf-8") != settings:
        for file in features.glob("*.npz"):  # of another model, or of other photographs
            file.unlink()
        write_atomically(features / SETTINGS, settings)
    total = sum(map(len, splits.values()))
    with tqdm(total=total, desc="looking", unit="photo", disable=not progress) as bar:
        for split, photographs in splits.items():
            for start in range(0, len(photographs), SHARD_SIZE):
                rows = range(start, min(start + SHARD_SIZE, len(photographs)))
                file = features / f"{split}_{start // SHARD_SIZE:05d}.npz"
                if file.is_file():
                    bar.update(len(rows))
                    continue
                unreadable: dict[int, str] = {}
                options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "bar": bar}
                seen = view(pipe, photographs, rows, unreadable, **options)
                parts = [_occurrences(batch, heads, pipe.model.config) for batch in seen]
                _joined(parts, unreadable).save(file)


def shards(folder: Path, split: str | None = None) -> Iterator[tuple[str, Shard]]:
    """The splits and shards of a folder, one at a time, in the order of the photographs."""
    for file in sorted((folder / FEATURES).glob(f"{split or '*'}_*.npz")):
        yield file.name.rpartition("_")[0], Shard.load(file)


def fingerprint(pipe: PromptCamPipeline, splits: dict[str, Photographs]) -> dict[str, object]:
    """What tells models and photographs apart."""
    names = hashlib.sha256()
    for split, photographs in splits.items():
        of_split = photographs.split
        for path, size, label in zip(image_paths(of_split), byte_sizes(of_split), of_split["label"], strict=True):
            changed = os.stat(path).st_mtime_ns if path and os.path.isfile(path) else ""
            names.update(f"{split}\0{path}\0{size}\0{changed}\0{label}\n".encode("utf-8", "surrogateescape"))
    temperature = pipe.model.config.temperature  # of the probabilities
    return {"model": model_fingerprint(pipe.model), "photographs": names.hexdigest(), "temperature": temperature}


def model_fingerprint(model: Any) -> str:
    """What tells models apart: their prompts and score head."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "backbone" not in name:
            weights.update(tensor.detach().float().cpu().numpy().tobytes())
    return weights.hexdigest()


def _occurrences(batch: Views, heads: int, config: PromptCamConfig) -> dict[str, np.ndarray]:
    """The columns of `Shard` for a batch."""
    ranking: Any = batch.ranking  # its fields are optional, as those of every `ModelOutput`
    features = batch.features
    count, height, width, _ = features.shape
    labels = torch.as_tensor(batch.labels)
    probability, predicted = probabilities(ranking.logits, config).max(-1)
    correct = (predicted.cpu() == labels).nonzero()[:, 0]

    order = ranking.order[:, :heads].cpu()[correct]  # (correct, heads)
    maps = ranking.trait_maps.flatten(-2).cpu()  # (B, H, patches)
    patch = maps[correct[:, None], order].argmax(-1)  # (correct, heads)
    peak = torch.stack([(patch % width + 0.5) / width, (patch // width + 0.5) / height], -1)
    flat = features.flatten(1, 2).cpu()  # (B, patches, D)
    # The same patch of a photograph whatever the batch is
    rows = np.array(batch.rows)
    random = torch.as_tensor([np.random.default_rng(row).integers(height * width) for row in rows])
    return {
        "row": rows,
        "label": labels.numpy(),
        "predicted": predicted.cpu().numpy(),
        "probability": probability.cpu().numpy().astype(np.float32),
        "size": np.array(batch.sizes),
        "random": flat[torch.arange(count), random].numpy().astype(np.float16),
        "total": flat.sum((0, 1), dtype=torch.float64).numpy()[None],
        "num_patches": np.array([count * height * width]),
        "photograph": rows[correct.repeat_interleave(order.shape[1]).numpy()],
        "head": order.flatten().numpy(),
        "rank": np.tile(np.arange(1, order.shape[1] + 1), len(correct)),
        "peak": peak.flatten(0, 1).numpy(),
        "features": flat[correct[:, None], patch].flatten(0, 1).numpy().astype(np.float16),
    }


def _joined(parts: list[dict[str, np.ndarray]], unreadable: dict[int, str]) -> Shard:
    """The shard of several batches; one without photographs if none could be read."""
    if not parts:
        empty = {field.name: np.zeros(0, dtype=int) for field in fields(Shard)}
        return Shard(**empty | {"unreadable": np.array(list(unreadable.values()), dtype=str)})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["total"], columns["num_patches"] = columns["total"].sum(0), columns["num_patches"].sum(keepdims=True)
    columns["photograph"] = np.searchsorted(columns["row"], columns["photograph"])
    return Shard(**columns, unreadable=np.array(list(unreadable.values()), dtype=str))
