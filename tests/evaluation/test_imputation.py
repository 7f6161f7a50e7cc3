"""Pixels that are filled from their surroundings, by hand and as in Quantus."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from promptcam_hf.evaluation.faithfulness import pixel_ranks
from promptcam_hf.evaluation.imputation import imputed

from ..tiny_models import images

GOLDEN = Path(__file__).parents[1] / "fixtures" / "quantus" / "golden.safetensors"


def test_single_pixels_are_the_weighted_mean_of_their_neighbours():
    image = torch.tensor([[0.0, 6.0, 12.0], [18.0, 99.0, 30.0], [36.0, 42.0, 48.0]])[None, None]
    centre, corner = torch.zeros(2, 1, 1, 3, 3, dtype=torch.bool)
    centre[..., 1, 1] = corner[..., 0, 2] = True
    filled = imputed(image, centre, noise=0)
    torch.testing.assert_close(filled[0, 0, 1, 1].item(), (6 + 18 + 30 + 42) / 6 + (0 + 12 + 36 + 48) / 12)
    assert filled[~centre].equal(image[~centre])
    # A corner has two neighbours at its sides and one at its own corner
    torch.testing.assert_close(
        imputed(image, corner, noise=0)[0, 0, 0, 2].item(), (6 / 6 + 30 / 6 + 99 / 12) / (5 / 12)
    )


def test_a_hole_in_a_ramp_is_filled_with_the_ramp():
    """In each image its own hole, at the border or not, and of each channel its own ramp."""
    ramp = torch.arange(12.0).expand(12, 12)
    pixel_values = torch.stack([ramp, 3 - ramp, 0 * ramp]).expand(2, -1, -1, -1)
    holes = torch.zeros(2, 1, 12, 12, dtype=torch.bool)
    holes[0, :, 3:7, 2:9] = holes[1, :, :, 4:8] = True
    torch.testing.assert_close(imputed(pixel_values, holes, noise=0), pixel_values, rtol=0, atol=0.02)
    nothing_left = imputed(pixel_values, torch.ones_like(holes), noise=0)
    assert nothing_left.equal(torch.zeros_like(pixel_values))


def test_noise_is_added_where_pixels_are_filled():
    pixel_values, is_removed = torch.ones(1, 3, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    is_removed[..., 8:56, 8:56] = True
    one, same = (imputed(pixel_values, is_removed, 0.1, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert one.equal(same)
    added = (one - pixel_values)[is_removed.expand_as(one)]
    assert 0.09 < added.std() < 0.11
    assert one[~is_removed.expand_as(one)].eq(1).all()


def test_images_and_accuracy_are_those_of_quantus():
    """`tests/fixtures/quantus/make.py` made the numbers."""
    golden = load_file(GOLDEN)
    rank = pixel_ranks(golden["maps"][:, 0], golden["images"])
    accuracy = []
    for share, expected in zip(golden["shares"].tolist(), golden["imputed"], strict=True):
        filled = imputed(golden["images"], rank < round(100 * share), noise=0)
        torch.testing.assert_close(filled, expected, rtol=0, atol=0.005 * golden["images"].std().item())
        predicted = (filled.flatten(1) @ golden["weight"].T).argmax(-1)
        accuracy.append((predicted == golden["labels"]).float().mean().item())
    assert len(set(accuracy)) > 1
    torch.testing.assert_close(torch.tensor(accuracy), golden["accuracy"].float())


def test_filled_images_have_no_outline_of_the_hole():
    """The border of a hole is no steeper than the image is elsewhere, which a constant colour would be."""
    smooth = images(2).cumsum(-1).cumsum(-2)
    is_removed = torch.zeros(2, 1, *smooth.shape[-2:], dtype=torch.bool)
    is_removed[..., 8:24, 8:24] = True

    def step(pixel_values: torch.Tensor) -> torch.Tensor:
        return (pixel_values[..., 8:24, 8] - pixel_values[..., 8:24, 7]).abs().mean()

    assert step(imputed(smooth, is_removed, noise=0)) < 1.5 * step(smooth)
    assert step(smooth.masked_fill(is_removed, 0)) > 3 * step(smooth)
