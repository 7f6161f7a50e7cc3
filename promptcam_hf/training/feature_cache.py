"""A cache of the features that enter the first prompted layer, so that training runs only the prompted layers.

The features depend on the frozen layers, the photographs and their augmentation, and not on anything that is trained.
So many small experiments, with other learning rates, prompts or classes of the same photographs, can share them.
"""

import hashlib
import io
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..files import writing_to
from ..messages import counted
from ..modeling import PromptCamForImageClassification
from ..version import __version__
from .views import Views, seeded

BATCH_SIZE = 16
DEFAULT_VIEWS = (4, 2)  # the most that are affordable
CHECKSUM = np.dtype(np.uint32)


def features_folder() -> Path:
    """The folder of the cache. Its files can be deleted whenever no training runs."""
    return Path(constants.HF_HOME) / "promptcam" / "features"


def check_has_frozen_layers(model: PromptCamForImageClassification) -> None:
    """
    Check that a model has features to cache.

    Raises:
        ValueError: If its first layer has prompts, or its backbone is trained.
    """
    if model.config.first_prompted_layer == 1:
        raise ValueError(
            "cache_features: every layer has prompts, so there are no features to cache; expected num_prompted_layers "
            f"less than {model.config.backbone_config.num_hidden_layers}."
        )
    if any(weight.requires_grad for weight in model.backbone.parameters()):
        raise ValueError("cache_features: the backbone is trained, so its features change; expected a frozen one.")


def affordable_views(
    model: PromptCamForImageClassification, num_images: int, image_size: int, epochs: int, folder: Path | None = None
) -> int:
    """
    How many views to cache where the user does not say: four or else two, if training has frozen layers to save, goes
    through the images more often than that, and the cache can be written to and takes no more than a tenth of the
    disk's free space; otherwise none.

    Args:
        model: The model.
        num_images: Number of training images.
        image_size: Side of their views, in pixels.
        epochs: Passes over them.
        folder: Folder of the cache. Default: `features_folder()`.
    """
    try:
        check_has_frozen_layers(model)
    except ValueError:
        return 0
    folder = folder or features_folder()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return 0
    num_tokens = model.num_prefix_tokens + math.prod(model.grid((image_size, image_size)))
    free = shutil.disk_usage(there).free
    sizes = {views: _size((views, num_images, num_tokens, model.config.hidden_size)) for views in DEFAULT_VIEWS}
    return next((views for views, size in sizes.items() if epochs > views and 10 * size <= free), 0)


class CachedFeatures(Dataset):
    """
    Rows `{"features": (prefix + patches, hidden_size) float32, "labels", "index"}` by (epoch, index): the features of
    the view that epoch `epoch % num_views` sees. In float32, with as many views as epochs, training is the same as
    without a cache, except that drop path in the frozen layers draws other random numbers.

    The file is memory-mapped, and named by a hash of everything that it depends on: if any of it changes, a new file is
    built. Its content does not depend on the number of processes. After the features it has a checksum (CRC-32) of each
    view's, which is verified when they are read. A file that was cut off or has a damaged header is built again.

    Args:
        model: The model whose frozen layers compute the features, on the accelerator's device.
        views: The photographs, augmented or plain.
        num_views: Number of views to cache of each photograph.
        num_workers: Worker processes that decode photographs while the cache is built.
        accelerator: Its processes share the work.
        folder: Folder of the cache. Default: `features_folder()`.

    Raises:
        OSError: If the disk is full, or when features are read that were damaged since they were written.
    """

    def __init__(
        self,
        model: PromptCamForImageClassification,
        views: Views,
        num_views: int,
        num_workers: int,
        accelerator: Accelerator,
        folder: Path | None = None,
    ):
        self.num_views = num_views
        self.num_images = len(views)
        self.labels = views.split["label"][:]
        file = (folder or features_folder()) / f"{_key(model, views, num_views, accelerator.mixed_precision)}.npy"
        (is_missing,) = broadcast_object_list([_open(file) is None])  # the same answer on every process
        if is_missing:
            # If several runs need the same features, one builds them and the others wait
            lock = WeakFileLock(file.with_suffix(".lock")) if accelerator.is_main_process else nullcontext()
            with writing_to(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
                with lock:
                    accelerator.wait_for_everyone()
                    if _open(file) is None:
                        _build(file, model, views, num_views, num_workers, accelerator)
                    accelerator.wait_for_everyone()
        opened = _open(file)
        if opened is None:
            raise OSError(f"cache_features: {file}: cannot be read although it was just built; is the disk damaged?")
        self.file, (self.features, self.checksums) = file, opened

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        view = epoch % self.num_views
        features = self.features[view, index].copy()
        if zlib.crc32(features) != self.checksums[view, index]:
            raise OSError(
                f"cache_features: {self.file} was damaged after it was written; remove it, and it is built again."
            )
        return {"features": torch.from_numpy(features), "labels": self.labels[index], "index": index}


def _open(file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Features (num_views, images, tokens, D) and checksums (num_views, images) of a file of the cache, both
    memory-mapped; None if it does not exist, was cut off, or has a damaged header."""
    try:
        features = np.load(file, mmap_mode="r")
        offset = features.offset + features.nbytes
        checksums = np.memmap(file, CHECKSUM, "r", offset, features.shape[:2])
        is_whole = file.stat().st_size == offset + checksums.nbytes
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError, AttributeError):
        return None
    return (features, checksums) if is_whole and features.dtype == np.float32 and features.ndim == 4 else None


def _key(model: PromptCamForImageClassification, views: Views, num_views: int, precision: str) -> str:
    """A hash of the frozen layers, drop path, photographs, augmentation, seed, number of views, precision and
    release."""
    config = model.config
    digest = hashlib.blake2b(digest_size=16)
    precision = precision if views.training else "no"  # evaluation is in float32
    facts = (config.first_prompted_layer, config.drop_path_rate, config.backbone_config.to_json_string(), precision)
    digest.update(repr((__version__, *facts, num_views, views.facts())).encode())
    for name, weight in model.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for image in views.split["image"]:
        path, content = image.get("path"), image.get("bytes")
        if content is not None:
            digest.update(content)
        else:
            status = os.stat(path)
            digest.update(repr((os.path.abspath(path), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


@torch.no_grad()
def _build(
    file: Path,
    model: PromptCamForImageClassification,
    views: Views,
    num_views: int,
    num_workers: int,
    accelerator: Accelerator,
) -> None:
    """Build the cache: each process writes its batches to the same file, which gets its name once complete."""
    was_training = model.training
    model.train(views.training)  # for drop path
    rows = [(view, index) for view in range(num_views) for index in range(len(views))]
    batches = [rows[first : first + BATCH_SIZE] for first in range(0, len(rows), BATCH_SIZE)]
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(views, batch_sampler=batches, num_workers=num_workers, generator=torch.Generator())

    def features(pixel_values: torch.Tensor) -> np.ndarray:
        with accelerator.autocast() if views.training else nullcontext():  # evaluation is in float32
            return model.frozen_features(views.normalise(pixel_values.to(accelerator.device))).float().cpu().numpy()

    shape, seconds = _measure(features, views)
    shape = (num_views, len(views), *shape)
    if accelerator.is_main_process:
        _announce(file, shape, len(rows) * seconds / accelerator.num_processes)
    header, draft = _header(shape), file.with_suffix(".part")
    try:
        if accelerator.is_main_process:
            draft.unlink(missing_ok=True)  # left by a killed process
            _check_room(draft.parent, shape)
            draft.write_bytes(header)
        accelerator.wait_for_everyone()
        progress = tqdm(loader, desc="features", unit="batch", disable=not accelerator.is_main_process)
        # Not through a memory map: a full disk would kill the process without a message
        with open(draft, "r+b") as content:
            for (first, *_), batch in zip(batches, progress, strict=True):
                torch.manual_seed(seeded(views.seed, *first, 0).initial_seed())  # for drop path
                computed = features(batch["pixel_values"])
                view, index = first
                place = view * len(views) + index
                content.seek(len(header) + place * computed[0].nbytes)
                content.write(computed.tobytes())
                content.seek(len(header) + len(rows) * computed[0].nbytes + place * CHECKSUM.itemsize)
                content.write(np.array([zlib.crc32(image) for image in computed], CHECKSUM).tobytes())
            content.flush()
            os.fsync(content.fileno())
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            os.replace(draft, file)
    except OSError as error:
        if error.strerror is None:  # one of ours, already complete
            raise
        raise OSError(f"cache_features: {error.filename or draft}: {error.strerror}.") from None
    finally:
        model.train(was_training)
        if accelerator.is_main_process:
            draft.unlink(missing_ok=True)


def _announce(file: Path, shape: tuple[int, ...], seconds: float) -> None:
    """Print how much disk space and time a cache of this shape takes, and where it is."""
    minutes = round(seconds / 60)
    price = f"about {minutes} min" if minutes else "less than a minute"
    tqdm.write(
        f"Caching features of {counted(shape[0], 'view')} of {counted(shape[1], 'photograph')}: "
        f"{_size(shape) / 1e9:.2f} GB in {file.parent}, {price}"
    )


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file of float32."""
    header = io.BytesIO()
    array = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, array)
    return header.getvalue()


def _measure(features: Callable[[torch.Tensor], np.ndarray], views: Views) -> tuple[tuple[int, ...], float]:
    """The shape (prefix + patches, hidden_size) of a photograph's features, and the seconds they take in a batch."""
    features(views[0, 0]["pixel_values"][None])  # the first pass takes longer
    started = time.perf_counter()
    batch = torch.stack([views[0, index]["pixel_values"] for index in range(min(BATCH_SIZE, len(views)))])
    found = features(batch)
    return found.shape[1:], (time.perf_counter() - started) / len(batch)


def _size(shape: tuple[int, ...]) -> int:
    """Bytes that features of this shape take."""
    return 4 * int(np.prod(shape))


def _check_room(folder: Path, shape: tuple[int, ...]) -> None:
    size, free = _size(shape), shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            f"cache_features: {counted(shape[0], 'view')} of {counted(shape[1], 'image')} take {size / 1e9:.1f} GB; "
            f"{folder} has {free / 1e9:.1f} GB free. Cache fewer views, or set HF_HOME to a folder on a larger disk."
        )
