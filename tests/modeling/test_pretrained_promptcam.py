"""How weights start, are saved, loaded, copied and trained, for every backbone and place where class prompts enter."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification

from ..tiny_models import (
    HIDDEN_SIZE,
    NUM_AGNOSTIC,
    NUM_LABELS,
    NUM_LAYERS,
    images,
    tiny_config,
    tiny_model,
)
from .common import (
    LABELS,
    PROMPT_BOUND,
    all_cases,
    all_families,
    assert_same_logits,
    assert_same_weights,
    edit_weights,
    gradients,
    is_uniform_in,
    load,
    load_with_info,
    logits_of,
    part,
    prompts_and_head,
    saved,
    trainable,
)

# The names that all supported releases of transformers know
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")


# --- Initialisation --------------------------------------------------------------------------------------------------


def new_model(way: str, family: str, layer: int) -> PromptCamForImageClassification:
    config = tiny_config(family, layer)
    if way == "constructed":
        return PromptCamForImageClassification(config)
    if way == "meta":
        with torch.device("meta"):
            model = PromptCamForImageClassification(config)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        model.init_weights()
        return model
    without_weights = {"config": config, "state_dict": {}, "output_loading_info": True}
    return PromptCamForImageClassification.from_pretrained(None, **without_weights)[0]


@all_cases
@pytest.mark.parametrize("way", ["constructed", "meta", "pretrained without weights"])
def test_weights_of_a_new_model(way: str, family: str, layer: int) -> None:
    model = new_model(way, family, layer)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []
    assert is_uniform_in(model.class_prompts, PROMPT_BOUND)
    assert layer == 1 or is_uniform_in(model.agnostic_prompts, PROMPT_BOUND)
    assert model.score_head.bias.eq(0).all()
    assert 0.01 < model.score_head.weight.std() < 0.03
    for index in range(1, NUM_LAYERS + 1):
        parts = model.layer_parts(index)
        for linear in (parts.query, parts.key, parts.value, parts.output):
            # The backbone's own initializer_range, 0.2 in tiny models
            assert 0.17 < linear.weight.std() < 0.23
            assert linear.bias.eq(0).all()
        for norm in (parts.norm1, parts.norm2):
            assert norm.weight.eq(1).all()
            assert norm.bias.eq(0).all()
        for scale in (parts.scale1, parts.scale2):
            assert all(parameter.eq(1).all() for parameter in scale.parameters())
    assert logits_of(model.eval()).isfinite().all()


def test_prompt_bound_follows_channels_patch_and_hidden_size() -> None:
    backbone = {"num_channels": 1, "patch_size": (4, 16), "hidden_size": 64}
    model = PromptCamForImageClassification(tiny_config("vit", backbone=backbone))
    bound = (6 / (1 * 4 * 16 + 64)) ** 0.5
    assert is_uniform_in(model.class_prompts, bound)
    assert is_uniform_in(model.agnostic_prompts, bound)


@all_families
def test_prompts_of_different_layers_and_classes_differ(family: str) -> None:
    model = PromptCamForImageClassification(tiny_config(family))
    prompts = torch.cat([model.class_prompts, *model.agnostic_prompts])
    assert len(prompts.unique(dim=0)) == NUM_LABELS + (NUM_LAYERS - 1) * NUM_AGNOSTIC


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (2, NUM_AGNOSTIC, HIDDEN_SIZE)),
        ({"num_prompted_layers": 2}, (1, NUM_AGNOSTIC, HIDDEN_SIZE)),
        ({"num_prompted_layers": 1}, None),
        ({"num_agnostic_prompts": 0}, None),
        ({"class_prompt_layer": 1}, None),
    ],
)
def test_agnostic_prompts_exist_where_they_are_used(settings: dict[str, int], shape: tuple[int, ...] | None) -> None:
    model = tiny_model(**settings)
    assert (None if model.agnostic_prompts is None else tuple(model.agnostic_prompts.shape)) == shape
    assert logits_of(model).isfinite().all()


# --- Saving and loading ----------------------------------------------------------------------------------------------


@all_cases
def test_saving_and_loading_keeps_logits_and_weights(family: str, layer: int, tmp_path: Path) -> None:
    model = tiny_model(family, layer)
    loaded, info = load_with_info(saved(model, tmp_path))
    assert not any(info.values()), info
    assert not loaded.training
    assert_same_weights(model, loaded)
    assert_same_logits(loaded, model)
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())


@all_families
def test_saving_in_shards(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    saved(model, tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert not (tmp_path / "model.safetensors").exists()
    loaded, info = load_with_info(tmp_path)
    assert not any(info.values()), info
    assert_same_weights(model, loaded)
    assert_same_logits(loaded, model)


def test_checkpoint_holds_each_weight_once_and_nothing_else(tmp_path: Path) -> None:
    model = tiny_model()
    with safe_open(saved(model, tmp_path) / "model.safetensors", framework="pt") as file:
        sizes = [file.get_tensor(name).numel() for name in list(file.keys())]
    assert len(sizes) == len(model.state_dict())
    assert sum(sizes) == model.num_parameters()
    assert not (tmp_path / "generation_config.json").exists()


def test_loading_from_a_state_dict() -> None:
    model = tiny_model()
    state_dict = {name: weight.clone() for name, weight in model.state_dict().items()}
    loaded = PromptCamForImageClassification.from_pretrained(None, config=model.config, state_dict=state_dict)
    assert_same_weights(model, loaded)


def test_loading_within_a_device_context(tmp_path: Path) -> None:
    model = tiny_model()
    path = saved(model, tmp_path)
    with torch.device("cpu"):
        assert_same_logits(load(path), model)


@all_families
def test_auto_model_loads_it(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, 2)
    loaded = AutoModelForImageClassification.from_pretrained(saved(model, tmp_path))
    assert type(loaded) is PromptCamForImageClassification
    assert type(loaded.config) is PromptCamConfig
    assert_same_logits(loaded, model)


@all_families
@pytest.mark.parametrize("missing", ["class_prompts", "agnostic_prompts"])
def test_missing_prompts_are_reported_and_start_anew(family: str, missing: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    edit_weights(saved(model, tmp_path), lambda weights: weights.pop(missing))
    loaded, info = load_with_info(tmp_path)
    assert info["missing_keys"] == {missing}
    assert not info["unexpected_keys"]
    found, expected = loaded.state_dict(), model.state_dict()
    assert is_uniform_in(found.pop(missing), PROMPT_BOUND)
    assert [name for name, weight in found.items() if not torch.equal(weight, expected[name])] == []


def test_checkpoint_that_lacks_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    edit_weights(saved(tiny_model(), tmp_path), lambda weights: weights.pop("class_prompts"))
    with pytest.raises(ValueError, match=rf"^{tmp_path} lacks the weights class_prompts; expected a complete .*\.$"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the weights class_prompts; expected"):
        AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    with pytest.raises(ValueError, match=r"^The state_dict lacks the weights agnostic_prompts, .* and \d+ more; "):
        PromptCamForImageClassification.from_pretrained(None, config=tiny_config(), state_dict={})


@all_families
@pytest.mark.parametrize("name", ["query", "norm1", "output"])
def test_missing_backbone_weights_are_reported_and_start_anew(family: str, name: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    missing = part(model, 2, name) + ".weight"
    saved(model, tmp_path)
    # Names on disk are those of an older release: find the weight by its value
    target = model.state_dict()[missing]
    on_disk = [key for key, weight in load_file(tmp_path / "model.safetensors").items() if torch.equal(weight, target)]
    assert len(on_disk) == 1
    edit_weights(tmp_path, lambda weights: weights.pop(on_disk[0]))
    loaded, info = load_with_info(tmp_path)
    assert info["missing_keys"] == {missing}
    found, expected = loaded.state_dict(), model.state_dict()
    weight = found.pop(missing)
    assert weight.eq(1).all() if name == "norm1" else 0.17 < weight.std() < 0.23
    assert [key for key, weight in found.items() if not torch.equal(weight, expected[key])] == []
    assert trainable(loaded) == prompts_and_head(NUM_LAYERS)


@all_cases
def test_every_weight_is_missing_from_an_empty_checkpoint(family: str, layer: int, tmp_path: Path) -> None:
    path = saved(tiny_model(family, layer), tmp_path)
    save_file({"stranger": torch.ones(2)}, path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = load_with_info(path)
    assert info["missing_keys"] == set(loaded.state_dict())
    assert info["unexpected_keys"] == {"stranger"}
    assert is_uniform_in(loaded.class_prompts, PROMPT_BOUND)
    assert logits_of(loaded).isfinite().all()


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    path = saved(tiny_model(), tmp_path)
    edit_weights(path, lambda weights: weights.update(class_prompts=torch.zeros(7, HIDDEN_SIZE)))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(path)


@all_cases
def test_weights_of_another_size_start_anew_where_that_is_asked_for(family: str, layer: int, tmp_path: Path) -> None:
    model = tiny_model(family, layer)
    path = saved(model, tmp_path)
    edit_weights(path, lambda weights: weights.update(class_prompts=torch.zeros(7, HIDDEN_SIZE)))
    loaded, info = load_with_info(path, ignore_mismatched_sizes=True)
    assert {mismatched[0] for mismatched in info["mismatched_keys"]} == {"class_prompts"}
    found, expected = loaded.state_dict(), model.state_dict()
    assert is_uniform_in(found.pop("class_prompts"), PROMPT_BOUND)
    assert [name for name, weight in found.items() if not torch.equal(weight, expected[name])] == []


@all_families
@pytest.mark.parametrize(
    "classes",
    [
        {"num_labels": 7},
        {"id2label": {index: f"class {index}" for index in range(7)}},
        {
            "id2label": {index: f"class {index}" for index in range(7)},
            "label2id": {f"class {index}": index for index in range(7)},
        },
    ],
    ids=["num_labels", "id2label", "id2label and label2id"],
)
def test_trained_model_is_taken_to_another_set_of_classes(family: str, classes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(family, 2)
    loaded, info = load_with_info(saved(model, tmp_path), ignore_mismatched_sizes=True, **classes)
    assert {mismatched[0] for mismatched in info["mismatched_keys"]} == {"class_prompts"}
    assert loaded.config.num_labels == loaded.num_labels == 7
    assert len(loaded.config.label2id) == 7
    assert logits_of(loaded).shape == (2, 7)
    assert is_uniform_in(loaded.class_prompts, PROMPT_BOUND)
    assert torch.equal(loaded.agnostic_prompts, model.agnostic_prompts)


@all_families
def test_loading_takes_other_settings(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    loaded = load(saved(model, tmp_path), prompt_dropout=0.5, drop_path_rate=0.25)
    assert (loaded.prompt_dropout.p, loaded.config.drop_path_rate) == (0.5, 0.25)
    assert_same_logits(loaded, model)


# --- Copies ----------------------------------------------------------------------------------------------------------


@all_families
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_give_the_same_logits(way: Callable, family: str) -> None:
    model = tiny_model(family)
    before = logits_of(model)
    twin = way(model)
    assert torch.equal(logits_of(twin), before)
    assert trainable(twin) == trainable(model)
    with torch.no_grad():
        twin.class_prompts.add_(1)
    assert not torch.equal(logits_of(twin), before)
    assert torch.equal(logits_of(model), before)


# --- Training --------------------------------------------------------------------------------------------------------


@all_cases
def test_prompts_and_head_alone_are_trained(family: str, layer: int, tmp_path: Path) -> None:
    model = tiny_model(family, layer)
    loaded = load(saved(model, tmp_path))
    for candidate in (model, loaded):
        assert trainable(candidate) == prompts_and_head(layer)
        _, found = gradients(candidate.train())
        assert set(found) == prompts_and_head(layer)
        # Softmax does not see what it adds to all logits alike
        sizes = {name: gradient.abs().sum().item() for name, gradient in found.items()}
        assert {name for name, size in sizes.items() if size < 1e-5 * max(sizes.values())} == {"score_head.bias"}


@all_cases
def test_parameters_are_counted(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    expected = (NUM_LABELS + (layer - 1) * NUM_AGNOSTIC + 1) * HIDDEN_SIZE + 1
    assert model.num_parameters(only_trainable=True) == expected
    assert model.num_parameters() == expected + model.backbone.num_parameters()


@all_cases
def test_step_of_the_optimiser_leaves_the_backbone_alone(family: str, layer: int) -> None:
    model = tiny_model(family, layer).train()
    backbone = copy.deepcopy(model.backbone)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before, _ = gradients(model)
    for _ in range(3):
        gradients(model)
        optimiser.step()
    after, _ = gradients(model)
    assert after < before
    assert_same_weights(backbone, model.backbone)


@all_families
def test_backbone_may_be_trained_too(family: str) -> None:
    model = tiny_model(family, 2).train().requires_grad_(True)
    _, found = gradients(model)
    unused = {"backbone.embeddings.mask_token"} if family == "dinov2" else set()
    assert {name for name, _ in model.named_parameters()} - set(found) == unused


@all_families
def test_backbone_drops_nothing_in_training(family: str) -> None:
    drop = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    drop |= {"drop_path_rate": 0.5} if family == "dinov2" else {}
    model = tiny_model(family, 2, backbone=drop)
    expected = model(images()).logits
    model.train()
    assert model.training
    assert [name for name, module in model.backbone.named_modules() if module.training] == []
    for _ in range(3):
        assert torch.equal(model(images()).logits, expected)


@all_families
def test_backbone_of_a_new_model_drops_nothing(family: str) -> None:
    model = PromptCamForImageClassification(tiny_config(family, backbone={"hidden_dropout_prob": 0.5}))
    assert torch.equal(model(images()).logits, model(images()).logits)


@pytest.mark.parametrize("rate", ["prompt_dropout", "drop_path_rate", "patch_dropout"])
@all_cases
def test_dropout_of_the_model_acts_in_training_alone(family: str, layer: int, rate: str) -> None:
    model, plain = tiny_model(family, layer, **{rate: 0.5}), tiny_model(family, layer)
    assert torch.equal(logits_of(model), logits_of(plain))
    model.train()
    assert len({tuple(logits_of(model).flatten().tolist()) for _ in range(4)}) > 1
    assert torch.equal(logits_of(model.eval()), logits_of(plain))


@all_cases
@pytest.mark.parametrize("whole", [False, True], ids=["prompts", "whole model"])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_changes_nothing(family: str, layer: int, use_reentrant: bool, whole: bool) -> None:
    model = tiny_model(family, layer, prompt_dropout=0.2, drop_path_rate=0.2, patch_dropout=0.2).train()
    if whole:
        model.requires_grad_(True)
    loss, expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    checkpointed_loss, found = gradients(model)
    torch.testing.assert_close(checkpointed_loss, loss)
    torch.testing.assert_close(found, expected)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    torch.testing.assert_close(gradients(model)[1], expected)


@all_cases
def test_gradient_checkpointing_keeps_less_for_the_backward_pass(family: str, layer: int) -> None:
    def kept(model: PromptCamForImageClassification) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            model(images(), labels=LABELS)
        return sum(sizes)

    model = tiny_model(family, layer).train()
    plain = kept(model)
    model.gradient_checkpointing_enable()
    assert kept(model) < 0.8 * plain


@all_families
def test_gradient_checkpointing_with_attentions_and_hidden_states(family: str) -> None:
    model = tiny_model(family, 2, attn_implementation="eager").train()
    asked = {"output_attentions": True, "output_hidden_states": True}
    expected = model(images(), **asked)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(model(images(), **asked).to_tuple(), expected.to_tuple())


def test_input_gradients_can_be_required() -> None:
    model = tiny_model().train()
    expected = gradients(model)
    model.enable_input_require_grads()
    torch.testing.assert_close(gradients(model), expected)
    model.disable_input_require_grads()
    torch.testing.assert_close(gradients(model), expected)


class Dataset(torch.utils.data.Dataset):
    def __init__(self, size: int):
        self.pixel_values = images(size)

    def __len__(self) -> int:
        return len(self.pixel_values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.pixel_values[index], "labels": index % NUM_LABELS}


@pytest.mark.parametrize(
    ("family", "layer", "settings"),
    [
        ("vit", 3, {}),
        ("dinov2", 2, {"gradient_checkpointing": True}),
        ("vit", 1, {"bf16": True, "gradient_accumulation_steps": 2}),
    ],
)
def test_trainer_trains_evaluates_saves_and_resumes(
    family: str, layer: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(family, layer, prompt_dropout=0.1)
    untrained = copy.deepcopy(model)
    arguments = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "learning_rate": 0.05,
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    } | settings
    trainer = Trainer(model, TrainingArguments(max_steps=2, **arguments), train_dataset=Dataset(8))
    assert trainer.train().global_step == 2
    predictions = trainer.predict(Dataset(5))
    assert predictions.predictions.shape == (5, NUM_LABELS)
    torch.testing.assert_close(
        trainer.evaluate(Dataset(5))["eval_loss"], predictions.metrics["test_loss"], rtol=1e-4, atol=0
    )
    assert_same_weights(untrained.backbone, model.backbone)
    assert not torch.equal(untrained.class_prompts, model.class_prompts)

    trainer.save_model(tmp_path / "final")
    loaded = load(tmp_path / "final")
    assert_same_weights(model, loaded)

    # Another trainer, started from step 1, arrives where the first one did after step 2
    resumed = Trainer(
        tiny_model(family, layer, prompt_dropout=0.1),
        TrainingArguments(max_steps=2, **arguments),
        train_dataset=Dataset(8),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, msg=name)
