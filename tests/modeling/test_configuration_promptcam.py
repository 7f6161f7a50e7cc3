"""The configuration as transformers uses one: built, contradicted, saved, loaded, overridden."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageClassification, Dinov2Config, ViTConfig

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification

from ..tiny_models import FAMILIES, NUM_LABELS, NUM_LAYERS, tiny_config, tiny_model

CONFIG_CLASSES = {"vit": ViTConfig, "dinov2": Dinov2Config}
NAMES = ["wren", "robin", "finch", "heron", "swift"]
ID2LABEL = dict(enumerate(NAMES))
LABEL2ID = {name: index for index, name in ID2LABEL.items()}


def saved(config: PromptCamConfig, path: Path) -> Path:
    config.save_pretrained(path)
    return path


def content(config: PromptCamConfig) -> dict[str, Any]:
    """All but where the configuration was loaded from."""
    return {name: value for name, value in config.to_dict().items() if name not in ("_name_or_path", "auto_map")}


# --- Defaults --------------------------------------------------------------------------------------------------------


def test_defaults_are_deep_prompts_on_a_base_vit() -> None:
    config = PromptCamConfig()
    assert isinstance(config.backbone_config, ViTConfig)
    assert config.backbone_config.to_dict() == ViTConfig().to_dict()
    assert (config.class_prompt_layer, config.num_prompted_layers) == (12, 12)
    assert (config.num_labels, config.num_agnostic_prompts) == (2, 2)
    assert (config.prompt_dropout, config.drop_path_rate, config.patch_dropout) == (0.0, 0.0, 0.0)


def test_defaults_follow_the_backbone_and_the_classes() -> None:
    config = PromptCamConfig(backbone_config={"model_type": "dinov2", "num_hidden_layers": 5}, num_labels=7)
    assert (config.class_prompt_layer, config.num_prompted_layers, config.num_agnostic_prompts) == (5, 5, 7)


def test_backbone_config_without_a_model_type_is_a_vit() -> None:
    config = PromptCamConfig(backbone_config={"hidden_size": 96})
    assert isinstance(config.backbone_config, ViTConfig)
    assert config.backbone_config.hidden_size == 96


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_config_may_be_a_config_or_a_dict(family: str) -> None:
    backbone = CONFIG_CLASSES[family](hidden_size=96, num_hidden_layers=4)
    from_object = PromptCamConfig(backbone_config=backbone)
    from_dict = PromptCamConfig(backbone_config=backbone.to_dict())
    assert type(from_dict.backbone_config) is CONFIG_CLASSES[family]
    assert from_object.to_dict() == from_dict.to_dict()


def test_backbone_config_dict_is_left_as_it_was() -> None:
    backbone = {"model_type": "dinov2", "hidden_size": 96}
    PromptCamConfig(backbone_config=backbone)
    assert backbone == {"model_type": "dinov2", "hidden_size": 96}


@pytest.mark.parametrize(
    ("class_prompt_layer", "num_prompted_layers", "first", "num_agnostic_layers"),
    [(3, 3, 1, 2), (1, 3, 1, 0), (2, 3, 1, 1), (3, 2, 2, 1), (2, 2, 2, 0), (3, 1, 3, 0)],
)
def test_prompted_layers_are_counted(
    class_prompt_layer: int, num_prompted_layers: int, first: int, num_agnostic_layers: int
) -> None:
    config = tiny_config(class_prompt_layer=class_prompt_layer, num_prompted_layers=num_prompted_layers)
    assert (config.first_prompted_layer, config.num_agnostic_layers) == (first, num_agnostic_layers)


# --- Classes ---------------------------------------------------------------------------------------------------------


def test_id2label_gives_the_number_of_classes_and_label2id() -> None:
    config = PromptCamConfig(id2label=ID2LABEL)
    assert (config.num_labels, config.id2label, config.label2id) == (NUM_LABELS, ID2LABEL, LABEL2ID)


def test_id2label_keys_of_json_become_integers() -> None:
    config = PromptCamConfig(id2label={str(index): name for index, name in ID2LABEL.items()}, label2id=LABEL2ID)
    assert (config.id2label, config.label2id) == (ID2LABEL, LABEL2ID)


def test_label2id_alone_names_the_classes() -> None:
    config = PromptCamConfig(label2id=LABEL2ID, num_labels=NUM_LABELS)
    assert (config.id2label, config.label2id) == (ID2LABEL, LABEL2ID)


def test_setting_num_labels_renames_the_classes() -> None:
    config = tiny_config()
    config.num_labels = 7
    assert len(config.id2label) == len(config.label2id) == 7
    config.validate_architecture()


# --- Contradictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"class_prompt_layer": 0}, ["class_prompt_layer=0", "num_hidden_layers=3", "1 to 3"]),
        ({"class_prompt_layer": -1}, ["class_prompt_layer=-1", "num_hidden_layers=3", "1 to 3"]),
        ({"class_prompt_layer": 4}, ["class_prompt_layer=4", "num_hidden_layers=3", "1 to 3"]),
        ({"num_prompted_layers": 0}, ["num_prompted_layers=0", "num_hidden_layers=3", "1 to 3"]),
        ({"num_prompted_layers": 4}, ["num_prompted_layers=4", "num_hidden_layers=3", "1 to 3"]),
        ({"class_prompt_layer": 1, "num_prompted_layers": 2}, ["class_prompt_layer=1", "num_prompted_layers=2"]),
        ({"class_prompt_layer": 2, "num_prompted_layers": 1}, ["class_prompt_layer=2", "num_prompted_layers=1"]),
        ({"num_agnostic_prompts": -1}, ["num_agnostic_prompts=-1", "0 or more"]),
        ({"prompt_dropout": 1.0}, ["prompt_dropout=1.0", "[0, 1)"]),
        ({"prompt_dropout": -0.1}, ["prompt_dropout=-0.1", "[0, 1)"]),
        ({"prompt_dropout": float("nan")}, ["prompt_dropout=nan", "[0, 1)"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate=1.0", "[0, 1)"]),
        ({"drop_path_rate": -0.1}, ["drop_path_rate=-0.1", "[0, 1)"]),
        ({"patch_dropout": 1.0}, ["patch_dropout=1.0", "[0, 1)"]),
        ({"num_labels": 1}, ["num_labels=1", "at least 2"]),
        ({"num_labels": 0}, ["num_labels=0", "at least 2"]),
        ({"num_labels": 4, "id2label": ID2LABEL}, ["num_labels=4", "id2label", "5"]),
        ({"id2label": ID2LABEL, "label2id": LABEL2ID | {"wren": 1, "robin": 0}}, ["id2label", "label2id", "wren"]),
        ({"id2label": ID2LABEL, "label2id": {"wren": 0}}, ["id2label", "label2id", "robin"]),
        ({"id2label": ID2LABEL, "label2id": LABEL2ID | {"crow": 5}}, ["id2label", "label2id", "crow"]),
        ({"id2label": {0: "wren", 1: "robin", 2: "wren", 3: "heron", 4: "swift"}}, ["id2label", "wren", "0", "2"]),
        ({"num_labels": 7, "label2id": LABEL2ID}, ["num_labels=7", "5"]),
    ],
)
def test_values_that_contradict_each_other_are_named(settings: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        tiny_config(**settings)
    assert [words for words in said if words not in str(caught.value)] == []


def test_id2label_has_to_count_from_zero() -> None:
    with pytest.raises(ValueError, match="id2label"):
        PromptCamConfig(id2label={1: "wren", 2: "robin"})


@pytest.mark.parametrize("name", ["class_prompt_layer", "num_prompted_layers", "num_agnostic_prompts"])
@pytest.mark.parametrize("value", [1.5, "2"])
def test_counts_have_to_be_integers(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError, StrictDataclassError), match=name):
        tiny_config(**{"num_prompted_layers": NUM_LAYERS, "class_prompt_layer": NUM_LAYERS} | {name: value})


@pytest.mark.parametrize("name", ["prompt_dropout", "drop_path_rate", "patch_dropout"])
def test_rates_have_to_be_numbers(name: str) -> None:
    with pytest.raises((ValueError, TypeError, StrictDataclassError), match=name):
        tiny_config(**{name: "0.1"})


@pytest.mark.parametrize("model_type", ["clip", "siglip", "swin", "bert"])
def test_unsupported_backbone_is_named(model_type: str) -> None:
    with pytest.raises(ValueError, match=rf"'?{model_type}'?.*vit.*dinov2"):
        PromptCamForImageClassification(PromptCamConfig(backbone_config={"model_type": model_type}))


def test_unknown_backbone_is_named() -> None:
    with pytest.raises(ValueError, match="no-such-family"):
        PromptCamConfig(backbone_config={"model_type": "no-such-family"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("class_prompt_layer", 9), ("num_prompted_layers", 0), ("prompt_dropout", 2.0), ("id2label", {0: "a", 1: "b"})],
)
def test_values_set_later_are_checked_when_a_model_is_built(name: str, value: Any) -> None:
    config = tiny_config()
    setattr(config, name, value)
    with pytest.raises(ValueError, match=name):
        PromptCamForImageClassification(config)


# --- Saving and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_and_loading_keeps_everything(family: str, tmp_path: Path) -> None:
    config = tiny_config(
        family,
        2,
        backbone={"hidden_dropout_prob": 0.25, "layer_norm_eps": 1e-5},
        id2label=ID2LABEL,
        num_prompted_layers=2,
        prompt_dropout=0.1,
        drop_path_rate=0.2,
    )
    loaded = PromptCamConfig.from_pretrained(saved(config, tmp_path))
    assert content(loaded) == content(config)
    assert type(loaded.backbone_config) is CONFIG_CLASSES[family]
    assert (loaded.backbone_config.hidden_dropout_prob, loaded.backbone_config.layer_norm_eps) == (0.25, 1e-5)
    assert (loaded.class_prompt_layer, loaded.num_prompted_layers, loaded.num_agnostic_prompts) == (2, 2, 4)
    assert (loaded.prompt_dropout, loaded.drop_path_rate) == (0.1, 0.2)
    assert (loaded.id2label, loaded.label2id) == (ID2LABEL, LABEL2ID)


def test_saving_twice_writes_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    saved(PromptCamConfig.from_pretrained(saved(tiny_config(), first)), second)
    assert (first / "config.json").read_text() == (second / "config.json").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_dict_and_json_lead_back_to_the_config(family: str, tmp_path: Path) -> None:
    config = tiny_config(family, 2)
    assert PromptCamConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert PromptCamConfig(**config.to_diff_dict()).to_dict() == config.to_dict()
    assert PromptCamConfig(**json.loads(config.to_json_string())).to_dict() == config.to_dict()
    config.to_json_file(tmp_path / "config.json")
    assert PromptCamConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()


def test_copies_are_equal_and_independent() -> None:
    config = tiny_config()
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        twin.backbone_config.hidden_size = 64
        assert config.backbone_config.hidden_size == 32


def test_to_dict_shares_nothing_with_the_config() -> None:
    config = tiny_config()
    config.to_dict()["backbone_config"]["hidden_size"] = 64
    assert config.backbone_config.hidden_size == 32


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_config_finds_it(family: str, tmp_path: Path) -> None:
    loaded = AutoConfig.from_pretrained(saved(tiny_config(family), tmp_path))
    assert type(loaded) is PromptCamConfig
    assert content(loaded) == content(tiny_config(family))
    assert type(AutoConfig.for_model("promptcam")) is PromptCamConfig


def test_checkpoint_of_another_type_is_refused(tmp_path: Path) -> None:
    ViTConfig(hidden_size=32, num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'vit'.*'promptcam'.*from_backbone"):
        PromptCamConfig.from_pretrained(tmp_path)


# --- Overriding what was saved ---------------------------------------------------------------------------------------


def test_loading_takes_other_values(tmp_path: Path) -> None:
    path = saved(tiny_config(), tmp_path)
    loaded = PromptCamConfig.from_pretrained(path, prompt_dropout=0.3, drop_path_rate=0.2, class_prompt_layer=2)
    assert (loaded.prompt_dropout, loaded.drop_path_rate, loaded.class_prompt_layer) == (0.3, 0.2, 2)
    assert loaded.num_agnostic_prompts == 4


def test_loading_hands_back_what_it_does_not_know(tmp_path: Path) -> None:
    path = saved(tiny_config(), tmp_path)
    loaded, rest = PromptCamConfig.from_pretrained(path, prompt_dropout=0.3, unknown=1, return_unused_kwargs=True)
    assert (loaded.prompt_dropout, rest) == (0.3, {"unknown": 1})


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_takes_other_values_for_the_backbone(family: str, tmp_path: Path) -> None:
    path = saved(tiny_config(family), tmp_path)
    loaded = PromptCamConfig.from_pretrained(path, backbone_config={"hidden_dropout_prob": 0.4})
    expected = tiny_config(family).backbone_config.to_dict() | {"hidden_dropout_prob": 0.4}
    assert loaded.backbone_config.to_dict() == expected
    assert type(loaded.backbone_config) is CONFIG_CLASSES[family]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"class_prompt_layer": 9}, "class_prompt_layer=9"),
        ({"num_prompted_layers": 1, "class_prompt_layer": 2}, "num_prompted_layers"),
        ({"prompt_dropout": 1.5}, r"prompt_dropout=1\.5"),
        ({"num_labels": 7, "id2label": ID2LABEL}, "num_labels=7"),
    ],
)
def test_model_is_not_loaded_with_contradictions(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        PromptCamForImageClassification.from_pretrained(tmp_path, **settings)


# --- What transformers sets on a configuration -----------------------------------------------------------------------


def test_attention_implementation_reaches_the_backbone() -> None:
    config = tiny_config(attn_implementation="eager")
    model = PromptCamForImageClassification(config)
    assert model.config._attn_implementation == model.backbone.config._attn_implementation == "eager"


def test_attention_outputs_are_asked_for_with_eager_attention_only() -> None:
    config = tiny_config(attn_implementation="sdpa")
    with pytest.raises(ValueError, match="eager"):
        config.output_attentions = True
    config = tiny_config(attn_implementation="eager", output_attentions=True)
    assert config.output_attentions


def test_model_keeps_the_backbone_config_it_was_given() -> None:
    model = PromptCamForImageClassification(tiny_config())
    assert model.backbone.config is model.config.backbone_config


def test_auto_model_is_built_from_the_config() -> None:
    model = AutoModelForImageClassification.from_config(tiny_config("dinov2", 2))
    assert type(model) is PromptCamForImageClassification
    assert model.class_prompts.shape == (NUM_LABELS, 32)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan"), "1"])
def test_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ValueError, match=r"^temperature=.*: expected a number greater than 0\.$"):
        PromptCamConfig(temperature=temperature)
