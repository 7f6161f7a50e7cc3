"""Devices of this machine."""

import torch


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
