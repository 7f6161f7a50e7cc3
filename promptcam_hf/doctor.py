"""What a bug report should say about the machine: versions, devices, caches and disks."""

import getpass
import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# The last ones are optional
_PACKAGES = (
    "torch", "transformers", "accelerate", "datasets", "huggingface_hub", "safetensors", "pillow", "numpy", "pydantic",
    "typer", "pillow-heif", "gradio",
)  # fmt: skip
_SETTINGS = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTORCH_ENABLE_MPS_FALLBACK",
)


def examine() -> dict[str, str]:
    """
    Examine the machine and the installed packages.

    Returns:
        Findings by name, in the order in which `promptcam doctor` prints them. They contain no token, and neither the
        user's name nor the home folder: both are replaced in paths.

    Example:

    >>> from promptcam_hf import examine
    >>> examine()["promptcam-hf"]
    '0.1.0'
    """
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_CACHE

    from .version import __version__

    findings = {"promptcam-hf": __version__, "python": platform.python_version()}
    # platform.platform() is no more precise
    findings["platform"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    findings |= {name: _installed(name) for name in _PACKAGES}
    findings |= {"processor": f"{os.cpu_count()} cores", "accelerators": _accelerators()}
    folders = {
        "Hub cache": Path(HF_HUB_CACHE),
        "temporary files": Path(tempfile.gettempdir()),
        "this folder": Path.cwd(),
    }
    findings |= {name: _folder(folder) for name, folder in folders.items()}
    findings["Hub token"] = "set" if get_token() else "none (needed to push, and for private repositories)"
    findings |= {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    return findings


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _accelerators() -> str:
    """Names and memory of the GPUs, as torch sees them."""
    import torch

    if not torch.accelerator.is_available():
        return "none that torch can use"
    if not torch.cuda.is_available():
        return str(torch.accelerator.current_accelerator())
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)


def _folder(folder: Path) -> str:
    """Where it is, the free space there, and whether it can be written to; of a missing folder, its nearest parent."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free / 2**30
    access = "writable" if os.access(place, os.W_OK) else "NOT writable"
    missing = "" if folder.exists() else ", not there yet"
    return f"{_without_names(folder)} ({free:.1f} GiB free, {access}{missing})"


def _without_names(folder: Path) -> str:
    """The folder with `~` for the home folder, and `<user>` wherever else the user's name occurs."""
    path = folder.absolute()
    short = Path("~") / path.relative_to(Path.home()) if path.is_relative_to(Path.home()) else path
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(short)
    return str(Path(*("<user>" if part == user else part for part in short.parts)))
