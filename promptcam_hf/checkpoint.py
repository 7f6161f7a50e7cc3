"""Checkpoints: writing them, and opening them with errors that say what is wrong."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import BaseImageProcessor, LlavaImageProcessorPil, ViTImageProcessorPil, pipeline

# `transformers.AutoImageProcessor` itself demands torchvision in older releases
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging

from .backbones import read_preprocessing
from .devices import as_device
from .files import write_files_atomically
from .messages import first_line, listed, reason_of
from .modeling import PromptCamConfig, PromptCamForImageClassification, PromptCamPipeline, handler
from .modeling.backbone_promptcam import load_config
from .modeling.configuration_promptcam import TASK
from .modeling.hub_promptcam import is_hub_id

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
REQUIREMENTS = "torch>=2.6\ntransformers>=5.10,<6\npillow\n"


def new_image_processor(
    image_size: int,
    backbone: str | os.PathLike | None = None,
    revision: str | None = None,
    keep_aspect: bool = False,
) -> ViTImageProcessorPil | LlavaImageProcessorPil:
    """
    The preprocessing of a new model: resize to `image_size` x `image_size` pixels, and normalise. Nothing is cropped,
    so that trait maps lie over the whole photograph.

    Args:
        image_size: Side in pixels.
        backbone: Hub id or folder of the backbone whose mean, standard deviation and resampling to take; see
            `read_preprocessing`. Default: 0.5, 0.5 and bilinear, as in the paper's code for all backbones.
        revision: Branch, tag or commit of the backbone's Hub repository.
        keep_aspect: Whether to pad photographs to a square first, with the mean colour. Default: they are squeezed.

    Raises:
        OSError: If the Hub cannot be reached.
    """
    preprocessing: dict[str, Any] = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": Image.Resampling.BILINEAR,
    }
    if backbone is not None:
        preprocessing |= read_preprocessing(backbone, revision)
    preprocessing["size"] = {"height": image_size, "width": image_size}
    if keep_aspect:  # the image processor of transformers that pads before it resizes
        return LlavaImageProcessorPil(do_pad=True, do_center_crop=False, **preprocessing)
    return ViTImageProcessorPil(**preprocessing)


def save_checkpoint(
    model: PromptCamForImageClassification,
    image_processor: BaseImageProcessor,
    output_dir: str | os.PathLike,
    prompts_only: bool | None = None,
) -> None:
    """
    Write everything that `from_pretrained` and `pipeline("prompt-cam")` need: weights, configuration, image processor,
    and the code for machines without this package; and, unless files of these names are there, what Inference Endpoints
    need: `handler.py` and `requirements.txt`. Every file is written atomically. Other files in the folder stay.

    Args:
        model: The model.
        image_processor: Its image processor.
        output_dir: Folder to write to. It is created if needed.
        prompts_only: Whether to leave out the backbone's weights; see the model's `save_pretrained`.

    Raises:
        ValueError: If `prompts_only`, and the model does not know where its backbone came from.
        OSError: If the folder cannot be written to.
    """
    with write_files_atomically(Path(output_dir)) as draft:
        try:
            with _quiet():
                model.save_pretrained(draft, prompts_only=prompts_only)
        except SafetensorError as error:  # this is how safetensors reports a full disk
            raise OSError(f"{output_dir}: cannot be written ({error}).") from None
        image_processor.save_pretrained(draft)
        for name, content in endpoint_files().items():
            if not (Path(output_dir) / name).exists():  # somebody's own stays
                (draft / name).write_text(content, encoding="utf-8")


def endpoint_files() -> dict[str, str]:
    """What Hugging Face Inference Endpoints read of a checkpoint, by file name: the code that answers requests, and the
    packages that it needs."""
    return {"handler.py": Path(handler.__file__).read_text(encoding="utf-8"), "requirements.txt": REQUIREMENTS}


def open_pipeline(
    model: str | os.PathLike,
    *,
    device: str | int | torch.device | None = None,
    backbone: str | os.PathLike | None = None,
    **options: Any,
) -> PromptCamPipeline:
    """
    Open a checkpoint with `pipeline("prompt-cam")`, but only if it is complete.

    Args:
        model: Checkpoint folder or Hub id.
        device: As for `as_device`. Default: a GPU if there is one.
        backbone: Hub id or folder of the backbone, for a checkpoint that holds only prompts and whose backbone has
            moved.
        options: Further arguments of the pipeline.

    Raises:
        ValueError: If the checkpoint or its backbone cannot be opened, is incomplete, damaged or no Prompt-CAM model,
            or an option does not fit it. The message is one line.
    """
    source, device = os.path.expanduser(os.fspath(model)), as_device(device)
    config = read_config(source)
    if os.path.isdir(source):
        check_weights(Path(source), config)
    loaded = _load_model(source, config, None if backbone is None else os.path.expanduser(os.fspath(backbone)))
    try:
        image_processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"model={source}: its preprocessor_config.json cannot be read ({first_line(error)})") from None
    task: Any = TASK  # `pipeline` is typed for transformers' own tasks
    return pipeline(task, model=loaded, image_processor=image_processor, device=device, **options)


def read_config(source: str | os.PathLike) -> PromptCamConfig:
    """
    The configuration of a checkpoint.

    Args:
        source: Checkpoint folder or Hub id.

    Raises:
        ValueError: If there is none, or that of another model.
    """
    folder, name = Path(source), os.fspath(source)
    if folder.exists() and not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "is not a folder"
        raise ValueError(f"{name} {found}; expected a checkpoint from `promptcam train` or `promptcam convert`.")
    if not folder.exists() and not is_hub_id(name):
        raise ValueError(f"{name}: no such folder, and no Hub id such as org/name; expected a checkpoint.")
    try:
        return PromptCamConfig.from_pretrained(source)
    except OSError as error:
        if folder.exists():
            raise ValueError(f"{folder / 'config.json'} cannot be read ({reason_of(error)}).") from None
        raise ValueError(f"model={name}: no such folder, and not opened from the Hub ({reason_of(error)}).") from None
    except (AttributeError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder / 'config.json'} is not the configuration of a Prompt-CAM model ({reason})."
        ) from None


def check_weights(folder: Path, config: PromptCamConfig) -> None:
    """
    Check that a checkpoint's weight files are whole, and hold the prompts that its configuration describes. Reads only
    the files' headers.

    Raises:
        ValueError: If a file is missing or damaged, or weights are missing or have other shapes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in weight_files(folder):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} has no {name}; expected a complete checkpoint, as `promptcam train` writes it.")
        with open(path, "rb") as content:
            is_pointer = content.read(8) == b"version "
        if is_pointer:
            raise ValueError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` where it came from.")
        try:
            with safe_open(path, "pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _damaged(path, error) from None
    for name, expected in _prompt_shapes(config).items():
        if name not in shapes:
            raise ValueError(f"{folder} has no weights {name!r}; expected a complete checkpoint of a Prompt-CAM model.")
        if shapes[name] != expected:
            raise ValueError(f"{folder}: {name} has shape {shapes[name]}; its config.json says {expected}.")
    if not config.prompts_only and not any(name.startswith("backbone.") for name in shapes):
        raise ValueError(f"{folder} has no weights of the backbone, but its config.json says prompts_only=false.")


def weight_files(folder: Path) -> list[str]:
    """
    The names of the weight files that a checkpoint has to have: one, or those that the index lists.

    Raises:
        ValueError: If the index is damaged.
    """
    if (folder / WEIGHTS).is_file() or not (folder / WEIGHTS_INDEX).is_file():
        return [WEIGHTS]
    try:
        return sorted(set(json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError) as error:
        raise _damaged(folder / WEIGHTS_INDEX, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged or incomplete ({first_line(error)}); copy or save the checkpoint again.")


def _prompt_shapes(config: PromptCamConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights outside the backbone."""
    hidden_size = config.backbone_config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"class_prompts": (len(config.id2label), hidden_size)}
    agnostic = (config.num_agnostic_layers, config.num_agnostic_prompts)
    if all(agnostic):
        shapes["agnostic_prompts"] = (*agnostic, hidden_size)
    return shapes | {"score_head.weight": (1, hidden_size), "score_head.bias": (1,)}


def _load_model(source: str, config: PromptCamConfig, backbone: str | None) -> PromptCamForImageClassification:
    """
    The model with all its weights.

    Raises:
        ValueError: If weights are missing or do not fit, or the backbone cannot be opened.
    """
    given = {} if backbone is None else {"backbone": backbone}
    if config.prompts_only:
        _check_backbone(source, config, backbone)
    elif given:
        raise ValueError(f"backbone={backbone}: {source} holds its own backbone; leave this option out.")
    try:
        with _quiet():
            model, found = PromptCamForImageClassification.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **given
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model={source}: cannot be opened ({reason_of(error)})") from None
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{source} has no weights {listed(missing, 3)}; expected a complete checkpoint.")
    if mismatched := sorted(found["mismatched_keys"]):
        name, shape, expected = mismatched[0]
        raise ValueError(f"{source}: {name} has shape {tuple(shape)}; its config.json says {tuple(expected)}.")
    return model


def _check_backbone(source: str, config: PromptCamConfig, backbone: str | None) -> None:
    """Check that the backbone of a checkpoint that holds only prompts is there."""
    name = backbone or config.backbone
    revision = {} if backbone is not None else {"revision": config.backbone_revision}
    try:
        load_config(str(name), **revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} holds only prompts, and its backbone {name!r} cannot be opened ({reason_of(error)}); "
            "pass where it is now, a folder or Hub id (--backbone)."
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what transformers prints: a progress bar, which would count to one file, and a table of missing weights,
    about which there is one line."""
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
