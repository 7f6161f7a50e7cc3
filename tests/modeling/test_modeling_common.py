"""What transformers expects of every vision model, for every backbone and place where class prompts enter."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForImageClassification

from promptcam_hf import PromptCamForImageClassification, PromptCamImageClassifierOutput

from ..tiny_models import (
    CASES,
    HIDDEN_SIZE,
    NUM_HEADS,
    NUM_IMAGE_TOKENS,
    NUM_LABELS,
    NUM_LAYERS,
    assert_close,
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
    gradients,
    is_uniform_in,
    load,
    logits_of,
    prompts_and_head,
    saved,
    trainable,
)

# The names that all supported releases of transformers know
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


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
    expected = model(images(), labels=LABELS).loss
    assert torch.equal(model(images(), labels=LABELS.to(dtype)).loss, expected)
    assert torch.equal(model(images(), labels=LABELS.tolist()).loss, expected)


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


@pytest.mark.parametrize("labels", [None, LABELS], ids=["unlabelled", "labelled"])
@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}, {"output_attentions": True}])
def test_tuple_holds_what_the_output_holds(labels: torch.Tensor | None, asked: dict[str, bool]) -> None:
    model = tiny_model()
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
def test_gradients_of_every_hidden_state_and_attention_can_be_kept(family: str, layer: int, training: bool) -> None:
    model = tiny_model(family, layer).train(training)
    for asked in ("output_hidden_states", "output_attentions"):
        output = model(images(), **{asked: True})
        kept = output[asked.removeprefix("output_")]
        for tensor in kept:
            tensor.retain_grad()
        output.logits[:, 0].sum().backward()
        assert [index for index, tensor in enumerate(kept) if tensor.grad is None or not tensor.grad.any()] == []


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


def test_backbone_of_a_checkpoint_of_prompts_cannot_be_on_disk(tmp_path: Path) -> None:
    backbone = saved(tiny_model("vit").backbone, tmp_path / "backbone")
    model = PromptCamForImageClassification.from_backbone(backbone, num_labels=3)
    model.save_pretrained(tmp_path / "model", prompts_only=True)
    device_map = {"class_prompts": "cpu", "agnostic_prompts": "cpu", "score_head": "cpu", "backbone": "disk"}
    with pytest.raises(ValueError, match="device_map puts the backbone on disk, but this checkpoint holds only"):
        load(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")


@all_families
def test_layers_are_not_split_over_devices(family: str) -> None:
    model = tiny_model(family)
    assert model._no_split_modules < {type(module).__name__ for module in model.modules()}
    assert {"ViTLayer", "Dinov2Layer"} & model._no_split_modules


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
def test_exported_model_equals_the_model_for_any_batch_size(family: str, layer: int, strict: bool) -> None:
    model, batch = tiny_model(family, layer), {"pixel_values": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        exported = torch.export.export(model, (images(),), dynamic_shapes=batch, strict=strict).module()
        for batch_size in (2, 3):
            pixels = images(batch_size, seed=2)
            torch.testing.assert_close(exported(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize("layer", [1, NUM_LAYERS])
def test_loss_is_exported_for_any_batch_size(layer: int) -> None:
    model, dim = tiny_model("vit", layer), torch.export.Dim("batch")
    shapes = {"pixel_values": {0: dim}, "labels": {0: dim}}
    with torch.no_grad():
        exported = torch.export.export(model, (images(), LABELS), dynamic_shapes=shapes).module()
        pixels, labels = images(3, seed=2), torch.tensor([1, 0, 2])
        torch.testing.assert_close(exported(pixels, labels).loss, model(pixels, labels).loss)


@pytest.mark.usefixtures("compiler")
def test_ranking_of_given_classes_compiles_in_one_graph() -> None:
    model = tiny_model()
    compiled = torch.compile(model.rank_heads, fullgraph=True, dynamic=True, backend="eager")
    for labels in (LABELS, torch.tensor([1, 0, 2])):
        ranked, expected = (rank(images(len(labels)), labels) for rank in (compiled, model.rank_heads))
        assert torch.equal(ranked.order, expected.order)
        assert_close(ranked.trait_maps, expected.trait_maps)


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
    tall = images(size=48)[..., :32]
    assert model(tall).logits.shape == (2, NUM_LABELS)
    assert model.rank_heads(tall).trait_maps.shape[-2:] == (6, 4)
    with pytest.raises(ValueError, match=r"pixel_values of 48 x 48 .*32 x 32.*interpolate_pos_encoding"):
        model(images(size=48), interpolate_pos_encoding=False)


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
