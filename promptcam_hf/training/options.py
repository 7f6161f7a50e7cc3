"""The options of training: from Python, from a recipe (a YAML file) or from the command line."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from ..files import write_atomically
from ..messages import did_you_mean

RECIPE = "recipe.yaml"
PROMPTED_LAYERS = 4  # the last ones; see docs/recipe.md
BATCH_SIZE = 16  # or all training images, if there are fewer
# Options that may be edited in the recipe of an interrupted run. Data and backbone may have moved: their content is
# compared instead.
FREE_TO_CHANGE = {
    "data",
    "image_column",
    "label_column",
    "split_column",
    "label_pattern",
    "label_map",
    "on_bad_image",
    "backbone",
    "gradient_accumulation_steps",
    "find_batch_size",
    "gradient_checkpointing",
    "compile",
    "num_workers",
    "evaluate_every",
    "save_every",
    "save_total_limit",
    "report_to",
    "push_to_hub",
    "private",
    "license",
}


class TrainingOptions(BaseModel, frozen=True, strict=True, extra="forbid", allow_inf_nan=False):
    """
    What to train, on which photographs, and how. Each field is described where it is defined, and by `promptcam train
    --help`, whose options these are. `docs/recipe.md` says how the defaults were chosen; the published settings are in
    `examples/recipes/`.

    Raises:
        ValueError: If there is no such option, or its value has the wrong type or is out of range. The message is one
            line that names the option.
    """

    data: str | None = Field(
        None,
        description="Photographs: a folder with train/<class>/*.jpg and test/<class>/*.jpg, or with <class>/*.jpg; a "
        "table of labels (CSV, JSON lines, parquet), or a folder with one; parquet files; the unpacked CUB-200-2011 or "
        "Oxford-IIIT Pet; or the id of a dataset on the Hub.",
    )
    image_column: str | None = Field(
        None, description="Column of a table with the images or file names.  [default: found by type and name]"
    )
    label_column: str | None = Field(
        None, description="Column of a table with the classes.  [default: found by type and name]"
    )
    split_column: str | None = Field(
        None, description="Column of a table of labels with train, validation or test.  [default: found by its name]"
    )
    label_pattern: str | None = Field(
        None,
        description="Regular expression that finds the class in the name of a file, such as '^([^_]+)_'; with a slash "
        "in it, in the path below the folder.",
    )
    label_map: str | None = Field(
        None,
        description="CSV file with the columns class,group: groups, such as genera, take the place of the classes.",
    )
    test_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the photographs to hold out at random for testing.  [default: the data's own split, or "
        "0.2 if they have none]",
    )
    group_by: str | None = Field(
        None,
        description="Keep photographs of one individual, sequence or camera on one side: a column, or a regular "
        "expression that finds it in the name of a file.",
    )
    on_bad_image: Literal["stop", "skip"] = Field(
        "stop", description="If images cannot be read: stop, or skip and list them."
    )

    backbone: str | None = Field(
        None,
        description="Frozen backbone: Hub id or local folder of a model of transformers (DINO, DINOv2, DINOv3, CLIP, "
        "...) or open_clip (hf-hub:imageomics/bioclip).",
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="Side of the square input, in pixels.  [default: the backbone's; DINOv2: 238, DINOv3: 240]",
    )
    normalisation: Literal["backbone", "paper"] = Field(
        "backbone",
        description="Mean, standard deviation and resampling of pixels: the backbone's own, or 0.5, 0.5 and bilinear "
        "as in the paper's code.",
    )
    keep_aspect: bool = Field(
        False, description="Keep the aspect ratio of photographs: pad them to a square instead of squeezing them."
    )
    crops: Literal["same_scale", "paper"] = Field(
        "same_scale",
        description="Random crops to train on. same_scale: about a fifteenth narrower than photographs in "
        "evaluation, in whole patches, so that things are as large in both. paper: as wide as these, from photographs "
        "that are enlarged by 7 %.",
    )
    class_prompt_layer: int | None = Field(
        None, description="Layer at which the class prompts enter, counted from 1.  [default: the last layer]"
    )
    num_agnostic_prompts: int | None = Field(
        None,
        le=100_000,
        description="Class-agnostic prompts in each prompted layer before the class prompts enter.  [default: one per "
        "class]",
    )
    num_prompted_layers: int | None = Field(
        None, description="Prompt only the last N layers.  [default: 4, or as many as class_prompt_layer needs]"
    )
    prompt_init: Literal["mean_cls", "random"] = Field(
        "mean_cls",
        description="Where prompts start: at the mean [CLS] state of a class's training images, or at random.",
    )
    prompt_dropout: float | None = Field(None, ge=0, lt=1, description="Dropout rate of the prompts.  [default: 0]")
    drop_path_rate: float | None = Field(
        None, ge=0, lt=1, description="Stochastic depth rate of the last layer.  [default: 0]"
    )
    patch_dropout: float | None = Field(
        None, ge=0, lt=1, description="Fraction of the patches to drop at random in each step.  [default: 0]"
    )

    epochs: int = Field(24, ge=1, le=1_000_000, description="Passes over the training images.")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Images per optimiser step, over all devices.  [default: 16, or all if there are fewer]",
    )
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="SGD with momentum 0.9, or AdamW.")
    learning_rate: float | None = Field(
        None, ge=0, description="Peak learning rate.  [default: AdamW: 0.01; SGD: 0.005, DINOv2, DINOv3: 0.001]"
    )
    warmup_epochs: int | None = Field(
        None,
        ge=0,
        description="Epochs in which the learning rate rises to its peak.  [default: a fifth of all, at most 20]",
    )
    weight_decay: float = Field(1e-3, ge=0, description="Weight decay.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Label smoothing of the loss.")
    blurred_negative: bool = Field(
        True,
        description="Count the true class's prompt with all heads blurred as one more wrong answer in the loss, so "
        "that a class wins by what its prompt attends to. The paper does not.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: the rarer a class, the more its images weigh in the loss."
    )
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform", description="balanced: images of all classes are equally frequent in training; rare ones repeat."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Random seed.")

    mixed_precision: Literal["no", "bf16", "fp16"] | None = Field(
        None,
        description="Mixed precision in training. Evaluation uses float32.  [default: bf16 where the hardware is "
        "faster with it, otherwise no]",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="Micro-batches per optimiser step on each device.")
    find_batch_size: bool = Field(
        False, description="Raise gradient_accumulation_steps until a micro-batch fits into memory."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    cache_features: int | None = Field(
        None,
        ge=0,
        description="Augmented views of each training image to cache as features, so that training runs only the "
        "prompted layers. 0: no cache.  [default: 4, or 2, if some layers have no prompts and the disk has room]",
    )
    num_workers: int | None = Field(
        None, ge=0, le=1024, description="Worker processes that load photographs.  [default: one per core, at most 8]"
    )

    validation_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of each class's training images to hold out, for best/, early stopping and the temperature "
        "of the probabilities. 0: the evaluation split serves for best/ and early stopping; no temperature is fitted.",
    )
    final_epochs: int | None = Field(
        None,
        ge=0,
        description="Number of last epochs that also use the held-out images for training, after best/ and the "
        "temperature have been chosen.  [default: a quarter of the epochs]",
    )
    best_metric: Literal["accuracy", "macro_accuracy"] = Field(
        "accuracy",
        description="Metric that chooses the best checkpoint. Rare and common classes count alike in macro_accuracy.",
    )
    early_stopping: int | None = Field(
        None, ge=1, description="Stop after N evaluations without improvement.  [default: never]"
    )
    evaluate_every: int = Field(
        1, ge=1, description="Evaluate every N epochs before the final ones, and after the last one."
    )
    save_every: int | None = Field(
        None, ge=1, description="Save a state to resume from every N steps, besides the one after each epoch."
    )
    save_total_limit: int = Field(2, ge=1, description="Number of newest states to keep.")
    prompts_only: bool = Field(
        False, description="Save only the prompts and the score head; loading fetches the backbone by its id."
    )
    report_to: Literal["tensorboard", "wandb", "trackio"] | None = Field(None, description="Tracker to log to.")
    push_to_hub: str | None = Field(None, description="Hub repository (org/name) to push the trained model to.")
    private: bool = Field(False, description="Make that repository private if it is new.")
    license: str | None = Field(
        None, description="Licence for the model card, by its identifier on the Hub, such as cc-by-4.0."
    )

    if not TYPE_CHECKING:  # type checkers see the signature that pydantic makes of the fields

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise ValueError(_first_error(error)) from None

    @field_validator("data", "label_map", "backbone", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        return os.path.expanduser(text) if isinstance(text, str) else text  # a recipe's ~, which no shell has replaced

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_as_text(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads `no` as False

    def replace(self, **changes: Any) -> "TrainingOptions":
        """A copy with some options changed. Raises the same errors as a new one."""
        return TrainingOptions(**self.model_dump() | changes)

    def resolved(self, model_type: str, num_layers: int, patch_size: int) -> "TrainingOptions":
        """
        A copy in which the defaults that depend on other options, the backbone or the machine are filled in. Those of
        `batch_size` and `cache_features` are left, which depend on the photographs.

        Args:
            model_type: Model type of the backbone, such as `"vit"` or `"dinov2"`.
            num_layers: Its number of layers N.
            patch_size: Side of its patches, in pixels.

        Raises:
            ValueError: If nothing can be chosen before the final epochs.
        """
        from ..devices import number_of_workers  # slow to import

        class_prompt_layer = self.class_prompt_layer or num_layers
        is_newer_dino = model_type.startswith("dinov")  # DINOv2 and DINOv3
        defaults: dict[str, Any] = {
            # Their own, such as 518 pixels, would take too long. Crops to train on are a patch smaller
            "image_size": (224 // patch_size + 1) * patch_size if is_newer_dino else None,
            "num_prompted_layers": max(min(PROMPTED_LAYERS, num_layers), num_layers - class_prompt_layer + 1),
            "prompt_dropout": 0.0,
            "drop_path_rate": 0.0,
            "patch_dropout": 0.0,
            "learning_rate": 0.01 if self.optimizer == "adamw" else 0.001 if is_newer_dino else 0.005,
            "warmup_epochs": min(20, self.epochs // 5),
            "final_epochs": self.epochs // 4,
            "num_workers": number_of_workers(),
        }
        options = self.replace(**{name: value for name, value in defaults.items() if getattr(self, name) is None})
        if options.validation_share and (options.final_epochs or 0) >= options.epochs:
            raise ValueError(f"final_epochs={options.final_epochs}: expected less than epochs={options.epochs}.")
        return options

    def save(self, file: str | os.PathLike) -> None:
        """Write all options as a recipe, atomically."""
        write_atomically(Path(file), yaml.safe_dump(self.model_dump(), sort_keys=False))


def load_recipe(file: str | os.PathLike) -> dict[str, Any]:
    """
    Read a recipe: a YAML file with some of the options.

    Returns:
        The options that the recipe sets, to be passed to `TrainingOptions`.

    Raises:
        ValueError: If the file cannot be read, or an option is unknown or has a wrong value. The file is named, and for
            an unknown option the closest known one.
    """
    try:
        recipe = yaml.load(Path(file).read_bytes(), _RecipeLoader)  # UTF-8, or UTF-16 with its mark
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read as a recipe ({' '.join(str(error).split())}).") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{file}: expected one option per line, such as 'epochs: 100'.")
    try:
        options = TrainingOptions(**{str(name): value for name, value in recipe.items()})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return options.model_dump(exclude_unset=True)


def load_run_options(output_dir: str | os.PathLike) -> TrainingOptions:
    """
    The options of a run, from the recipe in its folder.

    Raises:
        ValueError: If there is no run in the folder, or its recipe cannot be read.
    """
    recipe = Path(output_dir) / RECIPE
    if not recipe.exists():
        raise ValueError(
            f"{output_dir} has no {RECIPE}, so there is no run to resume. If it was interrupted before training "
            "began, type the command that started it again."
        )
    return TrainingOptions(**load_recipe(recipe))


class _RecipeLoader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 does; in YAML 1.1, which PyYAML reads, it is text. Refuses an option that
    is given twice, of which PyYAML would take the last, and aliases, which can make a short file a huge value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: aliases such as *{event.anchor} are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key, _), name in zip(node.value, names, strict=True):
            if names.count(name) > 1:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {name!r} is given twice")
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _first_error(error: ValidationError) -> str:
    """The first error, on one line. Pydantic's own message lists all, each on three lines."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(name, TrainingOptions.model_fields, "; `promptcam train --help` lists the options.")
        return f"unknown option {name!r}{hint}"
    value = repr(first["input"])
    value = value if len(value) <= 200 else f"{value[:200]}..."
    return f"{name}={value} {first['msg'].removeprefix('Input ')}."
