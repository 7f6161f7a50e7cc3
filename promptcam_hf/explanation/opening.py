"""Opening a checkpoint on a device."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import pipeline

from ..messages import first_line
from ..modeling import PromptCamPipeline
from ..modeling.configuration_promptcam import TASK


def open_pipeline(
    model: str | os.PathLike, device: str | int | torch.device | None = None, **options: Any
) -> PromptCamPipeline:
    """
    Open a checkpoint with `pipeline("prompt-cam")`.

    Args:
        model: Checkpoint folder or Hub id.
        device: As for `as_device`.
        options: Further arguments of the pipeline.

    Raises:
        ValueError: If the checkpoint cannot be opened or is no Prompt-CAM model, or an option does not fit it.
    """
    task: Any = TASK  # `pipeline` is typed for transformers' own tasks
    name = os.fspath(model)
    if not os.path.exists(name) and (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ValueError(f"model={name}: no such folder; expected a checkpoint folder or a Hub id such as org/name.")
    try:
        return pipeline(task, model=name, device=as_device(device), **options)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = first_line(error)
    except ValueError as error:
        causes = re.findall(r"^\w+Error: (.+)", str(error), re.MULTILINE)
        if not causes:
            raise
        reason = causes[-1]  # transformers quotes whole tracebacks
        if "ignore_mismatched_sizes" in reason:
            reason = "the shapes of its weights are not those of its config.json"
    raise ValueError(f"model={model}: cannot be opened ({reason.rstrip('.')}).")


def as_device(device: str | int | torch.device | None) -> torch.device | None:
    """
    A device of this machine.

    Args:
        device: Such as `"cpu"`, `"cuda"`, `"cuda:1"`, or the number of a GPU. A `torch.device` is not checked.

    Returns:
        The device; None if none was given.

    Raises:
        ValueError: If this machine has no such device.
    """
    if device is None or isinstance(device, torch.device):
        return device
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if gpu is None else torch.accelerator.device_count()
    name = f"{gpu.type if gpu else 'cuda'}:{device}" if str(device).isdigit() else str(device)
    known = ["cpu"] if gpu is None else ["cpu", gpu.type, *(f"{gpu.type}:{number}" for number in range(count))]
    if name not in known:
        here = "no GPU that torch can use" if gpu is None else f"{count} GPU{'s' * (count > 1)}"
        raise ValueError(f"device={device}: this machine has {here}; expected {' or '.join(known[:3])}.")
    return torch.device(name)
