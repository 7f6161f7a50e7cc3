"""The mathematics: against what the original code computed, and against the textbook implementation."""

import json
from pathlib import Path

import pytest
import torch
from promptcam_hf.modeling.attention_promptcam import MANY_PROMPTS
from safetensors.torch import load_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from examples.benchmarks.textbook import TextbookPromptCam
from promptcam_hf import PromptCamForImageClassification, convert_checkpoint

from ..tiny_models import HIDDEN_SIZE, NUM_IMAGE_TOKENS, NUM_LAYERS, assert_close, images, tiny_config, tiny_model

FIXTURES = Path(__file__).parents[1] / "fixtures"

# class_prompt_layer, num_prompted_layers, num_agnostic_prompts
VARIANTS = [(3, 3, None), (3, 3, 0), (3, 2, 2), (3, 1, None), (2, 3, 4), (2, 2, None), (2, 3, 0), (1, 3, None)]
variants = pytest.mark.parametrize(("layer", "prompted", "agnostic"), VARIANTS)
families = pytest.mark.parametrize("family", ["vit", "dinov2"])


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")),
    ],
)
def device(request):
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield request.param
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module", params=["dino", "dinov2"])
def original(request, device, tmp_path_factory):
    """A checkpoint of the original code, converted, and what the original computed with it."""
    folder = FIXTURES / request.param
    heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
    output_dir = tmp_path_factory.mktemp(request.param)
    convert_checkpoint(folder / "model.pt", output_dir, num_attention_heads=heads)
    model = PromptCamForImageClassification.from_pretrained(output_dir).eval()
    return model.to(device), load_file(folder / "golden.safetensors", device=device)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_logits_and_loss_are_the_original_ones(original):
    model, golden = original
    with torch.no_grad():
        output = model(golden["pixel_values"], labels=golden["labels"])
    assert_close(output.logits, golden["logits"], 1e-4)
    assert_close(output.loss, golden["loss"][0])


def test_attention_rows_are_the_original_ones(original):
    model, golden = original
    with torch.no_grad():
        output = model(golden["pixel_values"], output_attentions=True)
    (attention,) = output.attentions
    assert_close(attention, golden["attention"][:, :, : model.num_labels])
    assert_close(output.logits, golden["logits"], 1e-4)


def test_gradients_are_the_original_ones(original):
    model, golden = original
    model.zero_grad()
    model(golden["pixel_values"], labels=golden["labels"]).loss.backward()
    prompts = torch.cat([model.agnostic_prompts.grad, model.class_prompts.grad[None]])
    assert relative(prompts, golden["grad_prompts"]) < 1e-3
    for layer_found, layer_expected in zip(prompts, golden["grad_prompts"], strict=True):
        assert relative(layer_found, layer_expected) < 1e-3
    assert relative(model.score_head.weight.grad, golden["grad_head_weight"]) < 1e-3
    # The bias moves all logits alike, so its true gradient is zero
    torch.testing.assert_close(model.score_head.bias.grad, golden["grad_head_bias"], atol=1e-5, rtol=0)


def test_heads_are_ranked_as_by_the_original_for_every_image_and_class(original):
    model, golden = original
    num_images, num_classes = golden["logits"].shape
    classes = torch.arange(num_classes, device=model.device)
    ranking = model.rank_heads(golden["pixel_values"], classes.expand(num_images, -1))
    assert torch.equal(ranking.order.flip(-1), golden["blur_order"])
    torch.testing.assert_close(ranking.blurred_probability, golden["blur_probability"], atol=1e-5, rtol=0)


def variant(family: str, layer: int, prompted: int, agnostic: int | None) -> PromptCamForImageClassification:
    """In float64, where rounding hides nothing."""
    given = {"num_prompted_layers": prompted, "num_agnostic_prompts": agnostic}
    model = tiny_model(family, layer, **given).double()
    torch.nn.init.normal_(model.score_head.weight, std=0.3)
    return model


@families
@variants
def test_outputs_agree_with_the_textbook_implementation(family, layer, prompted, agnostic):
    model = variant(family, layer, prompted, agnostic)
    textbook, pixels = TextbookPromptCam(model), images(3).double()
    with torch.no_grad():
        expected = textbook(pixels)
        for with_weights in (False, True):
            output = model(pixels, output_attentions=with_weights)
            torch.testing.assert_close(output.logits, expected, atol=1e-10, rtol=0)
    assert len(output.attentions) == NUM_LAYERS - layer + 1
    for found, weights in zip(output.attentions, textbook.attentions[layer - 1 :], strict=True):
        torch.testing.assert_close(found, weights[:, :, : model.num_labels], atol=1e-10, rtol=0)


@families
@variants
def test_gradients_agree_with_the_textbook_implementation(family, layer, prompted, agnostic):
    model = variant(family, layer, prompted, agnostic).train()
    labels, pixels = torch.tensor([0, 3, 1]), images(3).double()
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(trainable) <= {"class_prompts", "agnostic_prompts", "score_head.weight", "score_head.bias"}
    expected = torch.autograd.grad(TextbookPromptCam(model).loss(pixels, labels), list(trainable.values()))
    for with_weights in (False, True):
        loss = model(pixels, labels=labels, output_attentions=with_weights).loss
        for found, wanted in zip(torch.autograd.grad(loss, list(trainable.values())), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-8)


@families
@variants
def test_ranking_agrees_with_the_textbook_implementation(family, layer, prompted, agnostic):
    model, pixels = variant(family, layer, prompted, agnostic), images(2).double()
    textbook = TextbookPromptCam(model)
    for index in range(model.num_labels):
        ranking = model.rank_heads(pixels, torch.tensor([index, index]))
        for row in range(2):
            order, probabilities, num_sufficient = textbook.rank_heads(pixels[row : row + 1], index)
            assert ranking.order[row].tolist() == order
            assert ranking.blurred_probability[row].tolist() == pytest.approx(probabilities, abs=1e-9)
            assert ranking.num_sufficient[row].item() == num_sufficient


@families
@variants
def test_blurred_logits_are_those_of_a_ranking_with_all_heads_blurred(family, layer, prompted, agnostic):
    model, pixels, classes = variant(family, layer, prompted, agnostic), images(3).double(), torch.tensor([0, 3, 1])
    ranking = model.rank_heads(pixels, classes)
    with torch.no_grad():
        plain = model(pixels, output_hidden_states=True)
        output = model(pixels, blurred_classes=classes, output_hidden_states=True, output_attentions=True)
    others = ranking.logits.scatter(1, classes[:, None], -torch.inf).logsumexp(dim=1)
    expected = ranking.blurred_probability[:, -1].logit() + others
    torch.testing.assert_close(output.blurred_logits, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(output.logits, plain.logits, atol=1e-10, rtol=0)
    assert plain.blurred_logits is None
    assert output.hidden_states[-1].shape == plain.hidden_states[-1].shape
    assert output.attentions[-1].shape[2] == model.num_labels


def test_blurred_classes_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="blurred_classes holds 5: expected 0 to 4"):
        tiny_model()(images(2), blurred_classes=torch.tensor([0, 5]))


def test_variants_meet_every_kind_of_sufficiency():
    """So that the test above has seen classes that win with some heads, with none, and never."""
    seen = set()
    for family in ("vit", "dinov2"):
        for arguments in VARIANTS:
            model, pixels = variant(family, *arguments), images(2).double()
            ranking = model.rank_heads(pixels, torch.arange(5).expand(2, -1))
            wins = ranking.logits.argmax(-1, keepdim=True) == torch.arange(5)
            seen |= set(zip(wins.flatten().tolist(), (ranking.num_sufficient > 0).flatten().tolist(), strict=True))
    assert (True, True) in seen
    assert (False, False) in seen


def test_dead_heads_tie_and_the_lowest_goes_first():
    model = tiny_model()
    parts = model.layer_parts(NUM_LAYERS)
    with torch.no_grad():
        parts.value.weight.zero_()
        parts.value.bias.zero_()
    order = model.rank_heads(images(2), torch.tensor([0, 1])).order
    assert order.tolist() == [[3, 2, 1, 0]] * 2


def test_sure_classes_are_ranked_where_probabilities_round_to_one():
    model = tiny_model()
    with torch.no_grad():
        model.score_head.weight.mul_(3)
        clear = model.rank_heads(images(4))
        model.score_head.weight.mul_(100)
        saturated = model.rank_heads(images(4))
    assert (saturated.blurred_probability[..., 0] == 1).any()
    assert torch.equal(saturated.classes, clear.classes)
    assert torch.equal(saturated.order, clear.order)


@families
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_maps_are_the_patch_columns_on_the_grid_of_the_image(family, layer):
    model, pixels = tiny_model(family, layer), torch.randn(2, 3, 24, 56)
    with torch.no_grad():
        output = model(pixels, output_attentions=True)
    maps = model.trait_maps(output.attentions[-1], image_size=(24, 56))
    assert maps.shape == (2, 5, 4, 3, 7)
    for height in range(3):
        for width in range(7):
            column = output.attentions[-1][..., 5 + 1 + 7 * height + width]
            torch.testing.assert_close(maps[..., height, width], column.transpose(1, 2), atol=0, rtol=0)
    ranking = model.rank_heads(pixels, torch.tensor([[4, 0], [2, 2]]))
    expected = torch.stack([maps[0, [4, 0]], maps[1, [2, 2]]])
    assert_close(ranking.trait_maps, expected)


def test_maps_of_another_size_than_the_attention_are_refused():
    attention = torch.zeros(1, 4, 5, 5 + 1 + 288)  # of 96 x 192 pixels, more patches than the model's own 4 x 4
    with pytest.raises(ValueError, match=r"classes, 22\) for the 4 x 4 patch grid.*image_size"):
        tiny_model().trait_maps(attention)
    with pytest.raises(ValueError, match=r"10 x 10"):
        tiny_model().trait_maps(torch.zeros(1, 4, 5, 22), image_size=(80, 80))
    with pytest.raises(ValueError, match=r"attention of shape \(4, 5, 22\)"):
        tiny_model().trait_maps(torch.zeros(4, 5, 22))
    assert tiny_model().trait_maps(attention, image_size=(96, 192)).shape == (1, 5, 4, 12, 24)


def test_ranking_without_classes_explains_the_most_probable():
    model, pixels = tiny_model(), images(3)
    ranking = model.rank_heads(pixels, top_k=2)
    assert torch.equal(ranking.classes, ranking.logits.topk(2).indices)
    asked = model.rank_heads(pixels, ranking.classes)
    assert torch.equal(ranking.order, asked.order)


def test_many_classes_take_the_same_way_as_few():
    """Many class prompts' attention to each other is computed once per batch."""
    config = tiny_config(num_labels=MANY_PROMPTS + 100, num_agnostic_prompts=2)
    torch.manual_seed(0)
    model = PromptCamForImageClassification(config).double()
    torch.nn.init.normal_(model.class_prompts)
    textbook, pixels, labels = TextbookPromptCam(model), images(2).double(), torch.tensor([3, MANY_PROMPTS])
    output = model(pixels, blurred_classes=labels)
    torch.testing.assert_close(output.logits, textbook(pixels), atol=1e-10, rtol=0)
    _, probabilities, _ = textbook.rank_heads(pixels[:1], 3)
    others = output.logits[0, torch.arange(model.num_labels) != 3].logsumexp(0)
    assert (output.blurred_logits[0] - others).sigmoid().item() == pytest.approx(probabilities[-1], abs=1e-9)
    (expected,) = torch.autograd.grad(textbook.loss(pixels, labels), model.class_prompts)
    (found,) = torch.autograd.grad(model(pixels, labels=labels).loss, model.class_prompts)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-8)


def test_nothing_kept_for_backward_is_quadratic_in_the_number_of_classes():
    def kept(num_labels: int) -> int:
        model = PromptCamForImageClassification(tiny_config(num_labels=num_labels, num_agnostic_prompts=num_labels))
        sizes: dict[int, int] = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(images(1), labels=torch.tensor([0])).loss
        del loss
        return sum(sizes.values())

    one, two, three = kept(1024), kept(2048), kept(3072)
    assert three - two < 1.05 * (two - one)


@families
def test_new_model_on_a_backbone_keeps_its_weights_and_freezes_them(family, tmp_path):
    source = tiny_model(family).backbone.requires_grad_(True)
    source.save_pretrained(tmp_path)
    for backbone in (source, tmp_path, str(tmp_path)):
        model = PromptCamForImageClassification.from_backbone(
            backbone, id2label={0: "a", 1: "b"}, num_agnostic_prompts=3
        )
        for name, weight in model.backbone.state_dict().items():
            assert torch.equal(weight, source.state_dict()[name])
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trainable == ["class_prompts", "agnostic_prompts", "score_head.weight", "score_head.bias"]
        assert model.num_parameters(only_trainable=True) == 2 * 32 + 2 * 3 * 32 + 33
        assert model.config.label2id == {"a": 0, "b": 1}
    assert all(parameter.requires_grad for parameter in source.parameters())
    model.backbone.layernorm.weight.data.zero_()
    assert source.layernorm.weight.abs().sum() > 0


def test_encoder_of_a_masked_autoencoder_is_a_plain_vit(tmp_path):
    config = ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        decoder_num_hidden_layers=1,
        mask_ratio=0.0,
    )
    source = ViTMAEForPreTraining(config).eval()
    source.save_pretrained(tmp_path)
    pixels = images(2)
    with torch.no_grad():  # nothing masked, but the patches in random order
        expected = source.vit(pixels, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        for backbone in (tmp_path, source, source.vit):
            model = PromptCamForImageClassification.from_backbone(backbone, num_labels=3)
            assert model.config.backbone_config.model_type == "vit"
            assert_close(model.backbone(pixels).last_hidden_state, expected)


def test_drop_path_drops_whole_images_at_a_rate_that_grows_with_depth():
    model = tiny_model(drop_path_rate=0.5).train()
    torch.manual_seed(0)
    ones = torch.ones(4000, 2, 3)
    assert model.drop_paths[0](ones) is ones
    for layer, rate in ((2, 0.25), (3, 0.5)):
        dropped = model.drop_paths[layer - 1](ones)
        assert (dropped == dropped[:, :1, :1]).all()
        assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0.0, 1 / (1 - rate)])
        assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.03)
    assert model.eval().drop_paths[2](ones) is ones


@pytest.mark.parametrize("rate", [0.5, 0.99])
def test_patch_dropout_keeps_cls_and_some_patches_of_each_image_drawn_at_random(rate):
    model = tiny_model(patch_dropout=rate).train()
    tokens = torch.arange(17.0).expand(300, -1)[..., None]  # [CLS] is 0, patches are 1 to 16
    torch.manual_seed(0)
    kept = model.patch_dropout(tokens)[0][..., 0]
    assert kept.shape == (300, 1 + max(1, round(16 * (1 - rate))))
    assert (kept[:, 0] == 0).all()
    assert all(len(set(row.tolist())) == len(row) for row in kept)  # none twice
    assert len({tuple(sorted(row.tolist())) for row in kept}) > 10
    assert set(kept.flatten().tolist()) == set(range(17))
    assert model.eval().patch_dropout(tokens)[0] is tokens


@pytest.mark.parametrize("num_prompted_layers", [1, 2, 3])
def test_patches_are_dropped_where_the_first_prompts_enter_be_they_cached_or_not(num_prompted_layers):
    model = tiny_model(patch_dropout=0.5, num_prompted_layers=num_prompted_layers).train()
    torch.manual_seed(0)
    output = model(images(), output_hidden_states=True, output_attentions=True)
    half = 1 + round((NUM_IMAGE_TOKENS - 1) / 2)
    whole_layers = NUM_LAYERS - num_prompted_layers
    lengths = [state.shape[1] for state in output.hidden_states[:-1]]
    assert lengths == [NUM_IMAGE_TOKENS] * whole_layers + [half] * num_prompted_layers
    assert output.attentions[-1].shape[-1] == model.num_labels + half
    torch.manual_seed(0)
    from_cache = model(features=model.frozen_features(images()))
    torch.testing.assert_close(from_cache.logits, output.logits)


# --- As a model of transformers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_trained_on_a_half_precision_backbone_is_float32(dtype):
    source = tiny_model().backbone.to(dtype)
    model = PromptCamForImageClassification.from_backbone(source, num_labels=3)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trainable} == {torch.float32}
    assert model.backbone.dtype == dtype
    optimizer = torch.optim.AdamW(trainable)
    model(images(2), labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in trainable)
    assert torch.isfinite(model.rank_heads(images(2)).blurred_probability).all()


def test_unknown_arguments_of_tools_are_ignored():
    model, pixels, labels = tiny_model(), images(2), torch.tensor([0, 1])
    assert torch.equal(model(pixels, labels=labels, num_items_in_batch=2).loss, model(pixels, labels=labels).loss)
    assert not model.accepts_loss_kwargs


def test_adapters_in_the_backbone_train_and_the_backbone_does_not():
    model = tiny_model()
    model.backbone.adapter = torch.nn.Sequential(torch.nn.Dropout(0.5))
    model.train()
    training = {name for name, module in model.backbone.named_modules() if module.training}
    assert training == {"adapter", "adapter.0"}
    model.eval()
    assert not any(module.training for module in model.modules())


def test_other_problem_types_are_refused():
    with pytest.raises(ValueError, match="problem_type='multi_label_classification': only single_label"):
        tiny_config(problem_type="multi_label_classification")


# --- Features in the place of images


@families
@variants
def test_features_give_what_their_images_give(family, layer, prompted, agnostic):
    model, pixels, labels = variant(family, layer, prompted, agnostic), images(3).double(), torch.tensor([0, 3, 1])
    features = model.frozen_features(pixels)
    assert features.shape == (3, NUM_IMAGE_TOKENS, HIDDEN_SIZE)
    assert not features.requires_grad
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with_images = model(pixels, labels, output_attentions=True, output_hidden_states=True)
    with_features = model(features=features, labels=labels, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(with_features.logits, with_images.logits, atol=1e-12, rtol=0)
    for found, wanted in zip(with_features.attentions, with_images.attentions, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    assert len(with_features.hidden_states) == prompted + 1
    expected = torch.autograd.grad(with_images.loss, trainable, allow_unused=True)
    found = torch.autograd.grad(with_features.loss, trainable, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@families
def test_features_of_images_of_another_size(family):
    model, pixels = tiny_model(family, num_prompted_layers=2), torch.randn(2, 3, 24, 56)
    with torch.no_grad():
        features = model.frozen_features(pixels)
        assert features.shape == (2, 1 + 3 * 7, HIDDEN_SIZE)
        expected = model(pixels).logits
        assert_close(model(features=features).logits, expected)


def test_features_do_not_depend_on_what_is_trained():
    model, pixels = tiny_model(num_prompted_layers=2), images(2)
    before = model.frozen_features(pixels)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert torch.equal(model.frozen_features(pixels), before)


@pytest.mark.parametrize("shape", [(17, 32), (2, 17, 31), (2, 3, 32, 32), (2, 17, 32, 1)])
def test_features_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"^features of shape .* expected floats of shape \(batch_size, tokens, 32\)"):
        tiny_model(num_prompted_layers=1)(features=torch.zeros(shape))


def test_features_are_floats_instead_of_images_with_as_many_labels():
    model, features = tiny_model(num_prompted_layers=1), torch.zeros(2, 17, 32)
    with pytest.raises(ValueError, match="expected floats"):
        model(features=features.long())
    for given in ({}, {"pixel_values": images(2), "features": features}):
        with pytest.raises(ValueError, match="either pixel_values or features"):
            model(**given)
    with pytest.raises(ValueError, match="labels of shape"):
        model(features=features, labels=torch.tensor([0]))


def test_temperature_changes_probabilities_and_neither_order_nor_logits():
    model, pixel_values = tiny_model("vit", num_labels=2), images(3)
    plain = model.rank_heads(pixel_values, top_k=2)
    model.config.temperature = 2.0
    scaled = model.rank_heads(pixel_values, top_k=2)
    for name in ("order", "num_sufficient", "classes", "logits"):
        assert torch.equal(plain[name], scaled[name])
    # Of two classes, the log-odds are the difference of the logits
    expected = (plain.blurred_probability.logit() / 2).sigmoid()
    torch.testing.assert_close(scaled.blurred_probability, expected)
