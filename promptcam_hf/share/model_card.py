"""The model card of a checkpoint: what its folder knows, as text for people and as metadata for the Hub.

What stands between the two markers, and the metadata that the checkpoint knows, are generated each time. Everything
else in a card belongs to its author and is kept.
"""

import csv
import json
import os
import re
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from .. import checkpoint
from ..evaluation.prediction import top5_is_trivial
from ..files import read_mapping, write_atomically
from ..messages import counted
from ..modeling import PromptCamConfig
from ..modeling.backbone_promptcam import family_of
from ..modeling.hub_promptcam import is_on_hub
from ..modeling.open_clip_promptcam import HUB_PREFIX

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
START = "<!-- promptcam-hf generates the text from here on. Text before and after this part is yours and is kept. -->"
END = "<!-- promptcam-hf generates the text up to here. -->"

TAGS = ["prompt-cam", "interpretability", "fine-grained-classification", "vision-transformer", "image-classification"]
# Key in results.json -> name and meaning
METRICS = {
    "accuracy": ("Accuracy", "photographs that are given the right class"),
    "top5_accuracy": ("Top-5 accuracy", "photographs whose class is among the five most probable ones"),
    "macro_accuracy": (
        "Macro accuracy",
        "mean of the classes' accuracies, so that rare and common classes count alike",
    ),
    "calibration_error": ("Expected calibration error", "mean difference between probability and accuracy"),
    "raw_calibration_error": ("The same before calibration", "at a temperature of 1"),
}
# Tells our results in the metadata from results that the author added
OUR_METRIC = {"measured_by": "promptcam-hf"}
PER_CLASS_COLUMNS = {"class", "images", "correct", "accuracy", "most_confused_with"}
# The training options that the card shows: those that affect the result. Data and backbone are shown elsewhere.
SHOWN_OPTIONS = (
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "warmup_epochs",
    "weight_decay",
    "label_smoothing",
    "blurred_negative",
    "class_weights",
    "sampling",
    "prompt_init",
    "normalisation",
    "crops",
    "validation_share",
    "final_epochs",
    "best_metric",
    "prompt_dropout",
    "drop_path_rate",
    "patch_dropout",
    "label_map",
    "mixed_precision",
    "seed",
)


def write_model_card(folder: str | os.PathLike, repo_id: str | None = None, license: str | None = None) -> None:
    """
    Write or renew `folder/README.md`, from the checkpoint's configuration, recipe and evaluation, as far as it has
    them.

    In a card that exists, the part between the two markers is generated anew, and so is the metadata that the
    checkpoint knows: library, task, tags, metrics and, if known, base model and dataset. Everything else is kept,
    including tags and results of others. A card without markers keeps all its text.

    Args:
        folder: A checkpoint, as `promptcam train`, `promptcam convert` or `save_pretrained` writes it.
        repo_id: Its id on the Hub, for the title and the examples. Default: a path that ends in the folder's name.
        license: The Hub's identifier of the licence, such as `"cc-by-4.0"`. Default: the card's, if it has one.

    Raises:
        ValueError: If the folder is not a Prompt-CAM checkpoint, or one of its files cannot be read.
        OSError: If the card cannot be written; the former one stays.
    """
    folder = Path(folder)
    card = renew_model_card(folder, read_model_card(folder / CARD), repo_id, license)
    write_atomically(folder / CARD, card)


def read_model_card(path: Path, name: str | None = None) -> str | None:
    """
    Read the text of a card, with its line ends.

    Args:
        path: Its file.
        name: What an error calls it. Default: its path.

    Returns:
        The text; None if there is no such file.

    Raises:
        ValueError: If it is not UTF-8, or its metadata are not YAML.
    """
    if not path.is_file():
        return None
    try:
        card = path.read_bytes().decode("utf-8-sig")
        _parse(card)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name or path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name or path}: the metadata between the lines '---' cannot be read ({reason}).") from None
    return card


def renew_model_card(folder: Path, card: str | None, repo_id: str | None, license: str | None) -> str:
    """The text that `write_model_card` writes, with the same arguments and errors, where `card` is the text so far."""
    config = read_config(folder)
    results = read_mapping(folder / "evaluation" / "results.json", json.loads)
    recipe = read_mapping(folder / "recipe.yaml", yaml.safe_load)
    title = (repo_id or folder.resolve().name).split("/")[-1]
    renewed = _parse(card or "")
    _set_metadata(renewed.data, config, results, recipe, title, license)
    data: Any = renewed.data
    generated = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        source=repo_id or f"path/to/{title}",
        config=config,
        classes=[name for _, name in sorted(config.id2label.items())],
        backbone=_describe_backbone(config),
        prompts=_describe_prompts(config),
        num_learned=_count_learned(config),
        preprocessing=_describe_preprocessing(folder, config),
        results=results,
        metrics=_metric_rows(results, config.temperature),
        data=results.get("hub_id") or _without_folders(results.get("data")),
        per_class=_read_per_class(folder),
        recipe=[
            (name.replace("_", " "), _without_folders(recipe[name]))
            for name in SHOWN_OPTIONS
            if recipe.get(name) is not None
        ],
        training_data=_name_training_data(recipe, results),
        has_traits=(folder / "evaluation" / "traits.png").is_file(),
        has_confusions=(folder / "evaluation" / "confusions.png").is_file(),
        text=_text,
        counted=counted,
        # A name that contains a marker must not end the generated part
        code=lambda text: json.dumps(text, ensure_ascii=False).replace("<!--", "\\u003c!--"),
        percent=lambda share: f"{float(share):.1%}" if share != "" else "",
    ).text
    generated = "\n\n".join([START, re.sub(r"\n{3,}", "\n\n", generated).strip(), END])
    around = _around_markers(renewed.text)
    if around is not None:
        renewed.text = generated.join(around)
    elif not renewed.text.strip():
        renewed.text = generated + "\n"
    return str(renewed)


def covers(card: str, other: str) -> bool:
    """Whether a card has all the metadata of another one, and its text outside the markers."""
    text, metadata = _by_author(card)
    other_text, other_metadata = _by_author(other)
    return other_metadata <= metadata and other_text in text


def read_config(folder: Path) -> PromptCamConfig:
    """The configuration of a checkpoint folder.

    Raises:
        ValueError: If there is no such folder, or it has no configuration, or that of another model.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a checkpoint from `promptcam train`.")
    return checkpoint.read_config(folder)


# --- Cards ------------------------------------------------------------------------------------------------------------


def _parse(card: str) -> ModelCard:
    # Without any metadata huggingface_hub would warn
    return ModelCard(card if re.match(r"\s*---\s", card) else f"---\n\n---\n{card}")


def _around_markers(text: str) -> tuple[str, str] | None:
    """The text before and after the generated part; None if there is no such part."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return (before, after) if start and end else None


def _by_author(card: str) -> tuple[str, set[str]]:
    """The text outside the markers, and the metadata, an entry for each value and each item of a list."""
    parsed = _parse(card)
    around = _around_markers(parsed.text) or (parsed.text,)
    metadata = {
        f"{key}: {item}"
        for key, value in parsed.data.to_dict().items()
        for item in (value if isinstance(value, list) else [value])
    }
    return "\n\n".join(part.strip() for part in around).strip(), metadata


def _set_metadata(
    data: Any, config: PromptCamConfig, results: dict[str, Any], recipe: dict[str, Any], title: str, license: str | None
) -> None:
    """Set what the checkpoint knows; other keys, tags and results stay."""
    data.library_name = "transformers"
    data.pipeline_tag = "image-classification"
    data.tags = list(dict.fromkeys([*(data.tags or []), *TAGS]))
    data.license = license or data.license
    if is_on_hub(config.backbone, config.backbone_revision):
        data.base_model = str(config.backbone).removeprefix(HUB_PREFIX)
    if results.get("hub_id") and results["hub_id"] == recipe.get("data"):
        data.datasets = [results["hub_id"]]
    others = [result for result in data.eval_results or [] if result.metric_args != OUR_METRIC]
    data.eval_results = _eval_results(results) + others or None
    if data.eval_results:
        data.model_name = title
        data.metrics = list(dict.fromkeys([*(data.metrics or []), "accuracy"]))


def _eval_results(results: dict[str, Any]) -> list[EvalResult]:
    data = results.get("hub_id") or _without_folders(results.get("data") or "photographs")
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=data,  # huggingface_hub joins results whose datasets differ only in their names
            dataset_name=data,
            dataset_split=results.get("split"),
            metric_type=key,
            metric_name=name,
            metric_value=results[key],
            metric_args=OUR_METRIC,
        )
        for key, (name, _) in METRICS.items()
        if key in results and key not in {"raw_calibration_error", *_trivial_metrics(results)}
    ]


# --- What the card says -----------------------------------------------------------------------------------------------


def _metric_rows(results: dict[str, Any], temperature: float) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each metric; without what calibration changed where there was none."""
    trivial = _trivial_metrics(results)
    if temperature == 1.0:
        trivial.add("raw_calibration_error")
    rows = [(key, *row) for key, row in METRICS.items() if key in results and key not in trivial]
    return [(name, f"{results[key]:.1%}" + _interval(results.get(f"{key}_interval")), text) for key, name, text in rows]


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else " (95 % interval: {:.1%} to {:.1%})".format(*ends)


def _trivial_metrics(results: dict[str, Any]) -> set[str]:
    """Those that would be the same for any model."""
    return {"top5_accuracy"} if top5_is_trivial(results.get("num_classes", 0)) else set()


def _describe_backbone(config: PromptCamConfig) -> str:
    backbone = config.backbone_config
    description = (
        f"{family_of(backbone.model_type).name}, {backbone.num_hidden_layers} layers, "
        f"{backbone.num_attention_heads} heads in each, hidden size {backbone.hidden_size}, patches of "
        f"{_by(backbone.patch_size)} pixels"
    )
    name, revision = config.backbone, config.backbone_revision
    if not name:
        return description
    if not is_on_hub(name, revision):
        return f"{_text(_without_folders(name))}: {description}"
    commit = f" (commit {_text(revision[:8])})" if revision else ""
    name = name.removeprefix(HUB_PREFIX)
    return f"[{name}](https://huggingface.co/{name}){commit}: {description}"


def _describe_preprocessing(folder: Path, config: PromptCamConfig) -> str:
    given = read_mapping(folder / "preprocessor_config.json", json.loads)
    mean, std = (", ".join(f"{value:g}" for value in given.get(name, [])) for name in ("image_mean", "image_std"))
    padded = "padded to a square, " if given.get("do_pad") else ""
    resized = f"{padded}resized to {_by(config.backbone_config.image_size)} pixels"
    return f"{resized}, normalised with mean {mean} and standard deviation {std}" if mean and std else resized


def _describe_prompts(config: PromptCamConfig) -> str:
    last, entry = config.backbone_config.num_hidden_layers, config.class_prompt_layer
    paper = {last: "Prompt-CAM-Deep: ", 1: "Prompt-CAM-Shallow: "} if config.first_prompted_layer == 1 else {}
    variant = paper.get(entry, "")
    layers = f"in layer {last}, the last" if entry == last else f"from layer {entry} of {last} on"
    description = f"{variant}one for each class, {layers}"
    if config.num_agnostic_layers and config.num_agnostic_prompts:
        first = config.first_prompted_layer
        layers = f"layer {first}" if entry - 1 == first else f"each of the layers {first} to {entry - 1}"
        description += f"; {config.num_agnostic_prompts} that all classes share in {layers}"
    return description


def _count_learned(config: PromptCamConfig) -> int:
    num_prompts = config.num_agnostic_layers * config.num_agnostic_prompts + len(config.id2label)
    return (num_prompts + 1) * config.backbone_config.hidden_size + 1


def _name_training_data(recipe: dict[str, Any], results: dict[str, Any]) -> str | None:
    data = recipe.get("data")
    return data if data == results.get("hub_id") else _without_folders(data)


def _without_folders(value: Any) -> Any:
    """A path without its folders, which are private; any other value as it is."""
    return PurePath(value).name if isinstance(value, str) and os.sep in value else value


def _by(size: int | list[int] | tuple[int, int]) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} × {width}"  # noqa: RUF001


def _text(value: Any) -> str:
    """A value as plain text in Markdown, on one line, safe in a cell of a table."""
    text = " ".join(str(value).split())
    # An underscore within a word needs no backslash
    return re.sub(r"([\\`*\[\]<>&|#~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


# --- Files of a checkpoint --------------------------------------------------------------------------------------------


def _read_per_class(folder: Path) -> list[dict[str, str]]:
    path = folder / "evaluation" / "per_class.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = PER_CLASS_COLUMNS - (rows[0].keys() if rows else PER_CLASS_COLUMNS)
    if missing:
        raise ValueError(f"{path} has no column {min(missing)}; expected the table that `promptcam evaluate` writes.")
    return rows
