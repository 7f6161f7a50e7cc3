"""Evaluate a checkpoint on a dataset: `promptcam evaluate`, as a Python function.

Writes the report of `report.py` and, if asked for, `traits.json`: the metrics of `trait_metrics.evaluate_traits` for
the trait maps and, under `comparison`, for the comparison with the runner-up. They say where the maps lie and which
parts matter if the data are a folder with `parts.json` and no label map is given; otherwise only how faithful the maps
are and, on CUB-200-2011, how near they point to the parts that distinguish a species (`keypoints.py`). Under
`randomisation` is how much of a map is left when what the model has learned is not (`randomisation.py`).
"""

import json
import os
from pathlib import Path
from typing import Any, Literal

import datasets
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..checkpoint import open_pipeline
from ..data.division import division_of_model
from ..data.photographs import EvaluationTransform, Photographs, UnreadablePhotograph, find_unreadable
from ..data.splits import load_splits
from ..devices import accelerator_on, number_of_workers
from ..files import as_json, write_atomically, writing_to
from ..messages import cause, check_counts
from ..modeling import PromptCamForImageClassification, PromptCamPipeline
from .explainers import ComparisonExplainer, PromptCamExplainer
from .faithfulness import FAITHFULNESS_IMAGES
from .prediction import EVALUATION_BATCH_SIZE, class_names, predict, with_model_labels
from .randomisation import measure_randomisation
from .report import RESULTS, report_results, report_source, summary, write_report
from .trait_data import TraitData
from .trait_metrics import evaluate_traits, traits_summary

TRAIT_RESULTS = "traits.json"


def evaluate(
    model: str | os.PathLike,
    data: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    num_workers: int | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    device: str | int | None = None,
    backbone: str | os.PathLike | None = None,
    traits: bool = False,
    faithfulness_images: int = FAITHFULNESS_IMAGES,
    progress: bool = True,
    **data_options: Any,
) -> dict[str, Any]:
    """
    Evaluate a checkpoint on a split of data, and write a report (see `report.py`), also under `accelerate launch`.

    Args:
        model: Checkpoint folder or Hub id.
        data, data_options: The data and how to read them, as for `load_splits`; no training photographs are needed.
            Classes are matched with the model's by name, and need not all occur. Of data that training divided
            (`split.csv` beside the model), the other part is measured.
        output_dir: Folder for the report: new, empty, or with an earlier report, which is replaced.
        batch_size: Photographs per forward pass, on each process.
        num_workers: Processes that read photographs, for each process. Default: one per core, at most 8.
        on_bad_image: Whether to stop at a photograph that cannot be read, or to skip it.
        device, backbone: As for `open_pipeline`. Default: the GPUs, if there are any; the checkpoint's backbone.
        traits: Whether to measure the model's maps, too, and write `traits.json`.
        faithfulness_images: How many photographs to measure faithfulness on, if `traits`.
        progress: Whether the main process shows progress bars and prints the metrics.

    Returns:
        The content of `results.json`: `model`, `data`, `split`, `hub_id`, `num_skipped` (photographs that cannot be
        read), `num_images`, `num_classes`, the metrics of `prediction.metrics`, and `accuracy_interval` (95 %).

    Raises:
        ValueError: If an argument is out of range, the checkpoint or the data cannot be read or do not fit each other,
            or the folder holds something else.
        OSError, FloatingPointError: If the report cannot be written, or the model's scores are not finite.
    """
    check_counts(batch_size=batch_size, faithfulness_images=faithfulness_images)
    output_dir = _checked(Path(output_dir))
    accelerator = accelerator_on(device)
    pipe = open_pipeline(model, device=accelerator.device, backbone=backbone)
    names, workers = class_names(pipe.model), number_of_workers(num_workers)
    with accelerator.main_process_first():  # the others find the prepared data in the cache
        splits = load_splits(data, **data_options, division=division_of_model(model), training=False)
    rows = with_model_labels(splits.evaluation, splits.names, names, data)
    rows = _readable(rows, workers, accelerator, progress) if on_bad_image == "skip" else rows
    # On all processes, so that all of them stop if the data do not fit. Groups have no parts
    parts = None if data_options.get("label_map") else data
    trait_data = TraitData(rows, names, pipe.image_processor, parts) if traits else None
    source = report_source(model, splits) | {"num_skipped": len(splits.evaluation) - len(rows)}
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    results = _predict_and_report(pipe, rows, output_dir, source, accelerator, num_workers=workers, **options)
    if accelerator.is_main_process and trait_data is not None:
        _report_traits(pipe.model, trait_data, output_dir, source, faithfulness_images, options)
    accelerator.wait_for_everyone()
    return results


def _predict_and_report(
    pipe: PromptCamPipeline,
    rows: datasets.Dataset,
    output_dir: Path,
    source: dict[str, Any],
    accelerator: Accelerator,
    **options: Any,
) -> dict[str, Any]:
    with writing_to(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)  # fail before the work, not after it
    photographs, names = Photographs(rows, EvaluationTransform(pipe.image_processor)), class_names(pipe.model)
    try:
        predictions = predict(pipe.model, photographs, accelerator=accelerator, **options)
    except UnreadablePhotograph as error:
        raise ValueError(f"{cause(error)} Repair or remove it, or pass --on-bad-image skip.") from None
    if accelerator.is_main_process:
        if options["progress"]:
            print(summary(predictions, names, source["split"]))
        write_report(predictions, photographs, pipe.model, pipe.image_processor, output_dir, source)
        (output_dir / TRAIT_RESULTS).unlink(missing_ok=True)  # left by an earlier report
    return report_results(predictions, len(names), source)


def _report_traits(
    model: PromptCamForImageClassification,
    data: TraitData,
    output_dir: Path,
    source: dict[str, Any],
    faithfulness_images: int,
    options: dict[str, Any],
) -> None:
    """Measure the trait maps, and the comparison with the runner-up beside them."""
    explainers = (PromptCamExplainer(model), ComparisonExplainer(model))
    with model.cached_prompts():
        found, found["comparison"] = (
            evaluate_traits(explainer, data, faithfulness_images=faithfulness_images, **options)
            for explainer in explainers
        )
    for explainer, results in zip(explainers, (found, found["comparison"]), strict=True):
        results["randomisation"] = measure_randomisation(explainer, data, num_images=faithfulness_images, **options)
    write_atomically(output_dir / TRAIT_RESULTS, as_json({**source, **found}))
    if options["progress"]:
        print(traits_summary(found), traits_summary(found["comparison"]), sep="\n")


def _readable(split: datasets.Dataset, num_workers: int, accelerator: Accelerator, progress: bool) -> datasets.Dataset:
    """The rows whose photographs can be read. The main process reads them, and names the others."""
    unreadable: dict[int, str] = {}
    if accelerator.is_main_process:
        unreadable = find_unreadable(split, num_workers, progress)
    (unreadable,) = broadcast_object_list([unreadable])
    for message in unreadable.values():
        accelerator.print(f"skipped: {message}")
    return split.select([row for row in range(len(split)) if row not in unreadable])


def _checked(output_dir: Path) -> Path:
    """The folder, if a report may be written there."""
    is_free = output_dir.is_dir() and (not any(output_dir.iterdir()) or _is_report(output_dir / RESULTS))
    if output_dir.exists() and not is_free:
        raise ValueError(f"{output_dir} exists and holds no earlier report; expected a new or empty folder.")
    return output_dir


def _is_report(path: Path) -> bool:
    try:
        return "calibration_error" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
