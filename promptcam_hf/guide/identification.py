"""Make an identification key: `promptcam key`, as a Python function. The output folder then holds

key.txt, key.html    the key as field guides print it; the page has crops, and how often each couplet is right
crops/               the crops of the page
key.json             the key's accuracy, and its couplets
scores.npz           how well each photograph shows each trait, so that another run need not look again
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..checkpoint import open_pipeline
from ..data.photographs import Photographs
from ..devices import number_of_workers
from ..evaluation.prediction import class_names
from ..files import as_json, check_new_folder, write_arrays, write_files_atomically, writing_to
from ..messages import counted
from ..modeling import PromptCamPipeline
from .key import Couplet, build_key, key_text
from .names import display_name, read_names
from .occurrences import fingerprint
from .pictures import draw_crop, save_picture
from .templating import environment
from .viewing import BATCH_SIZE, load_photographs, view
from .vocabulary import FILE, Vocabulary, unit

KEY, PAGE, RECORD, SCORES, CROPS = "key.txt", "key.html", "key.json", "scores.npz", "crops"


@dataclass(frozen=True, eq=False)
class Scores:
    """
    How well the photographs of a split show each trait.

    Args:
        row, label, predicted: Of each photograph its row in the split, its class, and the most probable class, `(n,)`.
        score: The largest cosine similarity of a patch to the trait's centroid, `(n, T)`, in [-1, 1].
        place: The x and y of that patch as shares of width and height, `(n, T, 2)`.
    """

    row: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    score: np.ndarray
    place: np.ndarray


def make_key(
    model: str | os.PathLike,
    data: str | os.PathLike,
    traits: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int | None = None,
    device: str | int | None = None,
    backbone: str | os.PathLike | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Write an identification key for the species of a model, as docs/field_guide.md shows it. The key is built from
    training photographs, and followed automatically on the others.

    Args:
        model: Checkpoint folder or Hub id.
        data: The data, as for `load_splits`, with training photographs.
        traits: The folder of `promptcam traits`.
        output_dir: A new or empty folder, or that of an earlier run, which is replaced. If only the names of traits
            have changed since, nothing is computed again.
        batch_size: Photographs per forward pass.
        num_workers: Processes that read photographs. Default: one per core, at most 8.
        device: Such as `"cuda"` or `"cpu"`, or the number of a GPU. Default: a GPU if there is one.
        backbone: Where the backbone is now (Hub id or folder), for a checkpoint that holds only prompts.
        progress: Whether to show a progress bar.

    Returns:
        The content of `key.json`: `accuracy` (of the key on `split`, in [0, 1]), `chance` (1 / number of classes),
        `model_accuracy` (the model's own on the same photographs), `num_photographs`, `unreadable`, and `couplets`.

    Raises:
        ValueError: If a folder, the checkpoint or the data cannot be read, or there are no training photographs.
        FloatingPointError: If the model's scores are not finite.
        OSError: If a file cannot be written.
    """
    folder, source, vocabulary = Path(output_dir), Path(traits), Vocabulary.load(Path(traits))
    given = read_names(source, len(vocabulary))
    if not (folder / SCORES).is_file():
        check_new_folder(folder)
    pipe = open_pipeline(model, device=device, backbone=backbone)
    splits, names = load_photographs(pipe, data), class_names(pipe.model)
    if len(splits) < 2:
        raise ValueError(f"{data} has photographs in {next(iter(splits))}/ only; a key needs those in train/, too.")
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    options = {"batch_size": batch_size, "num_workers": number_of_workers(num_workers), "progress": progress}
    scores, unreadable = _read_or_score(pipe, splits, vocabulary, folder, source, options)
    (train_name, train), (test_name, test) = scores.items()
    key = build_key(train.score, train.label, vocabulary.part)
    result = _measured(key, test, names) | {"split": test_name, "unreadable": unreadable}
    crops = _draw_couplets(key, train, splits[train_name], folder / CROPS)
    _write(folder, key, result, crops, names, [display_name(given, trait + 1) for trait in range(len(vocabulary))])
    return result


# --- Scores -----------------------------------------------------------------------------------------------------------


def trait_scores(vocabulary: Vocabulary, features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """
    How well photographs show each trait, and where.

    Args:
        vocabulary: The traits.
        features: Features of patches `(B, h, w, D)`, as in `Views`.

    Returns:
        The largest cosine similarity of a patch to each trait's centroid `(B, T)`, and the x and y of that patch as
        shares of width and height, `(B, T, 2)`.
    """
    _, height, width, _ = features.shape
    points = vocabulary.normalised(features.flatten(1, 2).cpu().numpy())  # (B, patches, D)
    similarity = points @ unit(vocabulary.centroids).T  # (B, patches, T)
    patch = similarity.argmax(1)  # (B, T)
    place = np.stack([(patch % width + 0.5) / width, (patch // width + 0.5) / height], axis=-1)
    return similarity.max(1), place.astype(np.float32)


def _read_or_score(
    pipe: PromptCamPipeline,
    splits: dict[str, Photographs],
    vocabulary: Vocabulary,
    folder: Path,
    source: Path,
    options: dict[str, Any],
) -> tuple[dict[str, Scores], list[str]]:
    """The scores of all photographs by split, read from `scores.npz` if they are of the same vocabulary and
    photographs; and why photographs cannot be read."""
    file = folder / SCORES
    state = hashlib.sha256((source / FILE).read_bytes())
    state.update(json.dumps(fingerprint(pipe, splits)).encode())
    if file.is_file():
        with np.load(file) as content:
            if str(content["state"]) == state.hexdigest():
                found = {
                    split: Scores(**{field.name: content[f"{split}_{field.name}"] for field in fields(Scores)})
                    for split in splits
                }
                return found, content["unreadable"].tolist()
    scores, unreadable = {}, []
    with tqdm(
        total=sum(map(len, splits.values())), desc="scoring", unit="photo", disable=not options["progress"]
    ) as bar:
        for split, photographs in splits.items():
            scores[split], errors = _score(pipe, photographs, vocabulary, options, bar)
            unreadable += errors
    columns = {f"{split}_{x.name}": getattr(found, x.name) for split, found in scores.items() for x in fields(Scores)}
    write_arrays(file, state=state.hexdigest(), unreadable=np.array(unreadable, dtype=str), **columns)
    return scores, unreadable


def _score(
    pipe: PromptCamPipeline, photographs: Photographs, vocabulary: Vocabulary, options: dict[str, Any], bar: tqdm
) -> tuple[Scores, list[str]]:
    unreadable: dict[int, str] = {}
    labels, columns = photographs.split["label"], []
    batch_size, workers = options["batch_size"], options["num_workers"]
    rows = range(len(photographs))
    for batch in view(pipe, photographs, rows, unreadable, batch_size=batch_size, num_workers=workers, bar=bar):
        ranking: Any = batch.ranking
        columns.append(
            (
                np.array(batch.rows),
                np.array([labels[row] for row in batch.rows]),
                ranking.logits.argmax(-1).cpu().numpy(),
                *trait_scores(vocabulary, batch.features),
            )
        )
    if not columns:
        raise ValueError(f"None of the photographs can be read: {next(iter(unreadable.values()))}")
    return Scores(*map(np.concatenate, zip(*columns, strict=True))), list(unreadable.values())


# --- The key ----------------------------------------------------------------------------------------------------------


def _measured(key: Couplet, test: Scores, names: Sequence[str]) -> dict[str, Any]:
    """Follow the key on every test photograph."""
    reached = np.array([key.follow(row) for row in test.score])
    couplets = []
    for couplet in sorted(key.couplets(), key=lambda couplet: couplet.number):
        right = couplet.is_right(test.score, test.label)
        targets = [x.number if isinstance(x, Couplet) else names[x] for x in (couplet.yes, couplet.no)]
        couplets.append(
            {
                "number": couplet.number,
                "trait": couplet.question.trait + 1,
                "others": [look + 1 for look in couplet.question.others],
                "threshold": couplet.threshold,
                "yes": targets[0],
                "no": targets[1],
                "accuracy": float(right.mean()) if len(right) else None,
                "num_photographs": len(right),
            }
        )
    num_classes = len(key.yes_classes) + len(key.no_classes)
    return {
        "accuracy": float((reached == test.label).mean()),
        "chance": 1 / num_classes,
        "model_accuracy": float((test.predicted == test.label).mean()),
        "num_photographs": len(reached),
        "num_classes": num_classes,
        "couplets": couplets,
    }


def _draw_couplets(key: Couplet, train: Scores, photographs: Photographs, folder: Path) -> set[str]:
    """Two crops a couplet: the trait on a typical photograph of the species that have it, and what comes closest to it
    on a typical photograph of those that do not. Returns their names; crops of an earlier key are removed."""
    drawn: set[str] = set()
    with write_files_atomically(folder) as draft:
        for couplet in key.couplets():
            for letter, classes in (("a", couplet.yes_classes), ("b", couplet.no_classes)):
                inside = np.flatnonzero(np.isin(train.label, classes))
                order = inside[np.argsort(couplet.question.value(train.score[inside]))]
                for index in order[_from_the_middle(len(inside))]:
                    place = train.place[index, _shown_trait(couplet, train.score[index], letter)]
                    picture = draw_crop(photographs, int(train.row[index]), place)
                    if picture is not None:
                        save_picture(picture, draft / f"{couplet.number}{letter}.webp")
                        drawn.add(f"{couplet.number}{letter}")
                        break
    for crop in folder.glob("*.webp"):
        if crop.stem not in drawn:
            crop.unlink()
    return drawn


def _shown_trait(couplet: Couplet, scores: np.ndarray, letter: str) -> int:
    """Where to look: at the trait or, for the answer no to "this look rather than the others", at the best other."""
    others = list(couplet.question.others)
    return couplet.question.trait if letter == "a" or not others else others[int(scores[others].argmax())]


def _from_the_middle(count: int) -> np.ndarray:
    """The places of a list, the middle one first."""
    return np.argsort(np.abs(np.arange(count) - count // 2), kind="stable")


def _write(
    folder: Path, key: Couplet, result: dict[str, Any], crops: set[str], names: Sequence[str], words: Sequence[str]
) -> None:
    facts = (
        f"Identification key to {result['num_classes']} classes. Followed automatically, it names "
        f"{result['accuracy']:.1%} of {counted(result['num_photographs'], result['split'] + ' photograph')} correctly "
        f"(chance: {result['chance']:.1%}; the model itself: {result['model_accuracy']:.1%})."
    )
    answers = {couplet.number: couplet.question.words(words) for couplet in key.couplets()}
    template = environment().get_template("key.html")
    page = template.render(facts=facts, couplets=result["couplets"], answers=answers, crops=crops)
    with write_files_atomically(folder) as draft:
        (draft / KEY).write_text(f"{facts}\n\n{key_text(key, names, words)}", encoding="utf-8")
        (draft / PAGE).write_text(page, encoding="utf-8")
        (draft / RECORD).write_text(as_json(result), encoding="utf-8")
