"""Evaluating a model on a split: figures, what is taken for what, and a picture of why."""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, pipeline

from ..data.parts import has_parts
from ..data.photographs import EvaluationTransform, Photographs, load_splits
from ..explanation.drawing import Misclassified, contact_sheet, misclassified_sheet, stacked
from ..files import write_atomically, write_files_atomically
from ..modeling import PromptCamForImageClassification, PromptCamPipeline
from ..modeling.configuration_promptcam import TASK
from ..training.options import EVALUATION_BATCH_SIZE

CALIBRATION_BINS = 15
# Enough to see what goes wrong, few enough to look at
LISTED_CLASSES, DRAWN_CLASSES, DRAWN_PAIRS, DRAWN_OF_A_PAIR, DRAWN_TRAITS = 5, 4, 5, 2, 2
RESULTS, TRAITS, CONFUSIONS = "results.json", "traits.png", "confusions.png"
TRAIT_RESULTS = "traits.json"


@dataclass(frozen=True, eq=False)
class Predictions:
    """
    What a model says about each image of a split: a row an image, in the order of the split, on the CPU.

    Args:
        labels: True classes `(n,)`, int64.
        losses: Cross-entropy of each image `(n,)`, float64.
        top_classes: The five most probable classes, or all if there are fewer, `(n, min(5, C))`, int64, the most
            probable first.
        confidence: Probability of the most probable class `(n,)`, float64, in [0, 1].
    """

    labels: torch.Tensor
    losses: torch.Tensor
    top_classes: torch.Tensor
    confidence: torch.Tensor


# --- Prediction -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(
    model: PromptCamForImageClassification,
    photographs: Photographs,
    *,
    batch_size: int,
    num_workers: int = 0,
    accelerator: Accelerator,
    progress: bool,
) -> Predictions:
    """
    Classify every photograph once, on any number of processes: process p of n takes rows p, p + n, and so on.

    The arithmetic is that of the weights' own type, as in `pipeline("prompt-cam")`, whatever the accelerator's mixed
    precision. The model's mode and the state of torch's random numbers are afterwards as they were.

    Args:
        model: The model, unwrapped, on the accelerator's device.
        photographs: Rows of `pixel_values` and `labels`; the same on every process.
        batch_size: Photographs to a forward pass, on each process.
        num_workers: Processes that read and decode photographs, for each process.
        accelerator: Tells the process its rows.
        progress: Whether the main process shows a progress bar.

    Returns:
        The same rows on every process.

    Raises:
        FloatingPointError: If the model's scores are not finite.
    """
    rows = range(accelerator.process_index, len(photographs), accelerator.num_processes)
    loader = DataLoader(
        Subset(photographs, rows),
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=model.device.type == "cuda",
        generator=torch.Generator(),  # without one, a loader draws from torch's own, which training goes on with
    )
    # No rows of the right shapes, for a process that has none
    columns = [_judge(torch.empty(0, model.num_labels), torch.empty(0, dtype=torch.int64))]
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, enabled=False):
            is_hidden = not (progress and accelerator.is_main_process)
            for batch in tqdm(loader, desc="evaluating", unit="batch", leave=False, disable=is_hidden):
                logits = logits_of(model, batch["pixel_values"].to(model.device, non_blocking=True))
                columns.append(_judge(logits.cpu(), batch["labels"]))
    finally:
        model.train(was_training)
    parts = gather_object([[torch.cat(column) for column in zip(*columns, strict=True)]])
    whole = []
    for column in zip(*parts, strict=True):  # of every process
        merged = column[0].new_empty((len(photographs), *column[0].shape[1:]))
        for process, part in enumerate(column):
            merged[process :: len(parts)] = part
        whole.append(merged)
    predictions = Predictions(*whole)
    broken = int((~predictions.losses.isfinite()).sum())
    if broken:
        raise FloatingPointError(
            f"The model's scores of {broken} of {len(photographs)} photographs are not finite; its weights are broken."
        )
    return predictions


def interpolates(model: PromptCamForImageClassification, pixel_values: torch.Tensor) -> bool | None:
    """What the pipeline passes as `interpolate_pos_encoding`: True for images of another size than the backbone's."""
    size = model.config.backbone_config.image_size
    native_size = (size, size) if isinstance(size, int) else tuple(size)
    return tuple(pixel_values.shape[-2:]) != native_size or None


def logits_of(model: PromptCamForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    """Scores `(B, C)` of images on the model's device, of any size, in the arithmetic of the weights' own type."""
    # Not `model(...)`: Accelerate puts a `forward` with mixed precision in the place of the model's own
    output: Any = type(model).forward(
        model, pixel_values, interpolate_pos_encoding=interpolates(model, pixel_values), return_dict=True
    )
    return output.logits


def _judge(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The columns of `Predictions`, of scores `(B, C)` and true classes `(B,)`."""
    logits = logits.double()
    top_classes = logits.topk(min(5, logits.shape[-1])).indices
    return labels, cross_entropy(logits, labels, reduction="none"), top_classes, logits.softmax(-1).amax(-1)


def class_names(model: PromptCamForImageClassification) -> list[str]:
    """The names of the model's classes, in the order of its labels."""
    id2label: Any = model.config.id2label
    return [id2label[label] for label in range(model.num_labels)]


# --- Figures ----------------------------------------------------------------------------------------------------------


def metrics(predictions: Predictions) -> dict[str, float]:
    """
    What is reported of a split. Sums are exactly rounded, so that their order does not matter.

    Returns:
        `loss` (mean cross-entropy) and, in [0, 1], `accuracy`, `top5_accuracy`, `macro_accuracy` (mean over the classes
        that occur) and `calibration_error` (expected calibration error over 15 bins of equal width; Guo et al., ICML
        2017).

    Raises:
        ValueError: If there are no predictions.
    """
    labels, count = predictions.labels, len(predictions.labels)
    if not count:
        raise ValueError("No photographs to evaluate; expected 1 or more.")
    is_correct = predictions.top_classes[:, 0] == labels
    accuracies = [correct / images for images, correct in _per_class(predictions).values()]
    # Bins are open below and closed above
    bins = torch.bucketize(predictions.confidence, torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64)[1:])
    gaps = is_correct.double() - predictions.confidence
    return {
        "loss": math.fsum(predictions.losses.tolist()) / count,
        "accuracy": int(is_correct.sum()) / count,
        "top5_accuracy": int((predictions.top_classes == labels[:, None]).any(-1).sum()) / count,
        "macro_accuracy": math.fsum(accuracies) / len(accuracies),
        "calibration_error": math.fsum(abs(math.fsum(gaps[bins == b].tolist())) for b in bins.unique()) / count,
    }


def _per_class(predictions: Predictions) -> dict[int, tuple[int, int]]:
    """Of each class that occurs: how many images it has, and how many of them are classified correctly."""
    images = Counter(predictions.labels.tolist())
    correct = Counter(predictions.labels[predictions.top_classes[:, 0] == predictions.labels].tolist())
    return {label: (count, correct[label]) for label, count in images.items()}


def _confusions(predictions: Predictions, names: Sequence[str]) -> list[tuple[int, int, int]]:
    """True class, predicted class and how often, the most frequent first."""
    pairs = Counter(zip(predictions.labels.tolist(), predictions.top_classes[:, 0].tolist(), strict=True))
    wrong = [(true, predicted, count) for (true, predicted), count in pairs.items() if true != predicted]
    return sorted(wrong, key=lambda row: (-row[2], names[row[0]], names[row[1]]))


def _class_rows(predictions: Predictions, names: Sequence[str]) -> list[tuple[str, int, int, float, str]]:
    """Class, images, correct, accuracy and most confused with, the lowest accuracy first."""
    taken_for: dict[int, str] = {}
    for true, predicted, _ in _confusions(predictions, names):
        taken_for.setdefault(true, names[predicted])
    rows = [
        (names[label], images, correct, correct / images, taken_for.get(label, ""))
        for label, (images, correct) in _per_class(predictions).items()
    ]
    return sorted(rows, key=lambda row: (row[3], row[0]))


def summary(predictions: Predictions, names: Sequence[str]) -> str:
    """A short table for people: the figures, and the classes with the lowest accuracy. `names` are `class_names`."""
    figures = metrics(predictions)
    rows = _class_rows(predictions, names)
    lines = [
        f"{len(predictions.labels)} photographs of {len(rows)} of the model's {len(names)} classes",
        f"  accuracy           {figures['accuracy']:8.2%}",
        f"  top-5 accuracy     {figures['top5_accuracy']:8.2%}",
        f"  macro accuracy     {figures['macro_accuracy']:8.2%}   mean over classes",
        f"  calibration error  {figures['calibration_error']:8.2%}",
        f"  loss               {figures['loss']:8.4f}",
    ]
    wrong = [row for row in rows if row[2] < row[1]][:LISTED_CLASSES]
    if wrong:
        lines.append("lowest accuracy")
        width = max(len(row[0]) for row in wrong)
        lines += [
            f"  {name:{width}}  {accuracy:7.1%} of {images:<5} most often taken for {other}"
            for name, images, _, accuracy, other in wrong
        ]
    return "\n".join(lines)


# --- Report -----------------------------------------------------------------------------------------------------------


def write_report(
    predictions: Predictions,
    photographs: Photographs,
    model: PromptCamForImageClassification,
    image_processor: BaseImageProcessor,
    output_dir: str | os.PathLike,
    source: Mapping[str, str | None],
) -> dict[str, Any]:
    """
    Write a split's evaluation: `results.json` (the figures), `per_class.csv` (the lowest accuracy first),
    `confusions.csv` (what is taken for what, the most frequent first), `traits.png` (traits of some classes, on the
    first photograph of each that is classified correctly) and `confusions.png` (of the most frequent confusions some
    photographs, with what the true class and the predicted class look at), each if there are any such. Call it on one
    process.

    All files are written in another folder and then moved. Other files in the folder stay.

    Args:
        predictions: Of `predict`.
        photographs: What it was given.
        model: The model; afterwards in the mode it was in.
        image_processor: The model's.
        output_dir: Folder to write to; made if need be.
        source: What `results.json` begins with: `{"model": ..., "data": ..., "split": ...}`, their names.

    Returns:
        What `results.json` holds: `source`, `num_images`, `num_classes` (of the model), and those of `metrics`.

    Raises:
        OSError: If it cannot be written.
    """
    output_dir = Path(output_dir)
    names = class_names(model)
    results = _results(predictions, model, source)
    confusions = _confusions(predictions, names)
    with write_files_atomically(output_dir) as draft:
        _write_csv(
            draft / "per_class.csv",
            ("class", "images", "correct", "accuracy", "most_confused_with"),
            ((*row[:3], round(row[3], 6), row[4]) for row in _class_rows(predictions, names)),
        )
        _write_csv(
            draft / "confusions.csv",
            ("true", "predicted", "count"),
            ((names[true], names[predicted], count) for true, predicted, count in confusions),
        )
        with _explaining(model, image_processor) as explain:
            pictures = {
                TRAITS: _draw_traits(predictions, names, photographs, explain),
                CONFUSIONS: _draw_confusions(predictions, confusions[:DRAWN_PAIRS], photographs, explain)
                if confusions
                else None,
            }
        for name, picture in pictures.items():
            if picture is not None:
                picture.save(draft / name)
        (draft / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, picture in pictures.items():
        if picture is None:
            (output_dir / name).unlink(missing_ok=True)  # of an earlier evaluation
    return results


def _results(
    predictions: Predictions, model: PromptCamForImageClassification, source: Mapping[str, str | None]
) -> dict[str, Any]:
    counts = {"num_images": len(predictions.labels), "num_classes": model.num_labels}
    return {**source, **counts, **metrics(predictions)}


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def _explaining(
    model: PromptCamForImageClassification, image_processor: BaseImageProcessor
) -> Iterator[PromptCamPipeline]:
    """A pipeline on the model, which is afterwards in the mode it was in."""
    was_training = model.training
    try:
        yield PromptCamPipeline(model=model.eval(), image_processor=image_processor, device=model.device)
    finally:
        model.train(was_training)


def _draw_traits(
    predictions: Predictions, names: Sequence[str], photographs: Photographs, traits: PromptCamPipeline
) -> Image.Image | None:
    """Of some classes, evenly spread over the list, the first photograph that is classified correctly; None where there
    is none at all."""
    first: dict[int, int] = {}
    is_correct = predictions.top_classes[:, 0] == predictions.labels
    for row in is_correct.nonzero()[:, 0].tolist():
        first.setdefault(int(predictions.labels[row]), row)
    known = sorted(first)
    count = min(DRAWN_CLASSES, len(known))
    sheets = []
    for label in (known[index * len(known) // count] for index in range(count)):
        photograph = photographs.photograph(first[label])
        sheets.append(contact_sheet(photograph, traits(photograph, classes=[names[label]]), cell_height=200))
    return stacked(sheets) if sheets else None


def _draw_confusions(
    predictions: Predictions,
    confusions: Sequence[tuple[int, int, int]],
    photographs: Photographs,
    traits: PromptCamPipeline,
) -> Image.Image:
    """Of each confusion the photographs of which the model is surest, and why it is."""
    images = _per_class(predictions)
    examples = []
    for true, predicted, count in confusions:
        is_such = (predictions.labels == true) & (predictions.top_classes[:, 0] == predicted)
        rows = is_such.nonzero()[:, 0]
        surest = predictions.confidence[rows].argsort(descending=True, stable=True)
        for row in rows[surest][:DRAWN_OF_A_PAIR].tolist():
            name, photograph = photographs.name(row), photographs.photograph(row)
            true_class, predicted_class = traits(photograph, classes=[true, predicted], top_traits=DRAWN_TRAITS)
            frequency = f"{count} of {images[true][0]}"
            examples.append(Misclassified(photograph, name, true_class, predicted_class, frequency))
    return misclassified_sheet(examples)


# --- Command ----------------------------------------------------------------------------------------------------------


def evaluate(
    model: str | os.PathLike,
    data: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    num_workers: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map: str | os.PathLike | None = None,
    traits: bool = False,
    faithfulness_images: int | None = None,
) -> dict[str, Any]:
    """
    Evaluate a checkpoint on the evaluation split of a data set, print a short table, and write the report (see
    `write_report`). Runs as it is, or under `accelerate launch`.

    With `traits`, the main process goes on to whether the maps show traits (see `trait_evaluation.evaluate_traits`),
    prints that table, too, and writes `traits.json`. Parts are known if the data are a folder with `parts.json`, and
    classes its own.

    Args:
        model: Checkpoint folder or Hub id.
        data: The data, as for `train`. Its classes are found in the model by their names, in whatever order; classes
            that the data lacks do not matter.
        output_dir: Folder for the report: new, empty, or that of an earlier report, which is replaced.
        batch_size: Photographs to a forward pass, on each process.
        num_workers: Processes that read and decode photographs. Default: one a core, at most 8.
        image_column, label_column, label_map: As for `train`.
        traits: Whether to evaluate the maps.
        faithfulness_images: On how many images, at most, to measure insertion and deletion. Default: 200.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: If an argument or the data do not fit the model.
        OSError: If the report cannot be written.
    """
    # Which is built on this file
    from .trait_metrics import FAITHFULNESS_IMAGES, PromptCamExplainer, TraitData, evaluate_traits, traits_summary

    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more.")
    _check_output_dir(Path(output_dir))
    accelerator = Accelerator()
    task: Any = TASK  # `pipeline` is typed for transformers' own tasks
    try:
        # What explains a photograph opens the checkpoint, so both take the same ones
        opened = pipeline(task, model=os.fspath(model), device=accelerator.device)
    except OSError as error:
        raise ValueError(f"model={model}: cannot be opened ({str(error).strip().splitlines()[0]})") from None
    with accelerator.main_process_first():  # others find what it has prepared in the cache
        splits = load_splits(
            data, image_column=image_column, label_column=label_column, label_map=label_map, training=False
        )
    split = with_labels_of(class_names(opened.model), splits.evaluation, splits.names, data)
    photographs = Photographs(split, EvaluationTransform(opened.image_processor))
    trait_data = None
    if traits:  # on all processes, so that all stop if the data do not fit
        parts = data if label_map is None and has_parts(data) else None
        trait_data = TraitData(split, class_names(opened.model), opened.image_processor, parts)
    Path(output_dir).mkdir(parents=True, exist_ok=True)  # or fail before the work, not after it
    predictions = predict(
        opened.model,
        photographs,
        batch_size=batch_size,
        num_workers=min(8, os.cpu_count() or 1) if num_workers is None else num_workers,
        accelerator=accelerator,
        progress=True,
    )
    source = {
        "model": Path(model).resolve().name if Path(model).exists() else os.fspath(model),
        "data": splits.name,
        "split": splits.split,
        "hub_id": splits.hub_id,
    }
    results = _results(predictions, opened.model, source)
    if accelerator.is_main_process:
        print(summary(predictions, class_names(opened.model)))
        write_report(predictions, photographs, opened.model, opened.image_processor, output_dir, source)
        if results["accuracy"] == 1:
            print(f"Nothing is misclassified, so there is no {CONFUSIONS}.")
        (Path(output_dir) / TRAIT_RESULTS).unlink(missing_ok=True)  # of an earlier evaluation
        if trait_data is not None:
            figures = evaluate_traits(
                PromptCamExplainer(opened.model),
                trait_data,
                batch_size=batch_size,
                faithfulness_images=faithfulness_images or FAITHFULNESS_IMAGES,
            )
            print(traits_summary(figures))
            content = json.dumps({**source, **figures}, indent=2, ensure_ascii=False) + "\n"
            write_atomically(Path(output_dir) / TRAIT_RESULTS, content)
    accelerator.wait_for_everyone()
    return results


def _check_output_dir(output_dir: Path) -> None:
    if output_dir.is_dir() and (not any(output_dir.iterdir()) or _is_report(output_dir / RESULTS)):
        return
    if output_dir.exists():
        raise ValueError(
            f"{output_dir} exists and holds no earlier evaluation; expected a new folder to write the report to."
        )


def _is_report(path: Path) -> bool:
    try:
        return "calibration_error" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def with_labels_of(
    classes: Sequence[str], split: datasets.Dataset, names: Sequence[str], data: str | os.PathLike
) -> datasets.Dataset:
    """
    A split with the labels that a model gives to its classes.

    Args:
        classes: The model's, in the order of its labels.
        split: With the column `label`.
        names: Classes in the order of the split's labels.
        data: What the split is of, for the message.

    Raises:
        ValueError: If the split has a class that the model lacks.
    """
    known = {name: label for label, name in enumerate(classes)}
    labels = list(split["label"])
    missing = [names[label] for label in sorted(set(labels)) if names[label] not in known]
    if missing:
        shown = ", ".join(_with_near(name, known) for name in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{data}: the model knows no class {shown}{more}; expected names of its {len(known)} classes, such as "
            f"{next(iter(known))!r}."
        )
    return split.remove_columns("label").add_column("label", [known[names[label]] for label in labels])


def _with_near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"{name!r} (near: {near[0]!r})" if near else repr(name)
