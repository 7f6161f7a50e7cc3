"""The model card of a checkpoint: what its folder knows, told to people, and to the Hub in metadata."""

import csv
import json
import os
import re
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..files import write_atomically
from ..modeling import PromptCamConfig

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
# What lies between is ours; all else is the user's
START = "<!-- promptcam-hf renews all from here on; text before and after is yours and stays -->"
END = "<!-- promptcam-hf renews all up to here -->"

TAGS = ["prompt-cam", "interpretability", "fine-grained-classification", "vision-transformer", "image-classification"]
FAMILIES = {"vit": "ViT", "dinov2": "DINOv2"}
# By this the results that are ours are told from those that the user added
OUR_METRIC = {"measured_by": "promptcam-hf"}
# Key in results.json: name, whether it is a share of 100 %, and what it means
MEASURES = {
    "accuracy": ("Accuracy", "photographs given the right class"),
    "top5_accuracy": ("Top-5 accuracy", "photographs whose class is among the five most probable"),
    "macro_accuracy": (
        "Macro accuracy",
        "accuracy averaged over classes, so that a rare one counts as much as a common one",
    ),
    "calibration_error": ("Expected calibration error", "how far probability and accuracy differ, on average"),
}
PER_CLASS = {"class", "images", "correct", "accuracy", "most_confused_with"}
# Of the options of training, those that decide what comes out; data and backbone have places of their own in the card
RECIPE_OPTIONS = (
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "warmup_epochs",
    "weight_decay",
    "prompt_dropout",
    "drop_path_rate",
    "patch_dropout",
    "label_map",
    "mixed_precision",
    "seed",
)


def write_model_card(folder: str | os.PathLike, repo_id: str | None = None, license: str | None = None) -> None:
    """
    Write `folder/README.md`, or renew it: from configuration, recipe and evaluation, as far as they are there.

    A card that exists is never lost. Its generated part stands between two comments, and only this is renewed; a card
    without them keeps its text as it is. Of the metadata, what the checkpoint knows is renewed (library, task, tags,
    metrics and, where known, base model and data set; tags and results of others stay), and everything else stays. The
    file is written whole or not at all.

    Args:
        folder: A checkpoint, as `promptcam train`, `promptcam convert` or `save_pretrained` writes it.
        repo_id: Its id on the Hub, for title and snippets. Default: that which the folder is to be opened by.
        license: Identifier of the Hub's list, such as `"cc-by-4.0"`. Default: that of the card, if it says any.

    Raises:
        ValueError: If the folder is no Prompt-CAM checkpoint, or one of its files cannot be read.
    """
    folder = Path(folder)
    card = renew_model_card(folder, read_model_card(folder), repo_id, license)
    write_atomically(folder / CARD, card)


def read_model_card(folder: Path) -> str | None:
    """The text of `folder/README.md`, line ends as they are; None where there is none."""
    path = folder / CARD
    return decode_model_card(path.read_bytes(), path) if path.is_file() else None


def decode_model_card(content: bytes, source: str | os.PathLike) -> str:
    """A card's text from its bytes; a `ValueError` that names its source where it is no text."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text (byte {error.start}); save it as such.") from None


def renew_model_card(folder: Path, card: str | None, repo_id: str | None, license: str | None) -> str:
    """
    What `write_model_card` writes.

    Args:
        card: The card as it is, or None for a new one.

    Raises:
        ValueError: As `write_model_card`.
    """
    config = read_config(folder)
    results, recipe = _read_results(folder), _read_recipe(folder)
    renewed = _parse(card or "")
    data: Any = renewed.data
    title = (repo_id or folder.resolve().name).split("/")[-1]

    data.library_name = "transformers"
    data.pipeline_tag = "image-classification"
    data.tags = list(dict.fromkeys([*(data.tags or []), *TAGS]))
    data.license = license or data.license
    training_data = recipe.get("data")
    if _is_hub_id(config.backbone, config.backbone_revision):
        data.base_model = config.backbone
    if training_data and results.get("hub_id") == training_data:
        data.datasets = [training_data]
    others = [result for result in data.eval_results or [] if result.metric_args != OUR_METRIC]
    data.eval_results = _eval_results(results) + others or None
    if data.eval_results:
        data.model_name = title
        data.metrics = list(dict.fromkeys([*(data.metrics or []), "accuracy"]))

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
        image_size=_by(config.backbone_config.image_size),
        prompts_only=config.prompts_only,
        results=results,
        measures=_measures(results),
        calibration=results.get("calibration_error"),
        data=results.get("hub_id") or _without_folders(results.get("data")),
        per_class=_read_per_class(folder),
        recipe=[(key.replace("_", " "), _without_folders(value)) for key, value in _shown(recipe)],
        training_data=training_data and _without_folders(training_data, training_data == results.get("hub_id")),
        has_traits=(folder / "evaluation" / "traits.png").is_file(),
        has_confusions=(folder / "evaluation" / "confusions.png").is_file(),
        text=_text,
        code=lambda text: json.dumps(text, ensure_ascii=False),
        percent=lambda share: f"{float(share):.1%}" if share != "" else "",
    ).text
    blocks = re.sub(r"\n{3,}", "\n\n", generated).strip()
    generated = f"{START}\n\n{blocks}\n\n{END}"
    parts = _split(renewed.text)
    if parts is not None:
        renewed.text = generated.join(parts)
    elif not renewed.text.strip():
        renewed.text = generated + "\n"
    return str(renewed)


def own_text(card: str) -> str:
    """What a card says besides its generated part and its metadata; empty where it says nothing."""
    text = _parse(card).text
    return "\n\n".join(part.strip() for part in _split(text) or (text,)).strip()


def add_metadata(card: str, other: str) -> str:
    """A card with the metadata of another where it has none itself, and the tags and results of both."""
    merged = _parse(card)
    source: Any = _parse(other).data
    for key, value in vars(source).items():
        if merged.data.get(key) is None:
            merged.data[key] = value
    for key in ("tags", "eval_results"):
        both = [*(merged.data.get(key) or []), *(source.get(key) or [])]
        merged.data[key] = [value for index, value in enumerate(both) if value not in both[:index]] or None
    return str(merged)


def read_config(folder: Path) -> PromptCamConfig:
    """The configuration of a checkpoint.

    Raises:
        ValueError: If the folder holds none, or another model's.
    """
    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(
            f"{folder} {found}; expected a checkpoint that `promptcam train` or `promptcam convert` wrote."
        )
    try:
        return PromptCamConfig.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read ({str(error).splitlines()[0]}).") from None


def _parse(card: str) -> ModelCard:
    # Without any metadata huggingface_hub would warn
    if not re.match(r"\s*---\s", card):
        card = f"---\n\n---\n{card}"
    try:
        return ModelCard(card)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{CARD}: its metadata, between the two lines '---', cannot be read ({reason}).") from None


def _split(text: str) -> tuple[str, str] | None:
    """The text before and after the generated part; None where there is no such part."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return (before, after) if start and end else None


def _is_hub_id(backbone: Any, revision: str | None) -> bool:
    """Whether a backbone is one of the Hub: a folder has no commit, and its name seldom the form namespace/name."""
    if not isinstance(backbone, str) or backbone.count("/") != 1:
        return False
    try:
        validate_repo_id(backbone)
    except HFValidationError:
        return False
    return revision is not None or not Path(backbone).exists()


def _eval_results(results: dict[str, Any]) -> list[EvalResult]:
    data = results.get("hub_id") or _without_folders(results.get("data") or "photographs")
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=data,  # huggingface_hub makes one of results whose data sets differ in the name alone
            dataset_name=data,
            dataset_split=results.get("split"),
            metric_type=key,
            metric_name=name,
            metric_value=results[key],
            metric_args=OUR_METRIC,
        )
        for key, (name, _) in MEASURES.items()
        if key in results
    ]


def _measures(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows for people: name, value, meaning. With five classes or fewer, top-5 says nothing."""
    trivial = {"top5_accuracy"} if results.get("num_classes", 0) <= 5 else set()
    return [
        (name, f"{results[key]:.1%}", meaning)
        for key, (name, meaning) in MEASURES.items()
        if key in results and key not in trivial
    ]


def _describe_backbone(config: PromptCamConfig) -> str:
    sizes = config.backbone_config
    family = FAMILIES.get(sizes.model_type, sizes.model_type)
    description = (
        f"{family}, {sizes.num_hidden_layers} layers of {sizes.num_attention_heads} heads, hidden size "
        f"{sizes.hidden_size}, patches of {_by(sizes.patch_size)} pixels"
    )
    name, revision = config.backbone, config.backbone_revision
    if not name:
        return description
    if not _is_hub_id(name, revision):
        return f"{_text(_without_folders(name, False))}: {description}"
    at = f" (commit {_text(revision[:8])})" if revision else ""
    return f"[{name}](https://huggingface.co/{name}){at}: {description}"


def _describe_prompts(config: PromptCamConfig) -> str:
    last, entry = config.backbone_config.num_hidden_layers, config.class_prompt_layer
    variant = {last: "Prompt-CAM-Deep: ", 1: "Prompt-CAM-Shallow: "}.get(entry, "")
    description = f"{variant}one for each class, from layer {entry} of {last} on"
    if config.num_agnostic_layers and config.num_agnostic_prompts:
        first = config.first_prompted_layer
        layers = f"layer {first}" if entry - 1 == first else f"each of the layers {first} to {entry - 1}"
        description += f"; {config.num_agnostic_prompts} for all classes together in {layers}"
    return description


def _count_learned(config: PromptCamConfig) -> int:
    num_prompts = config.num_agnostic_layers * config.num_agnostic_prompts + len(config.id2label)
    return (num_prompts + 1) * config.backbone_config.hidden_size + 1


def _shown(recipe: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, recipe[key]) for key in RECIPE_OPTIONS if recipe.get(key) is not None]


def _without_folders(value: Any, is_hub_id: bool = False) -> Any:
    """A path without the folders that it lies in, which are nobody else's business; other values as they are."""
    if isinstance(value, str) and not is_hub_id and os.sep in value:
        return PurePath(value).name
    return value


def _by(size: int | list[int] | tuple[int, int]) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} × {width}"  # noqa: RUF001


def _text(value: Any) -> str:
    """A value as plain text in Markdown, on one line and in a cell of a table."""
    text = " ".join(str(value).split())
    # An underscore within a word is only an underscore
    return re.sub(r"([\\`*\[\]<>&|#~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def _read_results(folder: Path) -> dict[str, Any]:
    return _read_mapping(folder / "evaluation" / "results.json")


def _read_recipe(folder: Path) -> dict[str, Any]:
    return _read_mapping(folder / "recipe.yaml")


def _read_mapping(path: Path) -> dict[str, Any]:
    """What a JSON or YAML file says; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        # JSON by its own reader: YAML takes 1e-05 for text
        content = (
            json.loads(path.read_text(encoding="utf-8"))
            if path.suffix == ".json"
            else yaml.safe_load(path.read_text(encoding="utf-8"))
        )
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; expected names and values.")
    return content


def _read_per_class(folder: Path) -> list[dict[str, str]]:
    path = folder / "evaluation" / "per_class.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = PER_CLASS - (rows[0].keys() if rows else PER_CLASS)
    if missing:
        raise ValueError(f"{path} has no column {min(missing)}; expected what `promptcam evaluate` writes.")
    return rows
