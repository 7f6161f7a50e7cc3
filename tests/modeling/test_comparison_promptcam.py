"""Contributions and comparisons against autograd through the textbook implementation."""

import pytest
import torch

from examples.benchmarks.textbook import TextbookPromptCam
from promptcam_hf import PromptCamForImageClassification

from ..tiny_models import CASES, IMAGE_SIZE, NUM_HEADS, NUM_LABELS, images, tiny_model

cases = pytest.mark.parametrize(("family", "layer"), CASES)
GRID = IMAGE_SIZE // 8


def spread_model(*args, **kwargs) -> PromptCamForImageClassification:
    """A tiny model in float64 whose classes differ."""
    model = tiny_model(*args, **kwargs).double()
    torch.nn.init.normal_(model.score_head.weight, std=0.5)
    torch.nn.init.normal_(model.class_prompts)
    return model


class FainterTextbook(TextbookPromptCam):
    """The heads of the last layer gather only a share of what they would gather."""

    share = 1.0

    def _attention(self, module, query, key, value, *args, **kwargs):
        output, weights = super()._attention(module, query, key, value, *args, **kwargs)
        if len(self.attentions) == len(self.layers):
            self.attentions[-1] = weights = weights * self.share
            output = (weights @ value).transpose(1, 2).contiguous()
        return output, weights


def textbook_contributions(model: PromptCamForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    """Of all tokens to all classes, (B, C, H, C + S): attention weight x gradient of the logit by that weight, averaged
    over shares of what heads gather. It is the contribution, since what a head gathers is linear in its weights."""
    textbook, found = FainterTextbook(model), []
    for textbook.share in (0.125, 0.375, 0.625, 0.875):
        logits = textbook(pixel_values)
        weights = textbook.attentions[-1]  # (B, H, C + S, C + S)
        gradients = [torch.autograd.grad(of_one.sum(), weights, retain_graph=True)[0] for of_one in logits.T]
        of_classes = [(weights * gradient / textbook.share)[:, :, label] for label, gradient in enumerate(gradients)]
        found.append(torch.stack(of_classes, dim=1))
    return torch.stack(found).mean(0).detach()


def of_patches(contributions: torch.Tensor) -> torch.Tensor:
    return contributions[..., -GRID * GRID :].unflatten(-1, (GRID, GRID))


@cases
def test_contributions_equal_autograd_through_the_textbook_model(family, layer):
    model, pixels = spread_model(family, layer), images(3).double()
    expected = of_patches(textbook_contributions(model, pixels))
    classes = torch.tensor([[0, 3], [4, 1], [2, 2]])
    found = model.contributions(pixels, classes)
    assert found.shape == (3, 2, NUM_HEADS, GRID, GRID)
    wanted = expected[torch.arange(3)[:, None], classes]
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@cases
def test_a_comparison_is_the_difference_of_contributions(family, layer):
    model, pixels = spread_model(family, layer), images(3).double()
    a, b = torch.tensor([0, 4, 2]), torch.tensor([3, 1, 0])
    comparison, of_all = model.compare(pixels, a, b), of_patches(textbook_contributions(model, pixels))
    image = torch.arange(3)
    of_a, of_b = of_all[image, a], of_all[image, b]
    torch.testing.assert_close(comparison.maps, of_a - of_b)
    torch.testing.assert_close(comparison.contributions, torch.stack([of_a, of_b], dim=1))
    both = (of_a > 0) & (of_b > 0)
    assert both.any()
    torch.testing.assert_close(comparison.shared, torch.where(both, torch.where(of_a < of_b, of_a, of_b), 0.0))
    logits = model(pixels).logits
    torch.testing.assert_close(comparison.logits, torch.stack([logits[image, a], logits[image, b]], dim=-1))
    assert comparison.a.equal(a)
    assert comparison.b.equal(b)


@cases
def test_contributions_of_all_tokens_sum_to_what_the_logit_owes_to_the_heads(family, layer):
    model, pixels = spread_model(family, layer), images(3).double()
    textbook = FainterTextbook(model)
    with torch.no_grad():
        logits = textbook(pixels)
        textbook.share = 0.0
        owed = logits - textbook(pixels)
    found = textbook_contributions(model, pixels).sum((-2, -1))  # those of the patches are what `contributions` returns
    assert owed.abs().max() > 0.1
    torch.testing.assert_close(found, owed, rtol=0.02, atol=0.02 * owed.abs().max().item())


def test_defaults_are_the_predicted_class_and_its_runner_up():
    model, pixels = spread_model(), images(4).double()
    ranked = model(pixels).logits.argsort(descending=True)
    comparison = model.compare(pixels)
    assert comparison.a.equal(ranked[:, 0])
    assert comparison.b.equal(ranked[:, 1])
    assert model.compare(pixels, ranked[:, 2]).b.equal(ranked[:, 0])
    with_itself = model.compare(pixels, ranked[:, 2], ranked[:, 2])
    assert with_itself.b.equal(ranked[:, 0])


def test_several_classes_of_an_image_are_compared_at_once():
    model, pixels = spread_model(), images(2).double()
    a, b = torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.tensor([[1, 0, 3], [0, 0, 1]])
    together = model.compare(pixels, a, b)
    assert together.maps.shape == (2, 3, NUM_HEADS, GRID, GRID)
    for column in range(3):
        alone = model.compare(pixels, a[:, column], b[:, column])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][:, column], value)


def test_heads_that_suffice_against_a_rival_are_counted_by_blurring_one_after_the_other():
    model, pixels = spread_model(), images(6).double()
    a = model(pixels).logits.argmax(-1)
    comparison, ranking = model.compare(pixels, a), model.rank_heads(pixels, a)
    textbook, found = TextbookPromptCam(model), []
    for image in range(6):
        label, rival, order = a[image].item(), comparison.b[image].item(), ranking.order[image].tolist()
        wins = []
        for blurred in range(NUM_HEADS + 1):
            textbook._blur = (label, order[NUM_HEADS - blurred :])
            with torch.no_grad():
                logits = textbook(pixels[image : image + 1])[0]
            wins.append(bool(logits[label] >= logits[rival]))
        textbook._blur = None
        found.append(0 if all(wins) else NUM_HEADS + 1 - wins.index(False))
    assert comparison.num_sufficient.tolist() == found
    assert len(set(found)) > 1
    # Beating one rival never takes more heads than beating all of them
    assert (comparison.num_sufficient <= ranking.num_sufficient).all()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_contexts_do_not_change_the_numbers(context):
    model, pixels = spread_model("dinov2"), images(2).double()
    expected = model.compare(pixels)
    with context(), model.cached_prompts():
        for _ in range(2):
            found = model.compare(pixels)
            torch.testing.assert_close(found.maps, expected.maps)
            assert not found.maps.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_autocast_gives_maps_in_float32():
    model, pixels = spread_model("dinov2").float(), images(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.compare(pixels).maps.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_same_maps_but_for_rounding(dtype):
    model, pixels = spread_model("dinov2"), images(2).double()
    expected = model.compare(pixels)
    model.to(dtype)
    found = model.compare(pixels.to(dtype), expected.a, expected.b)
    assert found.maps.dtype == torch.float32
    error = (found.maps - expected.maps).abs().max() / expected.maps.abs().max()
    assert error < 40 * torch.finfo(dtype).eps


def test_images_of_another_size_have_maps_of_another_grid():
    model = spread_model("dinov2")
    comparison = model.compare(torch.randn(1, 3, 48, 24, dtype=torch.float64))
    assert comparison.maps.shape == (1, NUM_HEADS, 6, 3)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.tensor([0, NUM_LABELS]), None, "a holds 5: expected 0 to 4"),
        (torch.tensor([0, 1]), torch.tensor([1, -1]), "b holds -1: expected 0 to 4"),
        (torch.tensor([0]), None, "a of shape (1,)"),
        (torch.tensor([0, 1]), torch.tensor([[1], [0]]), "expected the same shape"),
        (None, torch.tensor([2, 1]), "b is given without a"),
    ],
)
def test_classes_that_do_not_fit_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        tiny_model().compare(images(2), a, b)


def test_contributions_refuse_classes_of_the_wrong_shape():
    with pytest.raises(ValueError, match="classes of shape"):
        tiny_model().contributions(images(2), torch.tensor([0, 1]))
