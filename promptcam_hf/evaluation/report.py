"""The report about a model's predictions:

    results.json      the metrics; see `report_results`
    per_class.csv     accuracy per class, the lowest first
    confusions.csv    which class was taken for which, the most frequent confusion first (in both, a class name that
                      spreadsheets would take for a formula has an apostrophe before it)
    traits.png        for some classes, the traits on the first photograph that is classified correctly
    confusions.png    for the most frequent confusions, some photographs and the traits of both classes
    comparisons.png   for every confusion (the 40 most frequent, if there are more), up to four photographs, and what on
                      them speaks for the true class (yellow) and for the predicted one (blue)

The pictures are left out if there is nothing to show.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import BaseImageProcessor

from ..data.photographs import Photographs
from ..explanation.comparison_sheet import ConfusedPair, confused_pairs_sheet
from ..explanation.drawing import Misclassified, contact_sheet, misclassified_sheet, shrunk, stacked
from ..files import as_json, write_files_atomically
from ..messages import counted
from ..modeling import PromptCamForImageClassification, PromptCamPipeline
from .prediction import Predictions, class_counts, class_names, interval_of_share, metrics, top5_is_trivial

RESULTS, TRAITS_PICTURE, CONFUSIONS_PICTURE = "results.json", "traits.png", "confusions.png"
COMPARISONS_PICTURE = "comparisons.png"
SUMMARY_CLASSES = 5
PICTURED_CLASSES, PICTURED_CONFUSIONS, PHOTOGRAPHS_PER_CONFUSION, TRAITS_PER_CONFUSION = 4, 5, 2, 2
COMPARED_CONFUSIONS, PHOTOGRAPHS_PER_COMPARISON = 40, 4


def write_report(
    predictions: Predictions,
    photographs: Photographs,
    model: PromptCamForImageClassification,
    image_processor: BaseImageProcessor,
    output_dir: str | os.PathLike,
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """
    Write the report about a split; see the head of this file. Call it on one process.

    All files are written to a temporary folder first and then moved, so a report that cannot be finished leaves an
    earlier one as it was. Other files in the folder stay.

    Args:
        predictions: What `predict` returned.
        photographs: What `predict` was given.
        model: The model; it is in the same mode afterwards as before.
        image_processor: The model's image processor.
        output_dir: The folder to write to. It is created if needed.
        source: The first entries of `results.json`: the names of the `model`, the `data` and the `split`.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: If a photograph that is to be shown cannot be read.
        OSError: If a file cannot be written.
    """
    output_dir = Path(output_dir)
    names = class_names(model)
    results = report_results(predictions, model.num_labels, source)
    confusions = _confusions(predictions, names)
    with write_files_atomically(output_dir) as draft:
        write_csv(
            draft / "per_class.csv",
            ("class", "images", "correct", "accuracy", "most_confused_with"),
            ((*row[:3], round(row[3], 6), row[4]) for row in _class_rows(predictions, names)),
        )
        write_csv(
            draft / "confusions.csv",
            ("true", "predicted", "count"),
            ((names[true], names[predicted], count) for true, predicted, count in confusions),
        )
        with _pipeline_for(model, image_processor) as pipe:
            pictures = {
                TRAITS_PICTURE: _draw_traits(predictions, names, photographs, pipe),
                CONFUSIONS_PICTURE: _draw_confusions(predictions, confusions, photographs, pipe),
                COMPARISONS_PICTURE: _draw_comparisons(predictions, confusions, photographs, pipe),
            }
        for name, picture in pictures.items():
            if picture is not None:
                picture.save(draft / name)
        content = as_json(results)
        (draft / RESULTS).write_text(content, encoding="utf-8")
    for name, picture in pictures.items():
        if picture is None:
            (output_dir / name).unlink(missing_ok=True)  # left by an earlier report
    return results


def report_results(predictions: Predictions, num_classes: int, source: Mapping[str, Any]) -> dict[str, Any]:
    """
    The content of `results.json`.

    Args:
        predictions: Predictions for one photograph or more.
        num_classes: Number of the model's classes.
        source: The first entries.

    Returns:
        `source`, `num_images`, `num_classes`, the metrics of `prediction.metrics`, and `accuracy_interval`, the two
        ends of the accuracy's 95 % interval.
    """
    counts = {"num_images": len(predictions.labels), "num_classes": num_classes}
    return {**source, **counts, **metrics(predictions), "accuracy_interval": list(_accuracy_interval(predictions))}


def summary(predictions: Predictions, names: Sequence[str], split: str | None = None) -> str:
    """
    A short table for people: the metrics, and the classes with the lowest accuracy.

    Args:
        predictions: Predictions for one photograph or more.
        names: The model's class names, as from `class_names`.
        split: Where the photographs are from, such as `"test"`.

    Returns:
        Several lines of text.
    """
    found, (low, high) = metrics(predictions), _accuracy_interval(predictions)
    rows = _class_rows(predictions, names)
    origin = "" if split is None else f" in {split}/"
    top5 = [f"  top-5 accuracy     {found['top5_accuracy']:8.2%}"]
    lines = [
        f"{counted(len(predictions.labels), 'photograph')}{origin} of {len(rows)} of the model's {len(names)} classes",
        f"  accuracy           {found['accuracy']:8.2%}   95 % interval: {low:.1%} to {high:.1%}",
        *([] if top5_is_trivial(len(names)) else top5),
        f"  macro accuracy     {found['macro_accuracy']:8.2%}   mean over classes",
        f"  calibration error  {found['calibration_error']:8.2%}" + _before_calibration(found),
        f"  loss               {found['loss']:8.4f}",
    ]
    wrong = [row for row in rows if row[2] < row[1]][:SUMMARY_CLASSES]
    if wrong:
        lines.append("lowest accuracy")
        width = max(len(row[0]) for row in wrong)
        lines += [
            f"  {name:{width}}  {accuracy:7.1%} of {images:<5} most often taken for {other}"
            for name, images, _, accuracy, other in wrong
        ]
    return "\n".join(lines)


def _accuracy_interval(predictions: Predictions) -> tuple[float, float]:
    return interval_of_share(int(predictions.is_correct.sum()), len(predictions.labels))


def _before_calibration(found: Mapping[str, float]) -> str:
    before = found["raw_calibration_error"]
    return "" if before == found["calibration_error"] else f"   {before:.2%} at a temperature of 1"


# --- Tables -----------------------------------------------------------------------------------------------------------


def _confusions(predictions: Predictions, names: Sequence[str]) -> list[tuple[int, int, int]]:
    """True class, predicted class and number of photographs, the most frequent confusion first."""
    pairs = Counter(zip(predictions.labels.tolist(), predictions.top_classes[:, 0].tolist(), strict=True))
    wrong = [(true, predicted, count) for (true, predicted), count in pairs.items() if true != predicted]
    return sorted(wrong, key=lambda row: (-row[2], names[row[0]], names[row[1]]))


def _class_rows(predictions: Predictions, names: Sequence[str]) -> list[tuple[str, int, int, float, str]]:
    """Class, photographs, correct ones, accuracy and the class it is most confused with, the lowest accuracy first."""
    taken_for: dict[int, str] = {}
    for true, predicted, _ in _confusions(predictions, names):
        taken_for.setdefault(true, names[predicted])
    rows = [
        (names[label], images, correct, correct / images, taken_for.get(label, ""))
        for label, (images, correct) in class_counts(predictions).items()
    ]
    return sorted(rows, key=lambda row: (row[3], row[0]))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV. Text that spreadsheets would take for a formula gets an apostrophe before it."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([_no_formula(value) for value in row] for row in rows)


def _no_formula(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula, with an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and re.match(r"[=+\-@\t\r]", value) else value


# --- Pictures ---------------------------------------------------------------------------------------------------------


@contextmanager
def _pipeline_for(
    model: PromptCamForImageClassification, image_processor: BaseImageProcessor
) -> Iterator[PromptCamPipeline]:
    """A pipeline without heatmaps, with the model in evaluation mode; afterwards the model is in its former mode."""
    was_training = model.training
    try:
        with model.eval().cached_prompts():
            yield PromptCamPipeline(model=model, image_processor=image_processor, device=model.device, heatmaps=False)
    finally:
        model.train(was_training)


def _draw_traits(
    predictions: Predictions, names: Sequence[str], photographs: Photographs, pipe: PromptCamPipeline
) -> Image.Image | None:
    """The traits of some classes, evenly spread over the list, on the first photograph of each that is classified
    correctly. None if there is no such photograph."""
    first: dict[int, int] = {}
    for row in predictions.is_correct.nonzero()[:, 0].tolist():
        first.setdefault(int(predictions.labels[row]), row)
    recognised = sorted(first)
    count = min(PICTURED_CLASSES, len(recognised))
    sheets = []
    for label in (recognised[index * len(recognised) // count] for index in range(count)):
        photograph = photographs.photograph(first[label])
        sheets.append(contact_sheet(photograph, pipe(photograph, classes=[names[label]]), cell_height=200))
    return stacked(sheets) if sheets else None


def _draw_confusions(
    predictions: Predictions,
    confusions: Sequence[tuple[int, int, int]],
    photographs: Photographs,
    pipe: PromptCamPipeline,
) -> Image.Image | None:
    """For the most frequent confusions, the photographs with the most confident wrong predictions, and the traits of
    both classes. None if there are no confusions."""
    counts = class_counts(predictions)
    examples = []
    for true, predicted, count in confusions[:PICTURED_CONFUSIONS]:
        for row in _most_confident(predictions, true, predicted)[:PHOTOGRAPHS_PER_CONFUSION]:
            name, photograph = photographs.name(row), photographs.photograph(row)
            true_class, predicted_class = pipe(photograph, classes=[true, predicted], top_traits=TRAITS_PER_CONFUSION)
            frequency = f"{count} of {counts[true][0]}"
            examples.append(Misclassified(shrunk(photograph), name, true_class, predicted_class, frequency))
    return misclassified_sheet(examples) if examples else None


def _draw_comparisons(
    predictions: Predictions,
    confusions: Sequence[tuple[int, int, int]],
    photographs: Photographs,
    pipe: PromptCamPipeline,
) -> Image.Image | None:
    """For every confusion, the photographs with the most confident wrong predictions, and the comparison of the true
    with the predicted class. None if there are no confusions."""
    counts = class_counts(predictions)
    pairs = []
    for true, predicted, count in confusions[:COMPARED_CONFUSIONS]:
        examples = []
        for row in _most_confident(predictions, true, predicted)[:PHOTOGRAPHS_PER_COMPARISON]:
            photograph = photographs.photograph(row)
            (explanation,) = pipe(photograph, classes=[true], compare_with=predicted, top_traits=1)
            examples.append((shrunk(photograph), explanation))
        pairs.append(ConfusedPair(examples, f"{count} of {counts[true][0]}"))
    return confused_pairs_sheet(pairs) if pairs else None


def _most_confident(predictions: Predictions, true: int, predicted: int) -> list[int]:
    """The photographs of one class that were taken for another, the most confident wrong prediction first."""
    rows = ((predictions.labels == true) & (predictions.top_classes[:, 0] == predicted)).nonzero()[:, 0]
    return rows[predictions.confidence[rows].argsort(descending=True, stable=True)].tolist()
