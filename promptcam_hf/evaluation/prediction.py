"""What a model predicts for the photographs of a split, and metrics of the predictions.

Shapes: n photographs, batches of B images of H x W pixels, C classes.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.splits import with_labels
from ..messages import counted, did_you_mean, listed
from ..modeling import PromptCamForImageClassification

EVALUATION_BATCH_SIZE = 16
CALIBRATION_BINS = 15
TOP = 5  # how many of the most probable classes are kept


@dataclass(frozen=True, eq=False)
class Predictions:
    """
    A model's predictions for a split: one row per photograph, in the order of the split, on the CPU.

    Args:
        labels: True classes `(n,)`, int64.
        losses: Cross-entropy of each photograph `(n,)`, float64, in nats.
        top_classes: The five most probable classes, or all if there are fewer, `(n, min(5, C))`, int64, the most
            probable first.
        confidence: Probability of the most probable class `(n,)`, float64, in [0, 1].
        raw_confidence: What it would be at a temperature of 1 `(n,)`, float64, in [0, 1].
    """

    labels: torch.Tensor
    losses: torch.Tensor
    top_classes: torch.Tensor
    confidence: torch.Tensor
    raw_confidence: torch.Tensor

    @property
    def is_correct(self) -> torch.Tensor:
        """Whether the most probable class is the true one, `(n,)`, bool."""
        return self.top_classes[:, 0] == self.labels


# --- Classes ----------------------------------------------------------------------------------------------------------


def class_names(model: PromptCamForImageClassification) -> list[str]:
    """The names of the model's classes, in the order of its labels."""
    id2label: Any = model.config.id2label
    return [id2label[label] for label in range(model.num_labels)]


def with_model_labels(
    split: datasets.Dataset, names: Sequence[str], model_names: Sequence[str], data: str | os.PathLike
) -> datasets.Dataset:
    """
    Replace the labels of a split by those that a model gives to the same class names.

    Args:
        split: A split with the integer column `label`.
        names: Class names in the order of the split's labels.
        model_names: Class names in the order of the model's labels, as from `class_names`.
        data: Where the split comes from; for the error message.

    Returns:
        The split with the model's labels.

    Raises:
        ValueError: If the split has photographs of a class that the model does not know.
    """
    model_labels = {name: label for label, name in enumerate(model_names)}
    labels = list(split["label"])
    unknown = [names[label] for label in sorted(set(labels)) if names[label] not in model_labels]
    if unknown:
        otherwise = f"; expected names of its {len(model_labels)} classes, such as {model_names[0]!r}."
        hint = did_you_mean(unknown[0], model_labels, otherwise)
        raise ValueError(f"{data}: the model knows no class {listed(map(repr, unknown), most=3)}{hint}")
    return with_labels(split, [model_labels[names[label]] for label in labels])


# --- Prediction -------------------------------------------------------------------------------------------------------


def predict(
    model: PromptCamForImageClassification,
    photographs: Dataset,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    num_workers: int = 0,
    accelerator: Accelerator,
    progress: bool = True,
) -> Predictions:
    """
    Classify every photograph once, with the arguments and errors of `scores_of`.

    Returns:
        The predictions for all photographs at the model's temperature, the same on every process.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    batches = scores_of(model, photographs, accelerator=accelerator, **options)
    judged = [judge(*batch, model.config.temperature) for batch in batches]
    columns = [field.name for field in fields(Predictions)]
    return Predictions(**{name: torch.cat([getattr(part, name) for part in judged]) for name in columns})


@torch.no_grad()
def scores_of(
    model: PromptCamForImageClassification,
    photographs: Any,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    num_workers: int = 0,
    accelerator: Accelerator,
    progress: bool = True,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    The scores of every photograph, on any number of processes: in the data type of the weights, as in
    `pipeline("prompt-cam")`, whatever the accelerator's mixed precision. The model's mode and torch's random state are
    the same afterwards as before.

    Args:
        model: The model, unwrapped, on the accelerator's device.
        photographs: Items with `labels`, and `pixel_values` `(3, H, W)` or `features` as `frozen_features` returns
            them; the same on every process.
        batch_size: Photographs per forward pass, on each process.
        num_workers: Worker processes that read photographs, for each process.
        accelerator: Distributes the photographs and gathers the scores.
        progress: Whether the main process shows a progress bar.

    Yields:
        In the order of the photographs, batches of scores `(B, C)` and true classes `(B,)`, those of all processes
        together, on the CPU.

    Raises:
        ValueError: If there are no photographs, or one cannot be read.
        FloatingPointError: At the end, if scores are not finite.
    """
    if not len(photographs):
        raise ValueError("No photographs to evaluate; expected 1 or more.")
    loader = accelerator.prepare_data_loader(
        DataLoader(
            photographs,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # without it, the loader would draw from the random state of the training
        )
    )
    is_hidden = not (progress and accelerator.is_main_process)
    broken = 0
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(accelerator.device.type, enabled=False), model.cached_prompts():
            for batch in tqdm(loader, desc="evaluating", unit="batch", leave=False, disable=is_hidden):
                logits = logits_of(model, batch.get("pixel_values"), batch.get("features"))
                logits, labels = accelerator.gather_for_metrics((logits, batch["labels"]))
                broken += int((~logits.isfinite().all(-1)).sum())
                yield logits.cpu(), labels.cpu()
    finally:
        model.train(was_training)
    if broken:
        total = counted(len(photographs), "photograph")
        raise FloatingPointError(f"The model's scores are not finite for {broken} of {total}; its weights are broken.")


def logits_of(
    model: PromptCamForImageClassification,
    pixel_values: torch.Tensor | None = None,
    features: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The scores of images of any size, computed in the data type of the weights.

    Args:
        model: The model.
        pixel_values: `(B, 3, H, W)` on the model's device.
        features: What `frozen_features` returns for them, instead.

    Returns:
        Scores `(B, C)` on the same device.
    """
    # Not `model(...)`: Accelerate replaces `model.forward` by one with mixed precision
    output: Any = type(model).forward(model, pixel_values, features=features, return_dict=True)
    return output.logits


def judge(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> Predictions:
    """The predictions that scores `(n, C)` of images of true classes `(n,)` amount to at a temperature."""
    logits = logits.double()
    scaled = logits / temperature
    return Predictions(
        labels=labels,
        losses=cross_entropy(scaled, labels, reduction="none"),
        top_classes=logits.topk(min(TOP, logits.shape[-1])).indices,
        confidence=scaled.softmax(-1).amax(-1),
        raw_confidence=logits.softmax(-1).amax(-1),
    )


# --- Metrics ----------------------------------------------------------------------------------------------------------


def metrics(predictions: Predictions) -> dict[str, float]:
    """
    The metrics of a split. Sums are exactly rounded, so the order of the photographs does not matter.

    Args:
        predictions: Predictions for one photograph or more.

    Returns:
        `loss`, the mean cross-entropy in nats, and, each in [0, 1]: `accuracy`; `top5_accuracy`; `macro_accuracy`, the
        mean over the classes that occur; `calibration_error`, the expected calibration error; `raw_calibration_error`,
        what it would be at a temperature of 1.
    """
    count, is_correct = len(predictions.labels), predictions.is_correct
    accuracies = [correct / images for images, correct in class_counts(predictions).values()]
    return {
        "loss": math.fsum(predictions.losses.tolist()) / count,
        "accuracy": int(is_correct.sum()) / count,
        "top5_accuracy": int((predictions.top_classes == predictions.labels[:, None]).any(-1).sum()) / count,
        "macro_accuracy": math.fsum(accuracies) / len(accuracies),
        "calibration_error": calibration_error(predictions.confidence, is_correct),
        "raw_calibration_error": calibration_error(predictions.raw_confidence, is_correct),
    }


def top5_is_trivial(num_classes: int) -> bool:
    """Whether a model has so few classes that its top-5 accuracy is always 100 %."""
    return num_classes <= TOP


def interval_of_share(hits: int, count: int) -> tuple[float, float]:
    """
    The 95 % interval of a share, such as an accuracy (Wilson, "Probable Inference, the Law of Succession, and
    Statistical Inference", 1927). It says how far another sample of photographs might differ, if all are independent.

    Args:
        hits: How many photographs have the property, 0 to `count`.
        count: The number of photographs, 1 or more.

    Returns:
        The lower and the upper end, in [0, 1].
    """
    z2 = NormalDist().inv_cdf(0.975) ** 2
    middle = (hits + z2 / 2) / (count + z2)
    half = math.sqrt(z2 * (hits * (count - hits) / count + z2 / 4)) / (count + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(confidence: torch.Tensor, is_correct: torch.Tensor) -> float:
    """
    The expected calibration error: the mean difference between probability and accuracy, over 15 bins of equal width
    (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

    Args:
        confidence: Probability of the predicted class `(n,)`, float64, in [0, 1].
        is_correct: Whether that is the true class `(n,)`, bool.

    Returns:
        A value in [0, 1].
    """
    # Bins are open below and closed above
    bins = torch.bucketize(confidence, torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64)[1:])
    gaps = is_correct.double() - confidence
    return math.fsum(abs(math.fsum(gaps[bins == b].tolist())) for b in bins.unique()) / len(confidence)


def class_counts(predictions: Predictions) -> dict[int, tuple[int, int]]:
    """For each class that occurs, by its label: its number of photographs, and how many of them are classified
    correctly."""
    images = Counter(predictions.labels.tolist())
    correct = Counter(predictions.labels[predictions.is_correct].tolist())
    return {label: (count, correct[label]) for label, count in images.items()}
