"""Make a vocabulary of traits: `promptcam traits`, as a Python function. The output folder then holds

traits.csv             each trait: its part, classes, photographs and consistency
class_traits.csv       which share of the photographs of each class shows which trait
occurrences.parquet    each occurrence: photograph, class, head, rank, peak in pixels of the photograph, trait, ...
consistency.csv        whether the heads of each class look at the same thing on all photographs
results.json           the same overall, against baselines; against parts, where the data have masks
crops/trait_1.jpg      crops around peaks: two rows that fit the trait best, and two taken at random from the rest
names.csv              to be filled in by people; see `names.py`
vocabulary.npz         the clusters
features/              what was seen on the photographs, so that another run need not look again
"""

import hashlib
import json
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..checkpoint import open_pipeline
from ..data.parts import PartFolder, has_parts
from ..data.photographs import Photographs
from ..devices import number_of_workers
from ..evaluation.prediction import class_names
from ..evaluation.report import write_csv
from ..files import as_json, check_new_folder, write_atomically, write_files_atomically
from ..messages import check_counts, check_installed
from ..modeling import PromptCamPipeline
from .measures import Consistency, agreement, parts_at
from .names import NAMES, carry_names, read_names, write_names
from .occurrences import FEATURES, HEADS, SETTINGS, Shard, look_at_photographs, shards
from .pictures import COLUMNS, draw_crop, gallery, save_picture
from .records import HAS_TRAIT
from .viewing import BATCH_SIZE, load_photographs, photograph_path
from .vocabulary import FILE, Vocabulary, fit_vocabulary

RESULTS, OCCURRENCES, CROPS = "results.json", "occurrences.parquet", "crops"
STATE = ".complete"  # written last: what the folder was made from
MOST_PEAKS = 20_000  # to cluster
SHOWN = 2 * COLUMNS  # crops of each kind in a gallery


@dataclass(frozen=True, eq=False)
class TraitsResult:
    """
    What `make_traits` has written.

    Args:
        results: The content of `results.json`.
        unreadable: Why photographs could not be read.
        lost_names: Names of an earlier vocabulary without a trait in this one; `names_without_trait.csv` has them.
        vocabulary: The clusters.
    """

    results: dict[str, Any]
    unreadable: list[str]
    lost_names: list[str]
    vocabulary: Vocabulary


def make_traits(
    model: str | os.PathLike,
    data: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    parts: int | None = None,
    looks: int | None = None,
    batch_size: int = BATCH_SIZE,
    num_workers: int | None = None,
    device: str | int | None = None,
    backbone: str | os.PathLike | None = None,
    progress: bool = True,
) -> TraitsResult:
    """
    Cluster what the important heads of a model look at into traits, a vocabulary (docs/field_guide.md). Clusters are
    made from training photographs and measured on the others; without training photographs, both on the same.

    A run that was interrupted continues where it was. Names in `names.csv` stay with their traits.

    Args:
        model: Checkpoint folder or Hub id.
        data: The data, as for `load_splits`.
        output_dir: A new or empty folder, or that of an earlier run, whose results are replaced.
        parts: How many clusters of parts. Default: the number with the best silhouette.
        looks: How many clusters of looks a part, at most. Default: the number with the best silhouette.
        batch_size: Photographs per forward pass.
        num_workers: Processes that read photographs. Default: one per core, at most 8.
        device: Such as `"cuda"` or `"cpu"`, or the number of a GPU. Default: a GPU if there is one.
        backbone: Where the backbone is now (Hub id or folder), for a checkpoint that holds only prompts.
        progress: Whether to show progress bars.

    Returns:
        What was found. Photographs that cannot be read are left out.

    Raises:
        ValueError: If an argument is out of range, the checkpoint or the data cannot be read, too few photographs are
            named correctly, or `names.csv` has an error.
        ModuleNotFoundError: If scikit-learn is not installed (extra `guide`).
        FloatingPointError: If the model's scores are not finite.
        OSError: If a file cannot be written.
    """
    check_installed("guide", "sklearn")
    folder = Path(output_dir)
    check_counts(parts=parts, looks=looks, batch_size=batch_size)
    old = earlier_vocabulary(folder)
    pipe = open_pipeline(model, device=device, backbone=backbone)
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": number_of_workers(num_workers)}
    options |= {"parts": parts, "looks": looks, "progress": progress}
    return find_traits(pipe, load_photographs(pipe, data), data, folder, old, **options)


def find_traits(
    pipe: PromptCamPipeline,
    splits: dict[str, Photographs],
    data: str | os.PathLike,
    folder: Path,
    old: Vocabulary | None,
    *,
    parts: int | None,
    looks: int | None,
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> TraitsResult:
    """What `make_traits` does once the model is open, and `splits` of `data` are loaded; `old` is what
    `earlier_vocabulary` returned for the folder."""
    look_at_photographs(pipe, splits, folder, batch_size=batch_size, num_workers=num_workers, progress=progress)
    unreadable = [str(reason) for _, shard in shards(folder) for reason in shard.unreadable]
    seen = hashlib.sha256((folder / FEATURES / SETTINGS).read_bytes()).hexdigest()
    state = {"features": seen, "parts": parts, "looks": looks}
    if old is not None and read_state(folder) == state:  # at most, names have changed
        return TraitsResult(json.loads((folder / RESULTS).read_text(encoding="utf-8")), unreadable, [], old)
    (folder / STATE).unlink(missing_ok=True)
    features, labels, mean = _sample(folder, next(iter(splits)))
    vocabulary = fit_vocabulary(features, labels, mean, parts, looks)
    lost = _replace(folder, old, vocabulary)
    masks = PartFolder(data) if has_parts(data) else None
    results = _describe(folder, vocabulary, splits, class_names(pipe.model), masks, progress)
    write_atomically(folder / STATE, json.dumps(state))
    return TraitsResult(results, unreadable, lost, vocabulary)


def earlier_vocabulary(folder: Path) -> Vocabulary | None:
    """
    The vocabulary that is in a folder already.

    Raises:
        ValueError: If the folder holds something else, or its `names.csv` has an error: better now than after the work.
    """
    if not (folder / FEATURES / SETTINGS).is_file():
        check_new_folder(folder)
    old = Vocabulary.load(folder) if (folder / FILE).is_file() else None
    read_names(folder, None if old is None else len(old))
    return old


def _replace(folder: Path, old: Vocabulary | None, new: Vocabulary) -> list[str]:
    """Save a vocabulary, and give it the names of the one before. Returns the names that no trait has any more."""
    lost = [] if old is None else carry_names(folder, old, new)
    new.save(folder)
    if not (folder / NAMES).is_file():
        write_names(folder, {}, len(new))
    return lost


def read_state(folder: Path) -> dict[str, Any]:
    """What a complete vocabulary was made from: `features`, and the numbers `parts` and `looks` that were asked for.
    Empty if there is none."""
    file = folder / STATE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _sample(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of peaks of a split, at most `MOST_PEAKS` of them, their labels, and the mean over all patches."""
    total: Any = 0.0
    patches = peaks = 0
    for _, shard in shards(folder, split):
        if len(shard.row):
            total, patches = total + shard.total, patches + shard.num_patches.sum()
            peaks += len(shard.features)
    random, features, labels = np.random.default_rng(0), [], []
    for _, shard in shards(folder, split):
        kept = random.random(len(shard.features)) * peaks < MOST_PEAKS
        if kept.any():
            features.append(shard.features[kept])
            labels.append(shard.label[shard.photograph[kept]])
    if not features:
        raise ValueError(f"The model names no photograph in {split}/ correctly, so it has no traits to show.")
    return np.concatenate(features), np.concatenate(labels), (total / patches).astype(np.float32)


# --- What the vocabulary says about the photographs -------------------------------------------------------------------


class _Summary:
    """What is counted over all occurrences, shard by shard."""

    def __init__(self, vocabulary: Vocabulary, num_classes: int, num_heads: int):
        dimensions = len(vocabulary.mean)
        self.shows = np.zeros((num_classes, len(vocabulary)), dtype=int)  # photographs
        self.correct = np.zeros(num_classes, dtype=int)  # photographs
        self.heads = Consistency((num_classes, num_heads), dimensions)
        self.random = Consistency((num_classes, num_heads), dimensions)
        self.traits = Consistency((len(vocabulary),), dimensions)
        self.kinds: list[tuple[int, int]] = []  # trait and true part of peaks, where the parts are known
        self.best: dict[int, list[tuple]] = defaultdict(list)
        self.some: dict[int, list[tuple]] = defaultdict(list)

    def count(self, shard: Shard, trait: np.ndarray) -> None:
        """Which classes show which traits."""
        pairs = np.unique(np.stack([shard.photograph, trait], axis=1), axis=0)
        np.add.at(self.shows, (shard.label[pairs[:, 0]], pairs[:, 1]), 1)
        np.add.at(self.correct, shard.label[np.unique(shard.photograph)], 1)

    def measure(self, shard: Shard, trait: np.ndarray, vocabulary: Vocabulary) -> None:
        """Consistency."""
        points = vocabulary.normalised(shard.features)
        group = (shard.label[shard.photograph], shard.head)
        self.heads.add(group, points)
        self.random.add(group, vocabulary.normalised(shard.random)[shard.photograph])
        self.traits.add((trait,), points)

    def choose(self, split: str, shard: Shard, trait: np.ndarray, distance: np.ndarray, seed: int) -> None:
        """Keep the occurrences that fit a trait best, and some at random, of different photographs."""
        lots = np.random.default_rng(seed).random(len(trait))
        for number in np.unique(trait):
            inside = np.flatnonzero(trait == number)
            _, first = np.unique(shard.photograph[inside], return_index=True)
            for index in inside[first]:
                place = (split, int(shard.row[shard.photograph[index]]), tuple(shard.peak[index].tolist()))
                self.best[number].append((float(distance[index]), *place))
                self.some[number].append((float(lots[index]), *place))
            self.best[number] = sorted(self.best[number])[:SHOWN]
            self.some[number] = sorted(self.some[number])[: 2 * SHOWN]  # among them may be the best


def _describe(
    folder: Path,
    vocabulary: Vocabulary,
    splits: dict[str, Photographs],
    names: list[str],
    part_folder: PartFolder | None,
    progress: bool,
) -> dict[str, Any]:
    """Write all tables and galleries; returns the content of `results.json`."""
    measured = list(splits)[-1]
    num_heads = 1 + max(int(shard.head.max(initial=0)) for _, shard in shards(folder))
    summary = _Summary(vocabulary, len(names), num_heads)
    with write_files_atomically(folder) as draft:
        writer: pq.ParquetWriter | None = None
        try:
            for number, (split, shard) in enumerate(shards(folder)):
                trait, distance = vocabulary.assign(shard.features) if len(shard.features) else (shard.head,) * 2
                if not len(trait):
                    continue
                table = _occurrence_table(split, splits[split], shard, trait, distance, vocabulary, names)
                writer = writer or pq.ParquetWriter(draft / OCCURRENCES, table.schema)
                writer.write_table(table)
                summary.count(shard, trait)
                summary.choose(split, shard, trait, distance, number)
                if split == measured:
                    summary.measure(shard, trait, vocabulary)
                    if part_folder is not None:
                        summary.kinds += _true_parts(part_folder, splits[split], shard, trait)
        finally:
            if writer is not None:
                writer.close()
        _write_tables(draft, vocabulary, summary, names)
        results = _results(vocabulary, summary, measured, part_folder)
        (draft / RESULTS).write_text(as_json(results), encoding="utf-8")
    _draw_galleries(folder, splits, summary, len(vocabulary), progress)
    return results


def _occurrence_table(
    split: str,
    photographs: Photographs,
    shard: Shard,
    trait: np.ndarray,
    distance: np.ndarray,
    vocabulary: Vocabulary,
    names: list[str],
) -> pa.Table:
    """The rows of `occurrences.parquet` for a shard."""
    paths = [photograph_path(photographs, int(row)) for row in shard.row]
    peak = shard.peak * shard.size[shard.photograph]
    return pa.table(
        {
            "photograph": [paths[place] for place in shard.photograph],
            "split": [split] * len(trait),
            "row": shard.row[shard.photograph],
            "class": [names[label] for label in shard.label[shard.photograph]],
            "head": shard.head,
            "rank": shard.rank,
            "x": peak[:, 0].astype(np.float32),
            "y": peak[:, 1].astype(np.float32),
            "part": vocabulary.part[trait] + 1,
            "trait": trait + 1,
            "distance": distance.astype(np.float32),
        }
    )


def _true_parts(folder: PartFolder, photographs: Photographs, shard: Shard, trait: np.ndarray) -> list[tuple[int, int]]:
    """Trait and part of each peak."""
    found = []
    for place in np.unique(shard.photograph):
        inside = np.flatnonzero(shard.photograph == place)
        path, (width, height) = Path(photograph_path(photographs, int(shard.row[place]))), shard.size[place].tolist()
        parts = parts_at(folder, path, (width, height), shard.peak[inside])
        found += list(zip(trait[inside].tolist(), parts, strict=True))
    return found


def _write_tables(draft: Path, vocabulary: Vocabulary, summary: _Summary, names: list[str]) -> None:
    shares = summary.shows / np.maximum(summary.correct, 1)[:, None]  # of each class's photographs (C, T)
    consistency = summary.traits.within() - summary.random.mean()
    rows = []
    for trait in range(len(vocabulary)):
        of_trait = sorted(np.flatnonzero(shares[:, trait] >= HAS_TRAIT), key=lambda label: -shares[label, trait])
        classes = "; ".join(names[label] for label in of_trait)
        number = int(summary.shows[:, trait].sum())
        part = int(vocabulary.part[trait]) + 1
        rows.append((trait + 1, part, classes, number, _rounded(consistency[trait])))
    write_csv(draft / "traits.csv", ("trait", "part", "classes", "photographs", "consistency"), rows)
    write_csv(
        draft / "class_traits.csv",
        ("class", "trait", "photographs", "share"),
        (
            (names[label], trait + 1, int(summary.shows[label, trait]), round(float(shares[label, trait]), 4))
            for label, trait in zip(*np.nonzero(summary.shows), strict=True)
        ),
    )
    heads, random = summary.heads.within(), summary.random.within()
    cosines = np.stack([heads, random, heads - random])
    write_csv(
        draft / "consistency.csv",
        ("class", "head", "photographs", "peaks", "random_patches", "consistency"),
        (
            (names[c], h, int(summary.heads.counts[c, h]), *map(_rounded, cosines[:, c, h]))
            for c, h in np.argwhere(~np.isnan(heads))
        ),
    )


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _results(
    vocabulary: Vocabulary, summary: _Summary, measured: str, part_folder: PartFolder | None
) -> dict[str, Any]:
    peaks, random = summary.heads.mean(), summary.random.mean()
    results: dict[str, Any] = {
        "num_parts": len(vocabulary.parts),
        "num_traits": len(vocabulary),
        "split": measured,
        "heads": HEADS,
        "consistency": {
            "peaks": _rounded(peaks),
            "random_patches": _rounded(random),
            "consistency": _rounded(peaks - random),
            "shuffled": _rounded(summary.heads.between() - random),
        },
    }
    if part_folder is not None and summary.kinds:
        traits, parts = np.array(summary.kinds).T
        results["parts"] = agreement(vocabulary.part[traits], parts)
        results["traits"] = agreement(traits, parts)
        results["on_background"] = float((parts == 0).mean())
    return results


def _draw_galleries(
    folder: Path, splits: dict[str, Photographs], summary: _Summary, num_traits: int, progress: bool
) -> None:
    """Write `crops/`; a photograph that is lost since is left out."""
    if (folder / CROPS).is_dir():
        shutil.rmtree(folder / CROPS)  # of an earlier vocabulary
    (folder / CROPS).mkdir()
    for trait in tqdm(range(num_traits), desc="drawing", unit="trait", disable=not progress):
        best = [place for _, *place in summary.best[trait]]
        others = [place for _, *place in summary.some[trait] if place not in best]
        drawn = [draw_crop(splits[split], row, peak) for split, row, peak in best + others[:SHOWN]]
        crops = [picture for picture in drawn if picture is not None]
        if crops:
            save_picture(gallery(crops), folder / CROPS / f"trait_{trait + 1}.jpg")
