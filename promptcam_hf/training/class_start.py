"""Where class prompts start: at the mean [CLS] state of their class, near the images from the first step on, so that no
random start needs luck."""

from collections.abc import Callable
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
    prompts enter, in the frozen backbone without prompts. Where a backbone has no [CLS], the mean of its patches takes
    its place. The prompt of a class without images stays as it is. Costs one pass over the images.

    If class prompts enter at layer 1, [CLS] is the same for all images, and so all class prompts start alike.

    Args:
        model: The model, on the accelerator's device.
        images: Items with `labels`, and `pixel_values` `(3, H, W)` or `features` as `frozen_features` returns them.
        rows: The keys of the items to use.
        normalise: Applied to batches of `pixel_values` first, if they are not normalised yet.
        num_workers: Worker processes that load images, for each process.
        accelerator: Its processes share the work. Default: this process does it alone.
    """
    process, num_processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        Subset(images, rows[process::num_processes]),
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        generator=torch.Generator(),  # without one it would draw from the global generator
    )
    layer, has_cls = model.config.class_prompt_layer, model.patch_dropout.num_prefix_tokens > 0
    prompts = model.class_prompts
    sums = torch.zeros(prompts.shape, dtype=torch.float64)
    counts = torch.zeros(len(prompts), 1, dtype=torch.float64)
    was_training = model.training
    model.eval()
    for batch in tqdm(loader, desc="class means", unit="batch", disable=process != 0):
        features = batch["features"].to(prompts.device) if "features" in batch else None
        if features is None:
            pixel_values = batch["pixel_values"].to(prompts.device)
            features = model.frozen_features(pixel_values if normalise is None else normalise(pixel_values))
        tokens = model.states_without_prompts(layer, features)  # (B, S, D)
        states = tokens[:, 0] if has_cls else tokens.mean(dim=1)
        sums.index_add_(0, batch["labels"], states.cpu().double())
        counts.index_add_(0, batch["labels"], counts.new_ones(len(states), 1))
    model.train(was_training)
    if num_processes > 1 and accelerator is not None:
        sums, counts = (accelerator.reduce(value.float().to(prompts.device)).cpu() for value in (sums, counts))
    prompts.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), prompts.cpu()))
