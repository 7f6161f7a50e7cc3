"""What a run is given (options, photographs, a model), checked against each other before training."""

import hashlib
import json
import os
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import BaseImageProcessor, PreTrainedConfig

from ..backbones import read_backbone_config
from ..checkpoint import new_image_processor
from ..data.division import SPLIT_FILE
from ..data.photographs import TrainTransform, find_unreadable, input_size
from ..data.splits import Splits, load_splits
from ..evaluation.prediction import class_names
from ..messages import counted, listed, reason_of
from ..modeling import PromptCamForImageClassification
from ..modeling.backbone_promptcam import POSITIONS, pair
from .feature_cache import check_has_frozen_layers
from .options import TrainingOptions

# Options that `from_backbone` takes as they are
MODEL_OPTIONS = (
    "class_prompt_layer",
    "num_agnostic_prompts",
    "num_prompted_layers",
    "prompt_dropout",
    "drop_path_rate",
    "patch_dropout",
)
# Options that `load_splits` takes as they are
DATA_OPTIONS = (
    "image_column",
    "label_column",
    "split_column",
    "label_pattern",
    "label_map",
    "test_share",
    "group_by",
)
Skipped = dict[str, dict[str, str]]  # "train" or "evaluation" -> index of an image -> why it cannot be read


def resolve_options(options: TrainingOptions, model: PromptCamForImageClassification | None) -> TrainingOptions:
    """
    The options with all defaults filled in, those of the model from the given one if there is one.

    Raises:
        ValueError: If the backbone is missing or cannot be opened, the image size is no multiple of its patches, the
            tracker is not installed, or an option contradicts the given model.
    """
    _check_tracker(options.report_to)
    if model is None:
        if options.backbone is None:
            raise ValueError("backbone is not given: pass --backbone, or a --recipe that sets it.")
        backbone_config = read_backbone_config(options.backbone)
        options = _resolved(options, backbone_config)
        _check_image_size(options.image_size, backbone_config)
        return options
    config = model.config
    settings = {name: getattr(config, name) for name in MODEL_OPTIONS}
    settings["image_size"] = config.backbone_config.image_size
    for name, value in {**settings, "backbone": config.backbone}.items():
        if getattr(options, name) not in (None, value):
            raise ValueError(
                f"{name}={getattr(options, name)!r}, but the given model has {value!r}; set it where the model is "
                "built."
            )
    if options.prompts_only and config.backbone is None:
        raise ValueError("prompts_only: the given model does not know its backbone; build it from an id or a folder.")
    if options.prompts_only and any(weight.requires_grad for weight in model.backbone.parameters()):
        raise ValueError(
            "prompts_only: the given model's backbone is trained, which would be lost; freeze it, or leave "
            "prompts_only out."
        )
    return _resolved(options.replace(**settings), config.backbone_config)


def open_splits(
    options: TrainingOptions, given: datasets.DatasetDict | Splits | None, output_dir: str | os.PathLike
) -> Splits:
    """
    The given splits, or those of `options.data`; divided as before if the run in `output_dir` has a `split.csv`.

    Raises:
        ValueError: If neither or both are there, or the photographs cannot be used; see `load_splits`.
    """
    how: dict[str, Any] = {name: getattr(options, name) for name in DATA_OPTIONS}
    division = Path(output_dir, SPLIT_FILE)
    reading = {**how, "seed": options.seed, "division": division if division.exists() else None}
    if given is None:
        if options.data is None:
            raise ValueError("data is not given: pass --data, or a --recipe that sets it.")
        return load_splits(options.data, **reading)
    if options.data is not None:
        raise ValueError(f"data={options.data!r} and splits are both given; expected one of them.")
    if not isinstance(given, Splits):
        return load_splits(given, **reading)
    if without_effect := [name for name, value in how.items() if value is not None]:
        raise ValueError(f"{listed(without_effect)}: no effect on Splits; pass it to load_splits instead.")
    return given


def skip_unreadable(
    splits: Splits, record: Path, options: TrainingOptions, accelerator: Accelerator, is_resumed: bool
) -> tuple[Splits, Skipped | None]:
    """
    Leave out the images that cannot be read.

    Args:
        splits: The photographs.
        record: JSON file with the images that were skipped before, if any.
        options: `on_bad_image` and `num_workers` are used.
        accelerator: Its main process reads the images.
        is_resumed: Whether the run has a state already, so that the images have been checked.

    Returns:
        The splits that remain, and what was left out; None if nothing was.

    Raises:
        ValueError: If an image cannot be read and `on_bad_image` is `"stop"`, or a class loses all training images.
    """
    skipped: Skipped = {"train": {}, "evaluation": {}}
    if accelerator.is_main_process:
        if record.exists():
            skipped = json.loads(record.read_text())
        elif not is_resumed:
            for name in skipped:
                unreadable = find_unreadable(getattr(splits, name), options.num_workers or 0)
                skipped[name] = {str(index): message for index, message in unreadable.items()}
    (skipped,) = broadcast_object_list([skipped])
    messages = [message for images in skipped.values() for message in images.values()]
    if not messages:
        return splits, None
    if options.on_bad_image == "stop":
        more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
        raise ValueError(f"{messages[0]}{more} Repair or remove it, or pass --on-bad-image skip.")
    for name, images in skipped.items():
        split = getattr(splits, name)
        rows = [index for index in range(len(split)) if str(index) not in images]
        splits = replace(splits, **{name: split.select(rows)})
    lost = set(range(len(splits.names))) - set(splits.train["label"])
    if lost:
        raise ValueError(f"No readable training images of {listed(splits.names[label] for label in sorted(lost))}.")
    accelerator.print(f"Skipped {counted(len(messages), 'image')} that cannot be read, listed in {record}")
    return splits, skipped


def build_model(
    options: TrainingOptions, given: PromptCamForImageClassification | None, names: list[str]
) -> PromptCamForImageClassification:
    """
    The given model, or a new one, in float32.

    Args:
        options: Resolved options.
        given: A model, or None.
        names: Names of the classes, in the order of their labels.

    Raises:
        ValueError: If the given model has other classes, the options contradict the backbone, or its weights cannot be
            read.
    """
    model = given
    if model is None:
        backbone = options.backbone or ""
        try:
            model = PromptCamForImageClassification.from_backbone(
                # Absolute, so that a checkpoint with only prompts finds it from other folders, too
                os.path.abspath(backbone) if os.path.exists(backbone) else backbone,
                image_size=options.image_size,
                id2label=dict(enumerate(names)),
                **{name: getattr(options, name) for name in MODEL_OPTIONS if getattr(options, name) is not None},
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"backbone={backbone}: its weights cannot be read ({reason_of(error)})") from None
    elif class_names(model) != names:
        raise ValueError(
            f"The model's classes are {listed(class_names(model), 3)}, those of the photographs {listed(names, 3)}; "
            "build it with id2label=dict(enumerate(names))."
        )
    if options.gradient_checkpointing:
        # The first is its name in newer releases of transformers
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if options.cache_features:
        check_has_frozen_layers(model)
    return model.float()


def build_image_processor(options: TrainingOptions, model: PromptCamForImageClassification) -> BaseImageProcessor:
    """The preprocessing of a model, as the options `normalisation` and `keep_aspect` say. Of a backbone that came from
    nowhere, as far as is known, the normalisation is the paper's."""
    config: Any = model.config
    backbone = config.backbone if options.normalisation == "backbone" else None
    size, revision = config.backbone_config.image_size, config.backbone_revision
    return new_image_processor(size, backbone, revision, options.keep_aspect)


def build_train_transform(
    options: TrainingOptions, model: PromptCamForImageClassification, image_processor: BaseImageProcessor
) -> TrainTransform:
    """The augmentation of training, with crops as the option `crops` says: 14/15 of the side, in whole patches, as the
    paper's crops of 224 pixels are of 240."""
    if options.crops == "paper":
        return TrainTransform(image_processor)
    config: Any = model.config.backbone_config
    patch_size = max(pair(config.patch_size))
    num_patches = input_size(image_processor)[0] // patch_size
    return TrainTransform(image_processor, crop=patch_size * max(1, min(num_patches - 1, round(num_patches * 14 / 15))))


def fingerprint(backbone: torch.nn.Module) -> str:
    """A hash of a backbone's frozen weights, and of what its configuration says beyond their shapes. Without position
    embeddings: if they were interpolated, their last bits depend on the machine."""
    digest = hashlib.blake2b(digest_size=16)
    config: Any = backbone.config
    digest.update(repr((config.num_attention_heads, config.layer_norm_eps, config.hidden_act)).encode())
    left_out = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    left_out.update(POSITIONS)
    for name, weight in backbone.state_dict().items():
        if name not in left_out:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_precision(mixed_precision: str, device_type: str) -> None:
    """
    Check that a device can train in this precision.

    Raises:
        ValueError: If not.
    """
    if mixed_precision == "fp16" and device_type == "cpu":
        raise ValueError("mixed_precision=fp16 needs a GPU, and this run is on a CPU; expected no or bf16.")


def _resolved(options: TrainingOptions, config: Any) -> TrainingOptions:
    sizes = [config.patch_size] if isinstance(config.patch_size, int) else [*config.patch_size]
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError(f"backbone={options.backbone}: patch_size={config.patch_size!r}; expected 1 pixel or more.")
    return options.resolved(config.model_type, config.num_hidden_layers, max(sizes))


def _check_image_size(image_size: int | None, config: PreTrainedConfig) -> None:
    sizes = getattr(config, "patch_size", None)
    for patch_size in {sizes} if isinstance(sizes, int) else set(sizes or ()):
        if image_size is not None and image_size % patch_size:
            raise ValueError(
                f"image_size={image_size}: expected a multiple of {patch_size}, the side of the backbone's patches, "
                f"such as {max(1, round(image_size / patch_size)) * patch_size}."
            )


def _check_tracker(name: str | None) -> None:
    if name is None:
        return
    try:
        distribution(name)
    except PackageNotFoundError:
        raise ValueError(f"report_to={name}: the package {name} is not installed; `pip install {name}`.") from None
