"""Features that enter the first prompted layer, kept on disk: training then runs the prompted layers alone.

They depend on the frozen layers, on the photographs and on how these are augmented, and on nothing that is trained. So
many small experiments (other learning rates, prompts, classes of the same photographs) can share them.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub.constants import HF_HOME
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .modeling import PromptCamForImageClassification
from .views import Views

FOLDER = Path(HF_HOME) / "promptcam" / "features"


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
    that epoch `epoch % num_views` sees. With as many views as epochs, nothing differs from training without.

    The file is memory-mapped, and named by a hash of all that it depends on: if any of that changes, another is built.

    Args:
        model: Its frozen layers make the features; on the device where that is to happen.
        views: The photographs, augmented.
        num_views: Views of each photograph to keep.
        num_workers: Processes that decode photographs while the features are built.
        accelerator: Its processes share the work.

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
        folder: Path = FOLDER,
    ):
        self.views = views
        self.num_views = num_views
        file = folder / f"{_key(model, views, num_views)}.npy"
        if not file.exists():
            _build(file, model, views, num_views, num_workers, accelerator)
        accelerator.wait_for_everyone()
        self.features = np.load(file, mmap_mode="r")  # (num_views, images, tokens, D)
        self.labels = views.split["label"]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        features = torch.from_numpy(self.features[epoch % self.num_views, index].copy())
        return {"features": features, "labels": self.labels[index], "index": index}


def _key(model: PromptCamForImageClassification, views: Views, num_views: int) -> str:
    """A hash of frozen layers, drop path, photographs, augmentation, seed and number of views."""
    config, transform = model.config, views.transform
    digest = hashlib.blake2b(digest_size=16)
    facts = (config.first_prompted_layer, config.drop_path_rate, config.backbone_config.to_json_string())
    digest.update(repr((*facts, views.seed, num_views, transform)).encode())
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
    """Every process makes its share of the rows, in one file that gets its name when it is complete."""
    model.train()  # with drop path, as in training
    items = [(view, index) for view in range(num_views) for index in range(len(views))]
    items = items[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(views, batch_size=16, sampler=items, num_workers=num_workers, generator=torch.Generator())
    draft = file.with_suffix(".part")
    features: np.memmap | None = None
    done = 0
    for batch in tqdm(loader, desc="features", unit="batch", disable=not accelerator.is_main_process):
        made = model.frozen_features(batch["pixel_values"].to(accelerator.device)).float().cpu().numpy()
        if features is None:
            shape = (num_views, len(views), *made.shape[1:])
            if accelerator.is_main_process:
                _make_room(draft, shape)
            accelerator.wait_for_everyone()
            features = np.lib.format.open_memmap(draft, mode="r+")
        for row, (view, index) in zip(made, items[done:], strict=False):
            features[view, index] = row
        done += len(made)
    if features is None:
        accelerator.wait_for_everyone()
    else:
        features.flush()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(draft, file)


def _make_room(draft: Path, shape: tuple[int, ...]) -> None:
    draft.parent.mkdir(parents=True, exist_ok=True)
    size, free = 4 * int(np.prod(shape)), shutil.disk_usage(draft.parent).free
    if size > free:
        raise OSError(
            f"cache_features: {shape[0]} views of {shape[1]} images take {size / 1e9:.1f} GB, and {draft.parent} has "
            f"{free / 1e9:.1f} GB free; use fewer views, or set HF_HOME to a larger disk."
        )
    np.lib.format.open_memmap(draft, mode="w+", dtype=np.float32, shape=shape)
