import itertools
import math
import shutil

import numpy as np
import pytest
import torch

from promptcam_hf.evaluation.faithfulness import (
    area_under,
    blurred,
    deletion_curve,
    insertion_curve,
    interval_of_mean,
    measure_faithfulness,
    relative_drop,
    replacement_curve,
    road,
)

from ..tiny_models import images
from .cases import GRID, SIZE, Watcher, trait_data


def by_a_patch(pixel_values: torch.Tensor) -> torch.Tensor:
    """Scores of a toy classifier: the brighter patch (2, 1), the higher the score of class 1."""
    brightness = pixel_values[:, :, 16:24, 8:16].mean((1, 2, 3))
    return torch.stack([torch.zeros_like(brightness), 4 * brightness], dim=1)


def test_curves_are_those_of_a_slow_loop():
    start, end = images(3), images(3, seed=2)
    maps, classes, steps = torch.rand(3, GRID, GRID), torch.tensor([1, 0, 1]), 5
    found = replacement_curve(by_a_patch, start, end, maps, classes, steps)
    assert found.shape == (3, steps + 1)
    for index in range(3):
        smooth = torch.nn.functional.interpolate(maps[index][None, None].double(), (SIZE, SIZE), mode="bilinear")[0, 0]
        pixels = sorted(itertools.product(range(SIZE), repeat=2), key=lambda pixel: -smooth[pixel].item())
        image = start[index].clone()
        for step in range(steps + 1):
            for row, column in pixels[: round(len(pixels) * step / steps)]:
                image[:, row, column] = end[index, :, row, column]
            probability = by_a_patch(image[None])[0].softmax(-1)[classes[index]]
            assert found[index, step].item() == pytest.approx(probability.item(), rel=1e-5)


def test_a_faithful_map_beats_an_inverted_one():
    image, faithful, classes = images(1) * 0.1, torch.zeros(1, GRID, GRID), torch.tensor([1])
    image[:, :, 16:24, 8:16] = 1.0
    faithful[:, 2, 1] = 1.0
    even = torch.ones(1, GRID, GRID)
    deleted, inserted = (
        [area_under(curve(by_a_patch, image, maps, classes)).item() for maps in (faithful, even, 1 - faithful)]
        for curve in (deletion_curve, insertion_curve)
    )
    assert deleted == sorted(deleted)
    assert inserted == sorted(inserted, reverse=True)
    assert deleted[0] < 0.6 < 0.9 < deleted[2]  # 0.5 once the patch is gone, 0.98 as long as it is there
    assert inserted[0] > 0.97 > 0.95 > inserted[2]  # a patch that is blurred is still there


def test_where_curves_begin_and_end():
    image, maps, classes = images(2), torch.rand(2, GRID, GRID), torch.tensor([0, 1])
    deleted, inserted = (curve(by_a_patch, image, maps, classes) for curve in (deletion_curve, insertion_curve))
    assert deleted.shape == inserted.shape == (2, 21)

    def probability(pixel_values: torch.Tensor) -> torch.Tensor:
        return by_a_patch(pixel_values).double().softmax(-1)[[0, 1], classes]

    torch.testing.assert_close(deleted[:, 0], probability(image))
    torch.testing.assert_close(deleted[:, -1], torch.full((2,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(inserted[:, 0], probability(blurred(image)))
    torch.testing.assert_close(inserted[:, -1], probability(image))


def test_area_under_curves():
    assert area_under(torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])).tolist() == [0.5, 1.0, 0.25]


def test_relative_drop_of_a_hand_computed_case():
    """Of 32 x 32 pixels, 5 % are 51: in a map with one hot patch of 64 pixels, those at its centre and towards it."""
    image, hot, cold = torch.ones(1, 3, SIZE, SIZE), torch.zeros(1, GRID, GRID), torch.zeros(1, GRID, GRID)
    hot[0, 2, 1] = cold[0, 0, 3] = 1.0
    a, b = torch.tensor([1]), torch.tensor([0])
    before, after = (1 / (1 + math.exp(-4 * brightness)) for brightness in (1, (64 - 51) / 64))
    # Class 0 wins what class 1 loses
    assert relative_drop(by_a_patch, image, hot, a, b).item() == pytest.approx(2 * (before - after))
    assert relative_drop(by_a_patch, image, cold, a, b).item() == 0
    assert relative_drop(by_a_patch, image, hot, b, a).item() == pytest.approx(-2 * (before - after))


def test_road_of_a_hand_computed_case():
    """The patch that decides is bright, and all else is dark: what is filled is dark, too."""
    image, hot = torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, GRID, GRID)
    image[:, :, 16:24, 8:16] = hot[0, 2, 1] = 1.0
    classes = torch.tensor([1])
    # A fifth of the pixels covers the patch; the four fifths that come last do not touch it
    expected = 1 / (1 + math.exp(-4)) - 0.5
    assert road(by_a_patch, image, hot, classes).item() == pytest.approx(expected, abs=0.01)
    assert road(by_a_patch, image, 1 - hot, classes).item() == pytest.approx(-expected, abs=0.01)
    assert road(by_a_patch, image, hot, 1 - classes).item() == pytest.approx(-expected, abs=0.01)


def test_intervals_hold_the_mean_and_shrink_with_more_photographs():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    few, many = (interval_of_mean(values[:count]) for count in (25, 400))
    assert many[0] < values.mean() < many[1]
    assert many[1] - many[0] == pytest.approx(4 * 0.1 / 20, rel=0.15)
    assert few[1] - few[0] > 2.5 * (many[1] - many[0])


def test_blurring_is_gaussian_and_keeps_what_is_even():
    even = torch.full((1, 3, 40, 60), 0.7)
    torch.testing.assert_close(blurred(even), even)
    point = torch.zeros(1, 3, 80, 90)
    point[0, 1, 40, 50] = 1.0
    spread = blurred(point)
    assert spread[0, [0, 2]].abs().max() == 0  # channels do not mix
    spread = spread[0, 1]
    assert spread.sum().item() == pytest.approx(1)
    for axis, (centre, size) in enumerate(((40, 80), (50, 90))):
        distance = torch.arange(size) - centre
        variance = (spread.sum(1 - axis) * distance**2).sum().item()
        assert math.sqrt(variance) == pytest.approx(80 / 20, rel=0.03)
    stripes = torch.arange(80).remainder(2).float().expand(1, 3, 80, 80)
    assert blurred(stripes).std() < 0.02 * stripes.std()


def test_faithfulness_is_measured_on_some_images_of_every_class(birds, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(birds / "test", folder / "test")
    watcher, data = Watcher(), trait_data(folder)
    assert data.table is data[0].mask is None
    assert data.without(0) == data.swapped(0) == {}
    faithfulness = measure_faithfulness(watcher, data, batch_size=3, num_images=4, steps=5, progress=False)
    assert faithfulness["num_images"] == len(watcher.explained) == 4
    assert sorted(watcher.logits(torch.stack(watcher.explained)).argmax(-1).tolist()) == [0, 0, 1, 1]
    every = [data[row].pixel_values for row in range(7)]
    assert all(any(image.equal(other) for other in every) for image in watcher.explained)
    for curve, name in ((insertion_curve, "insertion"), (deletion_curve, "deletion")):
        pixel_values = torch.stack(watcher.explained)
        classes = watcher.logits(pixel_values).argmax(-1)
        curves = curve(watcher.logits, pixel_values, watcher.maps(pixel_values, classes)[:, 0], classes, 5)
        assert faithfulness[f"{name}_curve"] == pytest.approx(curves.mean(0).tolist())
        assert faithfulness[name] == pytest.approx(area_under(curves).mean().item())
        watcher.explained = watcher.explained[:4]
    classes, runners_up = watcher.logits(pixel_values).topk(2).indices.T
    drop = relative_drop(watcher.logits, pixel_values, watcher.maps(pixel_values, classes)[:, 0], classes, runners_up)
    assert faithfulness["relative_drop"] == pytest.approx(drop.mean().item())
    assert faithfulness["relative_drop_chance"] < faithfulness["relative_drop"]
    roads = road(watcher.logits, pixel_values, watcher.maps(pixel_values, classes)[:, 0], classes)
    assert faithfulness["road"] == pytest.approx(roads.mean().item(), abs=0.02)
    low, high = faithfulness["relative_drop_interval"]
    assert drop.min() <= low <= faithfulness["relative_drop"] <= high <= drop.max()
