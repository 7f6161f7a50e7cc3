"""Families of backbones: each as its own layers compute it, with prompts in front; and how one is opened."""

import pytest
import torch
import transformers
from promptcam_hf.modeling.backbone_promptcam import FAMILIES, LAYERS, find, load_pretrained
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from examples.benchmarks.textbook import TextbookPromptCam
from promptcam_hf import PromptCamForImageClassification

from ..tiny_models import FAMILY_CONFIGS, HIDDEN_SIZE, NUM_LABELS, NUM_LAYERS, images, tiny_config, tiny_model

NUM_PREFIX_TOKENS = {
    "vit": 1,
    "deit": 2,
    "vit_msn": 1,
    "ijepa": 0,
    "dinov2": 1,
    "dinov2_with_registers": 4,
    "dinov3_vit": 4,
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
}
families = pytest.mark.parametrize("family", FAMILY_CONFIGS)
# Those of which no other test knows anything, with class prompts in the last layer, in between and in the first
newer = pytest.mark.parametrize("family", [family for family in FAMILY_CONFIGS if family not in ("vit", "dinov2")])
layers = pytest.mark.parametrize("layer", [3, 2, 1])


def model_of(family: str, layer: int = NUM_LAYERS, **config) -> PromptCamForImageClassification:
    """In float64, where rounding hides nothing."""
    model = tiny_model(family, layer, **config).double()
    torch.nn.init.normal_(model.score_head.weight, std=0.3)
    return model


def test_every_family_is_tested():
    assert set(FAMILY_CONFIGS) == set(FAMILIES) == set(NUM_PREFIX_TOKENS)


@newer
@layers
def test_outputs_agree_with_the_textbook_implementation(family, layer):
    model, pixels = model_of(family, layer), images(2).double()
    textbook = TextbookPromptCam(model)
    with torch.no_grad():
        expected = textbook(pixels)
        for with_weights in (False, True):
            output = model(pixels, output_attentions=with_weights)
            torch.testing.assert_close(output.logits, expected, atol=0, rtol=1e-9)
    assert len(output.attentions) == NUM_LAYERS - layer + 1
    for found, weights in zip(output.attentions, textbook.attentions[layer - 1 :], strict=True):
        torch.testing.assert_close(found, weights[:, :, :NUM_LABELS], atol=1e-12, rtol=1e-9)


@newer
@layers
def test_gradients_agree_with_the_textbook_implementation(family, layer):
    model = model_of(family, layer).train()
    labels, pixels = torch.tensor([0, 3]), images(2).double()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trainable) == 33 + HIDDEN_SIZE * (NUM_LABELS + 4 * (layer - 1))
    expected = torch.autograd.grad(TextbookPromptCam(model).loss(pixels, labels), trainable)
    # The first is its name in newer releases of transformers
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    features = model.frozen_features(pixels)
    assert features.is_contiguous()  # as the feature cache writes them
    for given in ({"pixel_values": pixels}, {"features": features}):
        loss = model(labels=labels, **given).loss
        for found, wanted in zip(torch.autograd.grad(loss, trainable), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-8)


@newer
@layers
def test_ranking_agrees_with_the_textbook_implementation(family, layer):
    model, pixels = model_of(family, layer), images(1).double()
    textbook, ranking = TextbookPromptCam(model), model.rank_heads(pixels, torch.tensor([[0, 4]]))
    for column, index in enumerate((0, 4)):
        order, probabilities, num_sufficient = textbook.rank_heads(pixels, index)
        assert ranking.order[0, column].tolist() == order
        assert ranking.blurred_probability[0, column].tolist() == pytest.approx(probabilities, rel=1e-8)
        assert ranking.num_sufficient[0, column].item() == num_sufficient


@families
def test_walk_through_the_layers_without_prompts_is_the_backbone(family):
    """What the image tokens become must be what the backbone itself makes of them."""
    model, pixels = model_of(family, num_prompted_layers=1), images(2).double()
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states
        expected = model.backbone(pixels, output_hidden_states=True).hidden_states
    assert len(states) == len(expected) == NUM_LAYERS + 1
    for found, wanted in zip(states[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(found, wanted, atol=0, rtol=1e-9)


@newer
def test_maps_are_the_patches_of_an_image_of_any_size(family):
    model, pixels = model_of(family, 2), torch.randn(2, 3, 24, 56).double()
    textbook = TextbookPromptCam(model)
    any_size = FAMILIES[family].any_size
    with torch.no_grad():
        output = model(pixels, output_attentions=True)
        expected = textbook(pixels, **({} if any_size else {"interpolate_pos_encoding": True}))
    torch.testing.assert_close(output.logits, expected, atol=0, rtol=1e-9)
    maps = model.trait_maps(output.attentions[-1], image_size=(24, 56))
    assert maps.shape == (2, NUM_LABELS, 4, 3, 7)
    first_patch = output.attentions[-1][..., NUM_LABELS + NUM_PREFIX_TOKENS[family]]
    assert torch.equal(maps[..., 0, 0], first_patch.transpose(1, 2))
    assert output.attentions[-1].shape[-1] == NUM_LABELS + NUM_PREFIX_TOKENS[family] + 21
    ranking = model.rank_heads(pixels, torch.tensor([[0, 1, 2, 3, 4]] * 2))
    torch.testing.assert_close(ranking.trait_maps, maps, atol=1e-12, rtol=1e-9)


@families
def test_new_model_for_another_image_size_sees_what_the_backbone_would_interpolate(family):
    source, pixels = tiny_model(family).backbone, torch.randn(1, 3, 48, 48)
    model = PromptCamForImageClassification.from_backbone(source, image_size=48, num_labels=2, num_agnostic_prompts=0)
    assert model.config.image_size == 48
    kwargs = {} if FAMILIES[family].any_size else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        found, expected = (backbone(pixels, **kwargs).last_hidden_state for backbone in (model.backbone, source))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert source.config.image_size == 32


@pytest.mark.parametrize("family", ["dinov3_vit", "dinov2_with_registers", "siglip_vision_model"])
@layers
def test_patches_that_are_kept_stay_where_they_are(family, layer):
    """The order of patches does not matter, as long as each keeps its position: with a rate that keeps all of them in
    another order, nothing changes."""
    model, pixels = model_of(family, layer, patch_dropout=1e-9).train(), images(2).double()
    with torch.no_grad():
        shuffled = model(pixels).logits
        torch.testing.assert_close(shuffled, model.eval()(pixels).logits, atol=0, rtol=1e-9)
        model.train().patch_dropout.rate = 0.5
        torch.manual_seed(0)
        output = model(pixels, output_attentions=True)
    assert output.attentions[-1].shape[-1] == NUM_LABELS + NUM_PREFIX_TOKENS[family] + 8
    assert torch.isfinite(output.logits).all()


def test_features_of_rotary_families_are_those_of_the_models_image_size_or_of_square_images():
    model = tiny_model("dinov3_vit", num_prompted_layers=1).eval()
    square = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(model(features=model.frozen_features(square)).logits, model(square).logits)
    features = model.frozen_features(torch.randn(1, 3, 24, 56))
    with pytest.raises(
        ValueError, match=r"features of 25 tokens: expected 20, those of images of the model's image size"
    ):
        model(features=features)


@newer
def test_checkpoints_of_both_kinds_open_with_the_same_weights(family, tmp_path):
    source, pixels = tiny_model(family).backbone, images(2)
    source.save_pretrained(tmp_path / "backbone")
    model = PromptCamForImageClassification.from_backbone(tmp_path / "backbone", num_labels=3).eval()
    expected = model(pixels).logits
    for prompts_only in (False, True):
        model.save_pretrained(tmp_path / "checkpoint", prompts_only=prompts_only)
        opened = PromptCamForImageClassification.from_pretrained(tmp_path / "checkpoint")
        torch.testing.assert_close(opened(pixels).logits, expected, atol=1e-6, rtol=1e-6)
        assert not any(parameter.requires_grad for parameter in opened.backbone.parameters())
    assert type(find(opened.backbone, LAYERS)[0]).__name__ in opened._no_split_modules


@pytest.mark.parametrize(
    ("architecture", "part"),
    [
        ("CLIPModel", "vision_model"),
        ("CLIPVisionModelWithProjection", "vision_model"),
        ("CLIPForImageClassification", "vision_model"),
        ("SiglipModel", "vision_model"),
        ("SiglipForImageClassification", "vision_model"),
        ("DeiTForImageClassificationWithTeacher", "deit"),
        ("IJepaForImageClassification", "ijepa"),
    ],
)
def test_backbone_of_a_larger_model_is_used(architecture, part, tmp_path):
    model_class = getattr(transformers, architecture)
    config = tiny_config("vit").backbone_config.to_dict()
    config = {name: config[name] for name in ("hidden_size", "num_attention_heads", "image_size", "patch_size")}
    config |= {"num_hidden_layers": 2, "intermediate_size": 48}
    is_two_towers = "text_config" in getattr(model_class.config_class, "sub_configs", {})
    towers = {"vision_config": config, "text_config": config | {"vocab_size": 99}}
    larger = model_class(model_class.config_class(**(towers if is_two_towers else config))).eval()
    larger.save_pretrained(tmp_path)
    pixels = images(2)
    with torch.no_grad():
        expected = getattr(larger, part)(pixels).last_hidden_state
        for backbone in (larger, tmp_path):
            model = PromptCamForImageClassification.from_backbone(backbone, num_labels=3)
            torch.testing.assert_close(model.backbone(pixels).last_hidden_state, expected, atol=1e-6, rtol=1e-6)
            assert "head" not in dict(model.backbone.named_children())


def test_backbone_without_all_its_weights_is_refused(tmp_path):
    tiny_model().backbone.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    left_out = [name for name in weights if "1.mlp.fc1" in name or "1.intermediate" in name]
    kept = {name: weight for name, weight in weights.items() if name not in left_out}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert len(kept) < len(weights)
    with pytest.raises(ValueError, match=rf"^The backbone {tmp_path} has no weights \S+ \(2 are missing\).* ViT model"):
        PromptCamForImageClassification.from_backbone(tmp_path, num_labels=3)


def test_models_without_tokens_that_see_everything_are_refused(tmp_path):
    config = AutoConfig.for_model("convnext", hidden_sizes=[4, 4], depths=[1, 1], num_stages=2)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^Backbones of type 'convnext' are not supported; expected one of vit, "):
        load_pretrained(tmp_path)
