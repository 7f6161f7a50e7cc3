"""Training to the end that users want: a checkpoint with its model card, on the Hub if they ask for it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data.splits import Splits
from ..modeling import PromptCamForImageClassification
from ..training.options import TrainingOptions, load_run_options
from ..training.trainer import PromptCamTrainer
from .hub import check_can_push, push
from .model_card import write_model_card


class PushError(OSError):
    """The training is complete, but its result could not be pushed."""


def train(
    options: TrainingOptions,
    output_dir: str | os.PathLike,
    splits: datasets.DatasetDict | Splits | None = None,
    model: PromptCamForImageClassification | None = None,
    *,
    device: str | int | torch.device | None = None,
    features_dir: str | os.PathLike | None = None,
    on_step: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """
    Train Prompt-CAM with a [`PromptCamTrainer`][promptcam_hf.PromptCamTrainer], write the model card, and push the
    result to `options.push_to_hub`, if that is set. Whether it can be pushed is checked before training.

    Args:
        options: What to train and how.
        output_dir: New or empty folder.
        splits, model, device, features_dir, on_step: As for `PromptCamTrainer`.

    Returns:
        The evaluation of the last checkpoint: `epoch`, `step`, `train_loss` (mean over the epoch), and the metrics of
        the evaluation split: see `prediction.metrics`.

    Raises:
        ValueError: If options, photographs and model do not fit each other, `output_dir` is not empty, or the result
            could not be pushed.
        OSError: If something cannot be read or written. A `PushError` if only pushing failed, after training.
        FloatingPointError: If the loss stops being finite.

    Example:

    ```python
    >>> from promptcam_hf import TrainingOptions, train

    >>> train(TrainingOptions(data="photos", backbone="facebook/dino-vitb16"), "runs/orioles")["accuracy"]
    ```
    """
    trainer = PromptCamTrainer(
        options, output_dir, splits, model, device=device, features_dir=features_dir, on_step=on_step
    )
    _check_can_push(options, model)
    result = trainer.train()
    _share(trainer)
    return result


def resume(
    output_dir: str | os.PathLike,
    splits: datasets.DatasetDict | Splits | None = None,
    model: PromptCamForImageClassification | None = None,
    *,
    device: str | int | torch.device | None = None,
    features_dir: str | os.PathLike | None = None,
    on_step: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """
    Go on with an interrupted run of `train` or `PromptCamTrainer` from its newest state, with its own options. On a
    CPU, with as many processes and threads as before, it ends with the same weights, bit by bit, as an uninterrupted
    run.

    Args:
        output_dir: Folder of the run.
        splits, model, features_dir, on_step: As for `PromptCamTrainer`: those that the run began with, if any.
        device: As for `PromptCamTrainer`; may be another than the run began on.

    Returns:
        As `train`.

    Raises:
        ValueError: If there is no run in the folder, or photographs or model are not those it began with.
        OSError, FloatingPointError: As `train`.
    """
    options = load_run_options(output_dir)
    trainer = PromptCamTrainer(
        options, output_dir, splits, model, device=device, features_dir=features_dir, on_step=on_step
    )
    _check_can_push(options, model)
    result = trainer.resume()
    _share(trainer)
    return result


def _check_can_push(options: TrainingOptions, model: PromptCamForImageClassification | None) -> None:
    """So that a long training does not end in a missing token."""
    if options.push_to_hub is None:
        return
    check_can_push(options.push_to_hub)
    backbone = options.backbone if model is None else model.config.backbone
    if options.prompts_only and backbone is not None and Path(backbone).exists():
        raise ValueError(
            f"prompts_only with push_to_hub: others cannot fetch the backbone from the folder {backbone}; push it "
            "first and train on its id, or leave prompts_only out."
        )


def _share(trainer: PromptCamTrainer) -> None:
    """Write the model card and push, on the main process."""
    if not trainer.accelerator.is_main_process:
        return
    folder, options = trainer.output_dir, trainer.options
    write_model_card(folder, license=options.license)
    if options.push_to_hub is None:
        return
    try:
        address = push(folder, options.push_to_hub, private=options.private or None)
    except (ValueError, OSError) as error:
        raise PushError(
            f"The training is complete, in {folder}, but could not be pushed: {error} Then: promptcam push {folder} "
            f"{options.push_to_hub}"
        ) from None
    print(f"Pushed: {address}")
