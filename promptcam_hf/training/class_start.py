"""Where prompts start: at the mean [CLS] states of classes, near the images from the first step on, so that no random
start needs luck."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..modeling import PromptCamForImageClassification

BATCH_SIZE = 16


@torch.no_grad()
def start_at_class_means(
    model: PromptCamForImageClassification,
    images: Dataset,
    rows: list[Any],
    *,
    normalise: Callable[[torch.Tensor], torch.Tensor] | None = None,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
) -> None:
    """
    Set each class prompt to the mean state of [CLS] over the images of its class, as it enters the layer in which class
    prompts enter, in the frozen backbone without prompts. Class-agnostic prompts start likewise, at means of classes as
    they enter their layer: as many classes as there are prompts, evenly chosen. Costs one pass over the images.

    Where a backbone has no [CLS], the mean of its patches takes its place. Some prompts stay as they are, since prompts
    that start alike would stay alike: class-agnostic prompts of layer 1, which [CLS] enters alike for all images, and
    those beyond the number of classes. So do prompts of a class without images. Class prompts of layer 1 start alike.

    Args:
        model: The model, on the accelerator's device.
        images: Items with `labels`, and `pixel_values` `(3, H, W)` or `features` as `frozen_features` returns them.
        rows: The keys of the items to use.
        normalise: Applied to batches of `pixel_values` first, if they are not normalised yet.
        num_workers: Worker processes that load images, for each process.
        accelerator: Its processes share the work, in its precision. Default: this process does it alone, in float32.
    """
    process, num_processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        Subset(images, rows[process::num_processes]),
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        generator=torch.Generator(),  # without one it would draw from the global generator
    )
    config: Any = model.config
    has_cls = model.num_prefix_tokens > 0
    layers = range(config.first_prompted_layer, config.class_prompt_layer + 1)
    sums = torch.zeros(len(layers), config.num_labels, config.hidden_size, dtype=torch.float64)
    counts = torch.zeros(config.num_labels, dtype=torch.float64)
    device, was_training = model.class_prompts.device, model.training
    model.eval()
    for batch in tqdm(loader, desc="class means", unit="batch", disable=process != 0):
        features = batch["features"].to(device) if "features" in batch else None
        if features is None:
            pixel_values = batch["pixel_values"].to(device)
            with nullcontext() if accelerator is None else accelerator.autocast():  # as for cached features
                features = model.frozen_features(pixel_values if normalise is None else normalise(pixel_values))
        tokens = model.states_without_prompts(features)  # of each layer, (B, S, D)
        states = torch.stack([entering[:, 0] if has_cls else entering.mean(dim=1) for entering in tokens])
        sums.index_add_(1, batch["labels"], states.cpu().double())
        counts.index_add_(0, batch["labels"], counts.new_ones(states.shape[1]))
    model.train(was_training)
    if num_processes > 1 and accelerator is not None:
        sums, counts = (accelerator.reduce(value.float().to(device)).cpu() for value in (sums, counts))
    means = (sums / counts.clamp_min(1)[:, None]).to(model.class_prompts)  # (layers, C, D)
    has_images = (counts > 0)[:, None].to(device)
    model.class_prompts.copy_(torch.where(has_images, means[-1], model.class_prompts))
    if model.agnostic_prompts is not None:
        for layer, prompts, mean in zip(layers[:-1], model.agnostic_prompts, means[:-1], strict=True):
            if layer > 1:
                _start_at_some(prompts, mean, has_images)


def _start_at_some(prompts: torch.Tensor, means: torch.Tensor, has_images: torch.Tensor) -> None:
    """Set prompts (P, D) to means (C, D) of classes that are evenly chosen, each at most once."""
    count = min(len(prompts), len(means))
    classes = torch.arange(count, device=means.device) * len(means) // count
    prompts[:count] = torch.where(has_images[classes], means[classes], prompts[:count])
