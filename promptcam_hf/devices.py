"""Devices and cores of this machine."""

import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list


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


def number_of_workers(given: int | None = None) -> int:
    """How many processes or threads read photographs: the given number; if there is none, one per core, at most 8."""
    return min(8, os.cpu_count() or 1) if given is None else given


def fast_precision(device: torch.device) -> str:
    """The mixed precision in which a device trains fastest: `"bf16"` where it is known to multiply bfloat16 faster than
    float32 (CUDA from Ampere on; x86 CPUs with AVX-512 BF16 or AMX), otherwise `"no"`."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        known: Any = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch do not tell
        return "bf16" if known.get("avx512_bf16") or known.get("amx_bf16") else "no"
    return "no"


def accelerator_on(device: str | int | torch.device | None, **options: Any) -> Accelerator:
    """
    What distributes work over devices and processes.

    Args:
        device: As for `as_device`; the only one to work on. Default: the GPU, or those of `accelerate launch`, if there
            are any.
        options: Further arguments of `Accelerator`. Mixed precision has to be asked for here: what is given to
            `accelerate launch` does not count, and work without it, such as evaluation, leaves it as it is.
            `"fastest"` is the `fast_precision` of the main process's device.

    Raises:
        ValueError: If this machine has no such device, each process has a GPU of its own, or this process has already
            begun to work on another kind of device.
    """
    chosen = as_device(device)
    if chosen is not None and chosen.index is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"device={device}: each process takes a device of its own; leave this option out.")
        torch.accelerator.set_device_index(chosen.index)
    on_cpu = chosen is not None and chosen.type == "cpu"
    if options.get("mixed_precision") == "fastest":
        (options["mixed_precision"],) = broadcast_object_list([fast_precision(PartialState(cpu=on_cpu).device)])
    begun = AcceleratorState._shared_state.get("_mixed_precision")  # it outlives every `Accelerator`
    options["mixed_precision"] = options.get("mixed_precision") or begun or "no"
    if begun not in (None, options["mixed_precision"]):  # of an earlier run, or of evaluation
        AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=on_cpu, **options)
    if chosen is not None and accelerator.device.type != chosen.type:
        raise ValueError(f"device={device}: this process already works on {accelerator.device}; start a new one.")
    return accelerator
