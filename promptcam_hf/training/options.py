"""What `promptcam train` can be told: on the command line, in a recipe (YAML), or from Python."""

import contextlib
import os
import types
from dataclasses import Field, asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ..files import write_atomically

RECIPE = "recipe.yaml"


def _option(default: Any, help: str, shown: str | None = None) -> Any:
    """An option; `shown` says in words what the default is where it depends on other things."""
    return field(default=default, metadata={"help": help, "shown": shown})


@dataclass
class TrainingOptions:
    """
    What to train on what, and how. `promptcam train --help` lists the same options with the same words; a recipe is a
    YAML file with some of them. The defaults are the paper's recipe for the backbone's family.

    Raises:
        ValueError: If a value is of the wrong type or out of its range; the option is named.
    """

    data: str | None = _option(
        None,
        "Photographs: a folder with train/<class>/*.jpg and test/ or validation/ alike, a folder of parquet files, the "
        "unpacked CUB-200-2011 or Oxford-IIIT Pet, or the id of a dataset on the Hub.",
    )
    image_column: str | None = _option(None, "Column of the images, in parquet files and Hub datasets.", "found")
    label_column: str | None = _option(None, "Column of the classes, in parquet files and Hub datasets.", "found")
    label_map: str | None = _option(
        None,
        "CSV file with the columns class,group: train on the groups, such as genera, instead of the classes.",
    )
    on_bad_image: Literal["stop", "skip"] = _option(
        "stop", "What to do if an image cannot be read: stop at the start, or skip and list it."
    )

    backbone: str | None = _option(None, "Hub id or local folder of a ViT (DINO, ...) or DINOv2.")
    image_size: int | None = _option(None, "Pixels of a side.", "the backbone's; DINOv2 224")
    class_prompt_layer: int | None = _option(None, "Layer in which the class prompts enter, from 1.", "the last")
    num_agnostic_prompts: int | None = _option(None, "Prompts in each prompted layer before it.", "one a class")
    num_prompted_layers: int | None = _option(None, "Only the last so many layers get prompts.", "all")
    prompt_dropout: float | None = _option(None, "Dropout on prompts.", "0.1; DINOv2 0")
    drop_path_rate: float | None = _option(None, "Stochastic depth.", "0.1; DINOv2 0")
    patch_dropout: float = _option(0.0, "Share of the patches that a step leaves out, others for each image.")

    epochs: int = _option(100, "Times through the training images.")
    batch_size: int = _option(16, "Images an optimiser step, over all devices.")
    optimizer: Literal["sgd", "adamw"] = _option("sgd", "SGD with momentum 0.9, or AdamW.")
    learning_rate: float | None = _option(None, "Its highest value.", "0.005; DINOv2 or AdamW 0.001")
    warmup_epochs: int | None = _option(None, "Epochs of rising learning rate.", "a fifth, at most 20")
    weight_decay: float = _option(1e-3, "Of the optimiser.")
    seed: int = _option(0, "Of all that is random.")

    mixed_precision: Literal["no", "bf16", "fp16"] = _option("no", "Arithmetic in training. Evaluation is float32.")
    gradient_accumulation_steps: int = _option(1, "Parts in which a device computes its share of a batch.")
    find_batch_size: bool = _option(False, "Raise gradient_accumulation_steps until a batch fits into memory.")
    gradient_checkpointing: bool = _option(False, "Less memory for more time.")
    compile: bool = _option(False, "Compile the model with torch.compile.")
    cache_features: int = _option(
        0,
        "Views of each training image to store as features, so that only the prompted layers run in training; 0 stores "
        "none. Needs num_prompted_layers.",
    )
    num_workers: int | None = _option(None, "Processes that decode photographs.", "one a core, at most 8")

    evaluate_every: int = _option(1, "Epochs from one evaluation to the next; the last epoch has one always.")
    save_every: int | None = _option(None, "Steps from one state to resume from to the next.", "an epoch")
    save_total_limit: int = _option(2, "States to keep, the newest.")
    prompts_only: bool = _option(False, "Save prompts and score head alone; loading fetches the backbone by its id.")
    report_to: Literal["tensorboard", "wandb", "trackio"] | None = _option(None, "Tracker to log to.")
    push_to_hub: str | None = _option(None, "Repository (org/name) to push the trained model to.")
    private: bool = _option(False, "Make that repository private if it is new.")
    license: str | None = _option(None, "Licence of the trained model, as the Hub calls it, for its model card.")

    def __post_init__(self) -> None:
        for option in fields(self):
            setattr(self, option.name, _checked(option.name, getattr(self, option.name)))

    def resolved(self, model_type: str) -> "TrainingOptions":
        """The same with what depends on the backbone's family or on other options filled in."""
        is_dinov2 = model_type == "dinov2"
        rate = 0.0 if is_dinov2 else 0.1
        defaults: dict[str, Any] = {
            "image_size": 224 if is_dinov2 else None,
            "prompt_dropout": rate,
            "drop_path_rate": rate,
            "learning_rate": 0.001 if is_dinov2 or self.optimizer == "adamw" else 0.005,
            "warmup_epochs": min(20, self.epochs // 5),
            "num_workers": min(8, os.cpu_count() or 1),
        }
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def save(self, file: str | os.PathLike) -> None:
        """Write a recipe that says all of it; whole or not at all."""
        write_atomically(Path(file), yaml.safe_dump(asdict(self), sort_keys=False))


def load_recipe(file: str | os.PathLike) -> dict[str, Any]:
    """
    Read the options that a recipe sets.

    Raises:
        ValueError: If it is no mapping of options, or has a key that is none (a near match is named).
    """
    try:
        recipe = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"{file}: cannot be read as a recipe ({reason})") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{file}: expected a mapping of options, such as 'epochs: 100' on a line.")
    names = [option.name for option in fields(TrainingOptions)]
    for name in recipe:
        if name not in names:
            near = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`promptcam train --help` lists the options."
            raise ValueError(f"{file}: unknown option {name!r}; {hint}")
    try:
        return {name: _checked(name, value) for name, value in recipe.items()}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


_TYPES = get_type_hints(TrainingOptions)


def option_type(option: Field) -> tuple[Any, tuple[str, ...] | None]:
    """Type of an option's values (`str`, `int`, `float` or `bool`), and the values to choose from if they are few."""
    hint = _TYPES[option.name]
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    return (str, get_args(hint)) if get_origin(hint) is Literal else (hint, None)


# Lowest value of an option, and the bound below which it must stay; others have no range
_RANGES: dict[str, tuple[float, float | None]] = {
    "epochs": (1, None),
    "batch_size": (1, None),
    "gradient_accumulation_steps": (1, None),
    "evaluate_every": (1, None),
    "save_every": (1, None),
    "save_total_limit": (1, None),
    "image_size": (1, None),
    "warmup_epochs": (0, None),
    "num_workers": (0, None),
    "cache_features": (0, None),
    "learning_rate": (0, None),
    "weight_decay": (0, None),
    "prompt_dropout": (0, 1),
    "drop_path_rate": (0, 1),
    "patch_dropout": (0, 1),
}


def _checked(name: str, value: Any) -> Any:
    option = TrainingOptions.__dataclass_fields__[name]
    kind, choices = option_type(option)
    if value is None and option.default is None:
        return None
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # YAML takes 1e-3, without a point, for text
            value = float(value)
    if choices is not None and value is False and "no" in choices:
        value = "no"  # which YAML takes for False
    if type(value) is not kind or (choices is not None and value not in choices):
        what = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"{name}={value!r}: expected {' or '.join(choices) if choices else what}.")
    low, high = _RANGES.get(name, (None, None))
    if low is not None and not (low <= value and (high is None or value < high)):
        raise ValueError(
            f"{name}={value}: expected {f'{low} or more' if high is None else f'a rate in [{low}, {high})'}."
        )
    return value
