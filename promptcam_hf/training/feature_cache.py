"""Features that enter the first prompted layer, kept on disk: training then runs the prompted layers alone.

They depend on the frozen layers, on the photographs and on how these are augmented, and on nothing that is trained. So
many small experiments (other learning rates, prompts, classes of the same photographs) can share them.
"""

import hashlib
import io
import os
import shutil
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

from ..modeling import PromptCamForImageClassification
from ..version import __version__
from .views import Views, seeded

BATCH_SIZE = 16


def features_folder() -> Path:
    """Where features are kept; what is in it can be deleted at any time that nothing trains."""
    return Path(constants.HF_HOME) / "promptcam" / "features"


def check_has_frozen_layers(model: PromptCamForImageClassification) -> None:
    """
    Raises:
        ValueError: If the model has prompts in its first layer already, so that there are no features to keep.
    """
    if model.config.first_prompted_layer == 1:
        raise ValueError(
            "cache_features: every layer has prompts, so that there is nothing to keep; expected num_prompted_layers "
            f"of less than {model.config.backbone_config.num_hidden_layers}."
        )


class CachedFeatures(Dataset):
    """
    Rows `{"features": (prefix + patches, hidden_size) float32, "labels", "index"}` by (epoch, index): those of the view
    that epoch `epoch % num_views` sees. With as many views as epochs, nothing differs from training without, but that
    drop path in the frozen layers is drawn from other random numbers.

    The file is memory-mapped, and named by a hash of all that it depends on: if any of that changes, another is built.
    What is in it does not depend on the number of processes.

    Args:
        model: Its frozen layers make the features; on the device where that is to happen.
        views: The photographs, augmented.
        num_views: Views of each photograph to keep.
        num_workers: Processes that decode photographs while the features are built.
        accelerator: Its processes share the work.
        folder: Where features are kept. Default: `features_folder()`.

    Raises:
        OSError: If there is too little room.
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
        file = (folder or features_folder()) / f"{_key(model, views, num_views)}.npy"
        (is_missing,) = broadcast_object_list([not file.exists()])  # the same answer on every process
        if is_missing:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Of several runs that need the same features, one builds them, and the others wait
            with WeakFileLock(file.with_suffix(".lock")) if accelerator.is_main_process else nullcontext():
                accelerator.wait_for_everyone()
                if not file.exists():
                    _build(file, model, views, num_views, num_workers, accelerator)
                accelerator.wait_for_everyone()
        self.features = np.load(file, mmap_mode="r")  # (num_views, images, tokens, D)

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        features = torch.from_numpy(self.features[epoch % self.num_views, index].copy())
        return {"features": features, "labels": self.labels[index], "index": index}


def _key(model: PromptCamForImageClassification, views: Views, num_views: int) -> str:
    """A hash of frozen layers, drop path, photographs, augmentation, seed, number of views, and release."""
    config = model.config
    digest = hashlib.blake2b(digest_size=16)
    # Every setting of the augmentation, exactly: the `repr` of a tensor is rounded
    transform = {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in vars(views.transform).items()
    }
    facts = (config.first_prompted_layer, config.drop_path_rate, config.backbone_config.to_json_string())
    digest.update(repr((__version__, *facts, views.seed, num_views, sorted(transform.items()))).encode())
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
    """Every process makes its share of the batches, in one file that gets its name when it is complete."""
    model.train()  # with drop path, as in training
    num_images = len(views)
    rows = [(view, index) for view in range(num_views) for index in range(num_images)]
    batches = [rows[first : first + BATCH_SIZE] for first in range(0, len(rows), BATCH_SIZE)]
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(views, batch_sampler=batches, num_workers=num_workers, generator=torch.Generator())

    def features(pixel_values: torch.Tensor) -> np.ndarray:
        return (
            model.frozen_features(views.transform.normalise(pixel_values.to(accelerator.device))).float().cpu().numpy()
        )

    shape = (num_views, num_images, *features(views[0, 0]["pixel_values"][None]).shape[1:])
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    )
    draft = file.with_suffix(".part")
    try:
        if accelerator.is_main_process:
            draft.unlink(missing_ok=True)  # of a process that was killed
            _check_room(draft.parent, shape)
            draft.write_bytes(header.getvalue())
        accelerator.wait_for_everyone()
        progress = tqdm(loader, desc="features", unit="batch", disable=not accelerator.is_main_process)
        # Not through a memory map, in which a full disk ends the process without a word
        with open(draft, "r+b") as content:
            for (first, *_), batch in zip(batches, progress, strict=True):
                torch.manual_seed(seeded(views.seed, *first, 0).initial_seed())  # of drop path
                made = features(batch["pixel_values"])
                view, index = first
                content.seek(len(header.getvalue()) + (view * num_images + index) * made[0].nbytes)
                content.write(made.tobytes())
            content.flush()
            os.fsync(content.fileno())
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            os.replace(draft, file)
    except OSError as error:
        if error.strerror is None:  # one of ours, which says it all
            raise
        raise OSError(f"cache_features: {error.filename or draft}: {error.strerror}.") from None
    finally:
        if accelerator.is_main_process:
            draft.unlink(missing_ok=True)


def _check_room(folder: Path, shape: tuple[int, ...]) -> None:
    size, free = 4 * int(np.prod(shape)), shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            f"cache_features: {shape[0]} views of {shape[1]} images take {size / 1e9:.1f} GB, and {folder} has "
            f"{free / 1e9:.1f} GB free; use fewer views, or set HF_HOME to a larger disk."
        )
