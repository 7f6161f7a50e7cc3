"""What transformers expects of every vision model, for every backbone and place where class prompts enter."""

import copy
import inspect
import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification, PromptCamImageClassifierOutput

from ..tiny_models import (
    CASES,
    FAMILIES,
    HIDDEN_SIZE,
    NUM_AGNOSTIC,
    NUM_HEADS,
    NUM_IMAGE_TOKENS,
    NUM_LABELS,
    NUM_LAYERS,
    assert_close,
    images,
    tiny_config,
    tiny_model,
)

# The names that all supported releases of transformers know
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
all_cases = pytest.mark.parametrize(("family", "layer"), CASES)
all_families = pytest.mark.parametrize("family", FAMILIES)
LABELS = torch.tensor([3, 0])
# Xavier-uniform over the pixels of a patch and the hidden size: 3 * 8 * 8 + 32
PROMPT_BOUND = (6 / (3 * 8**2 + HIDDEN_SIZE)) ** 0.5


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def logits_of(model: PromptCamForImageClassification, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(images() if pixel_values is None else pixel_values).logits


def saved(model: PromptCamForImageClassification, path: Path, **kwargs: Any) -> Path:
    model.save_pretrained(path, **kwargs)
    return path


def load(path: Path, **kwargs: Any) -> PromptCamForImageClassification:
    return PromptCamForImageClassification.from_pretrained(path, **kwargs)


def load_with_info(path: Path, **kwargs: Any) -> tuple[PromptCamForImageClassification, dict[str, Any]]:
    return PromptCamForImageClassification.from_pretrained(path, output_loading_info=True, **kwargs)


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def assert_same_logits(a: PromptCamForImageClassification, b: PromptCamForImageClassification) -> None:
    """To rounding: how sums are ordered may depend on where in memory the weights lie."""
    assert_close(logits_of(a), logits_of(b))


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    expected, found = first.state_dict(), second.state_dict()
    assert list(found) == list(expected)
    assert [name for name, weight in expected.items() if not torch.equal(weight, found[name])] == []


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def prompts_and_head(layer: int) -> set[str]:
    agnostic = {"agnostic_prompts"} if layer > 1 else set()
    return {"class_prompts", "score_head.weight", "score_head.bias"} | agnostic


def gradients(model: PromptCamForImageClassification) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one training step, dropout included."""
    model.zero_grad()
    torch.manual_seed(7)
    loss = model(images(), labels=LABELS).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found


def part(model: PromptCamForImageClassification, layer: int, name: str) -> str:
    """Path of a part of layer 1..N within the model, whatever this release of transformers calls it."""
    wanted = getattr(model.layer_parts(layer), name)
    return next(path for path, module in model.named_modules() if module is wanted)


def is_uniform_in(weight: torch.Tensor, bound: float) -> bool:
    """Within the bound, reaching out to it, and as wide as so many values of a uniform distribution are."""
    spread, slack = weight.std() / (bound / 3**0.5), 5 * (0.2 / weight.numel()) ** 0.5
    return bool(0.9 * bound < weight.abs().max() <= bound and abs(spread - 1) < slack)


# --- Signature and outputs -------------------------------------------------------------------------------------------


def test_forward_starts_with_the_main_input() -> None:
    arguments = list(inspect.signature(PromptCamForImageClassification.forward).parameters)
    assert arguments[:3] == ["self", "pixel_values", "labels"]
    assert PromptCamForImageClassification.main_input_name == "pixel_values"
    assert {"output_attentions", "output_hidden_states", "interpolate_pos_encoding", "return_dict"} < set(arguments)


@all_cases
def test_logits_and_loss(family: str, layer: int) -> None:
    output = tiny_model(family, layer)(images(), labels=LABELS)
    assert isinstance(output, PromptCamImageClassifierOutput)
    assert output.logits.shape == (2, NUM_LABELS)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, LABELS))
    assert list(output) == ["loss", "logits"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_may_be_integers_of_any_size(dtype: torch.dtype) -> None:
    model = tiny_model()
    assert torch.equal(model(images(), labels=LABELS.to(dtype)).loss, model(images(), labels=LABELS).loss)


@all_cases
def test_same_input_gives_the_same_output(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    assert torch.equal(logits_of(model), logits_of(model))
    assert torch.equal(model(images()).logits, model(images()).logits)


@all_cases
def test_output_without_gradients_is_the_output_with_them(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    torch.testing.assert_close(logits_of(model), model(images()).logits.detach())


@all_cases
def test_images_of_a_batch_do_not_see_each_other(family: str, layer: int) -> None:
    model = tiny_model(family, layer, attn_implementation="eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    batch = images(3)
    with torch.no_grad():
        together = model(batch, **asked)
        for row in range(3):
            alone = model(batch[row : row + 1], **asked)
            torch.testing.assert_close(together.logits[row : row + 1], alone.logits)
            for name in ("hidden_states", "attentions"):
                for one, of_many in zip(alone[name], together[name], strict=True):
                    torch.testing.assert_close(of_many[row : row + 1], one, msg=f"{name} of row {row}")


@all_cases
def test_batch_without_images(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    output = model(images(0), labels=torch.zeros(0, dtype=torch.long), output_attentions=True)
    assert output.logits.shape == (0, NUM_LABELS)
    assert output.attentions[-1].shape == (0, NUM_HEADS, NUM_LABELS, NUM_LABELS + NUM_IMAGE_TOKENS)
    labels = torch.empty(0, 3, dtype=torch.long)
    for classes, shape in ((None, (0, 2)), (labels[:, 0], (0,)), (labels, (0, 3))):
        ranking = model.rank_heads(images(0), classes, top_k=2)
        assert ranking.num_sufficient.shape == ranking.classes.shape == shape
        assert ranking.order.shape == ranking.blurred_probability.shape == (*shape, NUM_HEADS)
        assert ranking.trait_maps.shape == (*shape, NUM_HEADS, 4, 4)


@all_cases
def test_hidden_states_have_the_documented_shapes(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    with torch.no_grad():
        output = model(images(), output_hidden_states=True)
    entering = [NUM_IMAGE_TOKENS + NUM_LABELS * (number > layer) for number in range(1, NUM_LAYERS + 1)]
    expected = [(2, tokens, HIDDEN_SIZE) for tokens in [*entering, NUM_LABELS]]
    assert [tuple(state.shape) for state in output.hidden_states] == expected
    assert output.attentions is None


@all_cases
@pytest.mark.parametrize(
    ("wanted", "kept"), [([0, -1], {0, NUM_LAYERS}), (-2, {NUM_LAYERS - 1}), ((1, 99), {1}), ([], None)], ids=str
)
def test_some_hidden_states_may_be_asked_for(family: str, layer: int, wanted: Any, kept: set[int] | None) -> None:
    model = tiny_model(family, layer)
    with torch.no_grad():
        every, found = (model(images(), output_hidden_states=which).hidden_states for which in (True, wanted))
    if kept is None:
        assert found is None
        return
    assert [index for index, state in enumerate(found) if state is not None] == sorted(kept)
    for index in kept:
        assert torch.equal(found[index], every[index])


@all_cases
def test_first_hidden_state_is_the_embedding_and_the_last_makes_the_logits(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    with torch.no_grad():
        output = model(images(), output_hidden_states=True)
        assert torch.equal(output.hidden_states[0], model.backbone.embeddings(images()))
        scores = model.score_head(model.backbone.layernorm(output.hidden_states[-1])).squeeze(-1)
    assert torch.equal(output.logits, scores)


@all_cases
def test_attentions_have_the_documented_shapes_and_rows_that_sum_to_one(family: str, layer: int) -> None:
    model = tiny_model(family, layer, attn_implementation="eager")
    with torch.no_grad():
        output = model(images(), output_attentions=True)
    assert len(output.attentions) == NUM_LAYERS - layer + 1
    for attention in output.attentions:
        assert attention.shape == (2, NUM_HEADS, NUM_LABELS, NUM_LABELS + NUM_IMAGE_TOKENS)
        assert attention.min() >= 0
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, NUM_HEADS, NUM_LABELS))
    assert output.hidden_states is None


@all_cases
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_asking_for_more_does_not_change_the_logits(family: str, layer: int, implementation: str) -> None:
    model = tiny_model(family, layer, attn_implementation=implementation)
    with torch.no_grad():
        output = model(images(), output_attentions=True, output_hidden_states=True)
    assert list(output) == ["logits", "hidden_states", "attentions"]
    torch.testing.assert_close(output.logits, logits_of(model))


@all_families
def test_configuration_asks_for_hidden_states_and_attentions(family: str) -> None:
    model = tiny_model(family, 2, attn_implementation="eager", output_attentions=True, output_hidden_states=True)
    with torch.no_grad():
        output = model(images())
        assert (len(output.hidden_states), len(output.attentions)) == (NUM_LAYERS + 1, 2)
        declined = model(images(), output_attentions=False, output_hidden_states=False)
    assert (declined.hidden_states, declined.attentions) == (None, None)
    model.config.output_hidden_states = False
    assert model(images()).hidden_states is None


@all_cases
@pytest.mark.parametrize("labels", [None, LABELS], ids=["unlabelled", "labelled"])
@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}, {"output_attentions": True}])
def test_tuple_holds_what_the_output_holds(
    family: str, layer: int, labels: torch.Tensor | None, asked: dict[str, bool]
) -> None:
    model = tiny_model(family, layer)
    with torch.no_grad():
        as_output = model(images(), labels=labels, **asked)
        as_tuple = model(images(), labels=labels, return_dict=False, **asked)
    assert type(as_tuple) is tuple
    torch.testing.assert_close(as_tuple, as_output.to_tuple(), rtol=0, atol=0)


def test_configuration_asks_for_a_tuple() -> None:
    model = tiny_model(return_dict=False)
    assert type(model(images())) is tuple
    assert isinstance(model(images(), return_dict=True), PromptCamImageClassifierOutput)


@all_cases
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_embeddings_and_attentions_can_be_kept(family: str, layer: int, training: bool) -> None:
    model = tiny_model(family, layer, attn_implementation="eager").train(training)
    output = model(images(), output_hidden_states=True, output_attentions=True)
    kept = [output.hidden_states[0], output.hidden_states[-1], *output.attentions]
    for tensor in kept:
        tensor.retain_grad()
    output.logits[:, 0].sum().backward()
    assert [index for index, tensor in enumerate(kept) if tensor.grad is None or not tensor.grad.any()] == []


@all_cases
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_every_hidden_state_can_be_kept(family: str, layer: int, training: bool) -> None:
    output = tiny_model(family, layer).train(training)(images(), output_hidden_states=True)
    for state in output.hidden_states:
        state.retain_grad()
    output.logits[:, 0].sum().backward()
    without = [i for i, state in enumerate(output.hidden_states) if state.grad is None or not state.grad.any()]
    assert without == []


def test_gradients_reach_the_pixels() -> None:
    pixel_values = images().requires_grad_()
    tiny_model()(pixel_values).logits[:, 0].sum().backward()
    assert pixel_values.grad.flatten(1).any(dim=1).all()


@all_families
def test_attention_implementation_may_be_changed_and_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    before = logits_of(model)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == model.config.backbone_config._attn_implementation == "eager"
    assert torch.equal(logits_of(model), before)


@all_families
def test_greyscale_images(family: str) -> None:
    model = tiny_model(family, backbone={"num_channels": 1})
    assert logits_of(model, images(num_channels=1)).shape == (2, NUM_LABELS)


@all_cases
@pytest.mark.parametrize("size", [(48, 32), (16, 24), (8, 8)])
def test_images_of_another_size(family: str, layer: int, size: tuple[int, int]) -> None:
    model = tiny_model(family, layer, attn_implementation="eager")
    pixel_values = images(size=48)[..., : size[0], : size[1]]
    with torch.no_grad():
        output = model(pixel_values, output_attentions=True, interpolate_pos_encoding=True)
    grid = size[0] // 8, size[1] // 8
    assert output.attentions[-1].shape[-1] == NUM_LABELS + 1 + grid[0] * grid[1]
    assert model.trait_maps(output.attentions[-1], size).shape == (2, NUM_LABELS, NUM_HEADS, *grid)
    assert output.logits.isfinite().all()


# --- Initialisation --------------------------------------------------------------------------------------------------


def new_model(way: str, family: str, layer: int, path: Path) -> PromptCamForImageClassification:
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
def test_weights_of_a_new_model(way: str, family: str, layer: int, tmp_path: Path) -> None:
    model = new_model(way, family, layer, tmp_path)
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


@all_cases
def test_every_weight_starts_alike_however_the_model_is_made(family: str, layer: int, tmp_path: Path) -> None:
    constructed = new_model("constructed", family, layer, tmp_path).state_dict()
    loaded = new_model("pretrained without weights", family, layer, tmp_path).state_dict()
    assert list(loaded) == list(constructed)
    for name, weight in constructed.items():
        if weight.unique().numel() == 1:
            assert torch.equal(loaded[name], weight), name
        else:
            # Random: of the same spread, up to what chance does to so many values
            difference = loaded[name].std().log() - weight.std().log()
            assert difference.abs() < 4 * weight.numel() ** -0.5, name


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


@all_cases
def test_saving_in_shards(family: str, layer: int, tmp_path: Path) -> None:
    model = tiny_model(family, layer)
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


def test_loading_from_a_state_dict(tmp_path: Path) -> None:
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


def through_pickle(model: PromptCamForImageClassification) -> PromptCamForImageClassification:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: PromptCamForImageClassification) -> PromptCamForImageClassification:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_a_state_dict(model: PromptCamForImageClassification) -> PromptCamForImageClassification:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin = PromptCamForImageClassification(model.config).eval()
    twin.load_state_dict(torch.load(buffer))
    return twin


@all_cases
@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save, through_a_state_dict])
def test_copies_give_the_same_logits(way: Callable, family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    before = logits_of(model)  # so that there is something in the model's cache
    twin = way(model)
    assert torch.equal(logits_of(twin), before)
    assert trainable(twin) == trainable(model)
    with torch.no_grad():
        twin.class_prompts.add_(1)
    assert not torch.equal(logits_of(twin), before)
    assert torch.equal(logits_of(model), before)


# --- Data types ------------------------------------------------------------------------------------------------------

HALF_DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
TOLERANCE = {torch.bfloat16: 0.15, torch.float16: 0.02}


def assert_close_to_full_precision(logits: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=TOLERANCE[dtype] * expected.std().item())


@all_cases
@HALF_DTYPES
def test_loading_in_half_precision(family: str, layer: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(family, layer)
    loaded = load(saved(model, tmp_path), dtype=dtype)
    assert loaded.dtype == loaded.backbone.dtype == loaded.config.dtype == dtype
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert_close_to_full_precision(logits_of(loaded), logits_of(model), dtype)


@all_cases
@HALF_DTYPES
def test_converting_to_half_precision(family: str, layer: int, dtype: torch.dtype) -> None:
    model = tiny_model(family, layer)
    expected = logits_of(model)
    converted = model.half() if dtype == torch.float16 else model.bfloat16()
    assert_close_to_full_precision(logits_of(converted), expected, dtype)
    output = converted(images(), labels=LABELS, output_attentions=True)
    assert (output.loss.dtype, output.attentions[-1].dtype) == (torch.float32, dtype)


@all_families
def test_double_precision(family: str) -> None:
    model = tiny_model(family)
    expected = logits_of(model)
    found = logits_of(model.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected)


@HALF_DTYPES
def test_dtype_of_the_checkpoint_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model().to(dtype)
    path = saved(model, tmp_path)
    assert json.loads((path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    for loaded in (load(path, dtype="auto"), load(path)):
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert_same_logits(loaded, model)
    assert load(path, dtype=torch.float32).dtype == torch.float32


def test_new_model_in_half_precision() -> None:
    model = AutoModelForImageClassification.from_config(tiny_config(), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert is_uniform_in(model.class_prompts.float(), PROMPT_BOUND * 1.01)


@all_cases
def test_autocast_stays_close_to_full_precision(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits_of(model)
        output = model.train()(images(), labels=LABELS)
    assert_close_to_full_precision(found, logits_of(model.eval()), torch.bfloat16)
    output.loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


# --- Devices ---------------------------------------------------------------------------------------------------------


@all_families
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, {"backbone": "cpu", "": "cpu"}], ids=str)
def test_device_map(family: str, device_map: str | dict[str, str], tmp_path: Path) -> None:
    model = tiny_model(family)
    loaded = load(saved(model, tmp_path), device_map=device_map)
    assert_same_logits(loaded, model)
    assert trainable(loaded) == prompts_and_head(NUM_LAYERS)


@all_cases
def test_backbone_on_disk(family: str, layer: int, tmp_path: Path) -> None:
    model = tiny_model(family, layer)
    path = saved(model, tmp_path / "model")
    device_map = {"class_prompts": "cpu", "agnostic_prompts": "cpu", "score_head": "cpu", "backbone": "disk"}
    loaded = load(path, device_map=device_map, offload_folder=tmp_path / "offload")
    assert {parameter.device.type for parameter in loaded.backbone.parameters()} == {"meta"}
    for _ in range(2):
        torch.testing.assert_close(logits_of(loaded), logits_of(model))
        expected = model.rank_heads(images())
        found = loaded.rank_heads(images())
        assert torch.equal(found.order, expected.order)
        torch.testing.assert_close(found.logits, expected.logits)


@all_families
def test_layers_are_not_split_over_devices(family: str) -> None:
    model = tiny_model(family)
    assert model._no_split_modules < {type(module).__name__ for module in model.modules()}
    assert {"ViTLayer", "Dinov2Layer"} & model._no_split_modules


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
@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_changes_nothing(
    family: str, layer: int, use_reentrant: bool | None, whole: bool
) -> None:
    model = tiny_model(family, layer, prompt_dropout=0.2, drop_path_rate=0.2, patch_dropout=0.2).train()
    if whole:
        model.requires_grad_(True)
    loss, expected = gradients(model)
    kwargs = None if use_reentrant is None else {"use_reentrant": use_reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
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


# --- Compilation and export ------------------------------------------------------------------------------------------


@all_cases
@pytest.mark.usefixtures("compiler")
def test_compiled_model_equals_the_model(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(logits_of(compiled), logits_of(model))
    before = logits_of(model)
    with torch.no_grad():
        model.class_prompts.mul_(-1)
        model.layer_parts(1).key.weight.add_(0.3)
    assert_close(logits_of(compiled), logits_of(model))
    assert not torch.allclose(logits_of(compiled), before, atol=1e-3)


@pytest.mark.usefixtures("compiler")
def test_compiled_model_gives_attentions_hidden_states_and_loss() -> None:
    model = tiny_model("vit", 2, attn_implementation="eager")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    asked = {"labels": LABELS, "output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(), **asked).to_tuple(), model(images(), **asked).to_tuple())


@pytest.mark.usefixtures("compiler")
def test_compiled_model_trains_alike() -> None:
    model = tiny_model("dinov2", 2).train()
    expected = gradients(model)
    model.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("layer", [NUM_LAYERS, 1])
@pytest.mark.usefixtures("compiler")
def test_model_is_compiled_once_for_all_batch_sizes(layer: int) -> None:
    model = tiny_model("vit", layer)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for batch_size in (2, 3, 5):
        torch.testing.assert_close(logits_of(compiled, images(batch_size)), logits_of(model, images(batch_size)))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("compiler")
def test_model_compiled_to_machine_code_equals_the_model() -> None:
    model = tiny_model(
        class_prompt_layer=2,
        # Compiled by torch 2.13, widths that are no multiples of 64 have corrupted memory on CPUs with AVX-512
        backbone={"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128},
    )
    compiled = torch.compile(model, fullgraph=True)
    assert_close(logits_of(compiled), logits_of(model))


@pytest.mark.parametrize(("family", "layer", "strict"), [(*case, False) for case in CASES] + [("vit", 2, True)])
def test_exported_model_equals_the_model(family: str, layer: int, strict: bool) -> None:
    model = tiny_model(family, layer)
    with torch.no_grad():
        exported = torch.export.export(model, (images(),), strict=strict).module()
        torch.testing.assert_close(exported(images(seed=2)).logits, model(images(seed=2)).logits)


@all_families
@pytest.mark.parametrize("layer", [NUM_LAYERS, 1])
def test_model_is_exported_for_any_batch_size(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    with torch.no_grad():
        batch = {"pixel_values": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(model, (images(),), dynamic_shapes=batch).module()
        for batch_size in (2, 3):
            expected = model(images(batch_size)).logits
            torch.testing.assert_close(exported(images(batch_size)).logits, expected)


# --- Values that make no sense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 5]), r"labels holds 5: expected 0 to 4"),
        (torch.tensor([-1, 0]), r"labels holds -1: expected 0 to 4"),
        (torch.tensor([-100, 0]), r"labels holds -100: expected 0 to 4"),
        (torch.tensor([0]), r"labels of shape \(1,\).*2 images"),
        (torch.tensor([0, 1, 2]), r"labels of shape \(3,\).*2 images"),
        (torch.tensor(0), r"labels of shape \(\)"),
        (torch.tensor([[0], [1]]), r"labels of shape \(2, 1\)"),
        (torch.tensor([0.0, 1.0]), r"labels .*float32.*integers"),
        (torch.eye(2, NUM_LABELS), r"labels of shape \(2, 5\)"),
        (torch.tensor([True, False]), r"labels .*bool.*integers"),
    ],
)
def test_bad_labels_are_refused(labels: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_model()(images(), labels=labels)


@all_families
@pytest.mark.parametrize(
    ("pixel_values", "said"),
    [
        (images(num_channels=1), r"pixel_values of shape \(2, 1, 32, 32\).*3"),
        (images(num_channels=4), r"pixel_values of shape \(2, 4, 32, 32\).*3"),
        (images()[0], r"pixel_values of shape \(3, 32, 32\)"),
        (images()[None], r"pixel_values of shape \(1, 2, 3, 32, 32\)"),
        (images().permute(0, 2, 3, 1), r"pixel_values of shape \(2, 32, 32, 3\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"pixel_values .*uint8.*floats"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), r"pixel_values .*int64.*floats"),
        (images(size=7), r"pixel_values of .*7.*7"),
    ],
    ids=lambda value: f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else "",
)
def test_bad_pixel_values_are_refused(family: str, pixel_values: torch.Tensor, said: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ValueError, match=said):
        model(pixel_values)
    with pytest.raises(ValueError, match=said):
        model.rank_heads(pixel_values)


@all_families
def test_images_of_another_size_are_taken_unless_told_not_to(family: str) -> None:
    model = tiny_model(family)
    assert model(images(size=48)).logits.shape == (2, NUM_LABELS)
    assert model.rank_heads(images(size=48)).trait_maps.shape[-2:] == (6, 6)
    with pytest.raises(ValueError, match=r"pixel_values of 48 x 48 .*32 x 32.*interpolate_pos_encoding"):
        model(images(size=48), interpolate_pos_encoding=False)


@all_families
def test_vit_and_dinov2_refuse_images_smaller_than_a_patch(family: str) -> None:
    with pytest.raises(ValueError, match=r"pixel_values of 7 x 7.*patch"):
        tiny_model(family)(images(size=7), interpolate_pos_encoding=True)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (torch.tensor([0, 5]), r"classes holds 5: expected 0 to 4"),
        (torch.tensor([0, -1]), r"classes holds -1: expected 0 to 4"),
        (torch.tensor([[0, 1], [2, 9]]), r"classes holds 9: expected 0 to 4"),
        (torch.tensor([0, 1, 2]), r"classes of shape \(3,\).*2 images"),
        (torch.zeros(2, 1, 1, dtype=torch.long), r"classes of shape \(2, 1, 1\)"),
        (torch.zeros(2, 0, dtype=torch.long), r"classes of shape \(2, 0\)"),
        (torch.tensor([0.0, 1.0]), r"classes .*float32.*integers"),
        (torch.tensor([True, False]), r"classes .*bool.*integers"),
        (3, r"classes of shape \(\)"),
    ],
)
@pytest.mark.parametrize("layer", [NUM_LAYERS, 1])
def test_bad_classes_to_explain_are_refused(layer: int, classes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_model(class_prompt_layer=layer).rank_heads(images(), classes)


@pytest.mark.parametrize("top_k", [0, -1, 6])
def test_bad_number_of_classes_to_explain_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=rf"top_k={top_k}: expected 1 to 5"):
        tiny_model().rank_heads(images(), top_k=top_k)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("layer", [NUM_LAYERS, 1])
def test_classes_to_explain_may_be_integers_of_any_size(layer: int, dtype: torch.dtype) -> None:
    model = tiny_model(class_prompt_layer=layer)
    classes = torch.tensor([[3, 1], [0, 4]])
    expected, found = model.rank_heads(images(), classes), model.rank_heads(images(), classes.to(dtype))
    assert torch.equal(found.order, expected.order)
    torch.testing.assert_close(found.trait_maps, expected.trait_maps)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 15), (5,)])
def test_attention_without_a_column_for_every_patch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attention of shape .*classes, 22.*4 x 4"):
        tiny_model().trait_maps(torch.zeros(shape))
