"""The loss, the optimiser, its learning rate, and the largest micro-batch that fits into memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.nn.functional import cross_entropy, softplus

from ..modeling import PromptCamForImageClassification
from .options import TrainingOptions

FINAL_LEARNING_RATE = 1e-6
MOMENTUM = 0.9


def learning_rates(epochs: int, peak: float, warmup_epochs: int) -> Iterator[float]:
    """The learning rate of each epoch, as in the original code: linear from 0 up to `peak` over the warm-up, then on a
    cosine over all epochs down to 1e-6."""
    for epoch in range(1, epochs + 1):
        if epoch <= warmup_epochs:
            yield peak * epoch / warmup_epochs
        else:
            cosine = (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
            yield FINAL_LEARNING_RATE + (peak - FINAL_LEARNING_RATE) * cosine


def new_optimizer(options: TrainingOptions, weights: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW, as the resolved options say."""
    settings: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "adamw":
        return torch.optim.AdamW(weights, **settings)
    return torch.optim.SGD(weights, momentum=MOMENTUM, **settings)


def new_loss(
    options: TrainingOptions, labels: torch.Tensor, num_classes: int
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """
    The loss of logits `(B, C)`, labels `(B,)` and, if given, the labels' blurred logits `(B,)`: mean cross-entropy, as
    the options say with label smoothing, and with class weights. These are inversely proportional to the number of
    images, and 1 on average over all images, so that the mean over a batch does not depend on how the batch is divided.

    A blurred logit is that of one more wrong answer, the true class's prompt with all its heads blurred. In the softmax
    over C + 1 answers, the cross-entropy grows by log(1 + exp(blurred logit) / sum of exp(logits)).

    Args:
        options: `label_smoothing` and `class_weights` are used.
        labels: The class of each training image, `(n,)`.
        num_classes: Number of classes C.
    """
    weights = None
    if options.class_weights == "balanced":
        counts = labels.bincount(minlength=num_classes)
        weights = len(labels) / ((counts > 0).sum() * counts.clamp_min(1)).float()

    def loss(logits: torch.Tensor, labels: torch.Tensor, blurred: torch.Tensor | None = None) -> torch.Tensor:
        weight = None if weights is None else weights.to(logits)
        total = cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=options.label_smoothing)
        if blurred is not None:
            more = softplus(blurred - logits.logsumexp(dim=-1))
            total = total + (more if weight is None else more * weight[labels]).sum()
        return total / len(labels)

    return loss


def largest_micro_batch(
    model: PromptCamForImageClassification, image_size: int, batch_size: int, accelerator: Accelerator
) -> int:
    """
    The most images whose forward and backward pass fit into memory on every device.

    Args:
        model: The model, on the accelerator's device. Its gradients are discarded.
        image_size: Side of the images, in pixels.
        batch_size: Images of a step on each device. Only divisors of it are tried, the largest first.
        accelerator: For its precision, device and processes.

    Raises:
        ValueError: If not even one image fits.
    """
    model.train()
    for size in (size for size in range(batch_size, 0, -1) if batch_size % size == 0):
        fits = True
        try:
            _forward_and_backward(model, image_size, size, accelerator)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            fits = False
        model.zero_grad()
        if fits:
            return min(gather_object([size]))
        clear_device_cache(garbage_collection=True)  # after the error, which holds tensors, is gone
    raise ValueError("Not even one image fits into memory; try --gradient-checkpointing, or a smaller --image-size.")


def _forward_and_backward(
    model: PromptCamForImageClassification, image_size: int, batch_size: int, accelerator: Accelerator
) -> None:
    """A function of its own, so that no tensor outlives it, whether it fails or not."""
    pixels = torch.zeros(batch_size, 3, image_size, image_size, device=accelerator.device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=accelerator.device)
    with accelerator.autocast():
        output = model(pixels, labels, blurred_classes=labels)
        (output.loss + output.blurred_logits.sum()).backward()
