"""Whether maps show traits: each figure against cases made by hand and slow loops, and all of them together on
explainers of which it is known where they look."""

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from typer.testing import CliRunner

from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.cli import app
from promptcam_hf.data.parts import PartTable
from promptcam_hf.evaluation.evaluation import evaluate
from promptcam_hf.evaluation.trait_metrics import (
    PromptCamExplainer,
    area_under,
    blurred,
    deletion_curve,
    evaluate_traits,
    grown,
    insertion_curve,
    load_trait_data,
    mass,
    pointing,
    removal_effect,
    replacement_curve,
    spearman,
    traits_summary,
    where,
)

from ..tiny_models import IMAGE_SIZE, images, tiny_model

# Images of 32 x 32 pixels on a grid of 4 x 4 patches. Classes differ in the colour of the crown and in nothing else.
SIZE, GRID, PATCH = IMAGE_SIZE, 4, 8
CLASSES, NAMES = ("red", "blue"), ("red", "blue", "neither")  # of the images, of the models
COLOURS = {"red": (250, 0, 0), "blue": (0, 0, 250)}
BOXES = {
    "crown": (8, 0, 16, 8),
    "wing": (8, 8, 16, 16),
    "tail": (0, 8, 8, 16),
    "legs": (8, 24, 24, 32),
    "leaf": (24, 24, 32, 32),
}
GREY = (128, 128, 128)  # zero, as good as, once normalised
TABLE = PartTable(tuple(BOXES), {name: {"crown": name} for name in CLASSES}, {}, frozenset({"leaf"}))


@pytest.fixture(autouse=True)
def no_accelerator_before() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def scene(crown: tuple[int, int, int], without: str | None = None) -> Image.Image:
    """Parts on a grey ground: the crown in a colour, the others green."""
    image = Image.new("RGB", (SIZE, SIZE), GREY)
    for part, box in BOXES.items():
        if part != without:
            image.paste(crown if part == "crown" else (0, 200, 0), box)
    return image


def mask_image(hidden: str | None = None) -> Image.Image:
    mask = Image.new("L", (SIZE, SIZE))
    for value, (part, box) in enumerate(BOXES.items(), start=1):
        if part != hidden:
            mask.paste(value, box)
    return mask


def save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """Of each class three images with all parts, and of red also one whose crown is blue."""
    folder = tmp_path_factory.mktemp("birds")
    TABLE.save(folder)
    for name in CLASSES:
        other = CLASSES[1 - CLASSES.index(name)]
        for number in range(4 if name == "red" else 3):
            file = f"{name}/{number}.png"
            save(scene(COLOURS[name if number < 3 else other]), folder / "test" / file)
            save(mask_image(), folder / "test_parts" / file)
            for part in BOXES:
                save(scene(COLOURS[name], without=part), folder / "test_without" / part / file)
            save(scene(COLOURS[other]), folder / "test_swapped" / other / file)
    return folder


class Watcher:
    """It takes an image for red, blue or neither by the colour of one patch, and says that it looks at a patch (row,
    column)."""

    name = "Watcher"

    def __init__(self, looks_at: tuple[int, int] = (0, 1), decides_by: tuple[int, int] = (0, 1), num_maps: int = 4):
        self.looks_at, self.num_maps = looks_at, num_maps
        self.row, self.column = (slice(PATCH * place, PATCH * (place + 1)) for place in decides_by)
        self.explained: list[torch.Tensor] = []

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        red, _, blue = pixel_values[..., self.row, self.column].mean((-2, -1)).T
        return torch.stack([2 * red, 2 * blue, torch.ones_like(red)], dim=1)

    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        self.explained += list(pixel_values)
        maps = torch.zeros(len(pixel_values), self.num_maps, GRID, GRID)
        row, column = self.looks_at
        maps[:, 0, row, column] = 1.0
        return maps


def trait_data(folder, names=NAMES, size=SIZE):
    return load_trait_data(folder, names, new_image_processor(size))


def box(top: int, bottom: int, left: int, right: int, size: int = SIZE) -> torch.Tensor:
    region = torch.zeros(size, size, dtype=torch.bool)
    region[top:bottom, left:right] = True
    return region


def peak_at(*place: int) -> torch.Tensor:
    peaked = torch.full((GRID, GRID), 0.1)
    peaked[place] = 1.0
    return peaked


def random_regions(count: int, seed: int = 0) -> torch.Tensor:
    """Of a few pixels and small boxes each."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.rand(count, SIZE, SIZE, generator=generator) > 0.995
    for region in regions:
        top, left, height, width = (int(torch.randint(1, n, (), generator=generator)) for n in (28, 28, 9, 9))
        region[top : top + height, left : left + width] = True
    return regions


# --- Where maps lie ---------------------------------------------------------------------------------------------------


def test_the_pixels_of_parts():
    mask = torch.tensor([[0, 1, 2], [3, 2, 5]], dtype=torch.uint8)
    assert where(mask, TABLE, ["wing", "leaf"]).tolist() == [[False, False, True], [False, True, True]]
    assert not where(mask, TABLE, []).any()


def test_grown_regions_are_those_within_half_a_patch_of_a_centre():
    for region in random_regions(10):
        expected = torch.zeros(GRID, GRID, dtype=torch.bool)
        for row, column in itertools.product(range(GRID), repeat=2):
            centre = (PATCH * (row + 0.5), PATCH * (column + 0.5))
            for pixel in region.nonzero().tolist():  # a pixel is a square of side 1
                distance = max(max(p - c, c - p - 1) for p, c in zip(pixel, centre, strict=True))
                expected[row, column] |= distance < PATCH / 2
        assert grown(region, (GRID, GRID)).equal(expected)
        assert 0 < expected.sum() < GRID * GRID


def test_pointing_on_the_part_off_it_and_just_beside_it():
    part, animal = box(10, 13, 18, 22), box(8, 24, 8, 24)

    def hit(region: torch.Tensor, *place: int) -> float:
        return pointing(peak_at(*place)[None], region, animal)["top1"]

    assert hit(part, 1, 2) == 1  # rows 8 to 15, columns 16 to 23
    assert [hit(part, *place) for place in ((1, 1), (0, 2), (2, 2), (1, 3), (3, 0))] == [0] * 5
    # The centre of patch (1, 1) is column 12: half a patch to the right of it, the part still counts
    assert hit(box(10, 13, 15, 22), 1, 1) == 1
    assert hit(box(10, 13, 16, 22), 1, 1) == 0


def test_pointing_with_four_maps():
    part, animal = box(8, 16, 16, 24), box(0, 32, 0, 32)
    off, on, strong = peak_at(0, 0), peak_at(1, 2), 10 * peak_at(3, 3)

    def hits(*maps: torch.Tensor) -> list[float]:
        found = pointing(torch.stack(maps), part, animal)
        return [found[key] for key in ("top1", "top4", "top4_sum")]

    assert hits(on, off, off, off) == [1, 1, 0]
    assert hits(off, on, on, off) == [0, 1, 0]  # two to two: of equals the first
    assert hits(off, on, on, on) == [0, 1, 1]
    assert hits(on, on, on, strong) == [1, 1, 0]
    assert hits(off, off, off, off, on, on) == [0, 0, 0]  # the fifth and sixth do not count
    assert hits(on) == [1, 1, 1]


def test_pointing_where_nothing_is_to_be_seen_is_left_out():
    assert pointing(peak_at(1, 1)[None], box(0, 0, 0, 0), box(0, 32, 0, 32)) == {}


@pytest.mark.parametrize("num_maps", [1, 2, 4, 6])
def test_chance_is_what_all_draws_of_patches_give(num_maps):
    region, animal = box(6, 10, 12, 20), box(4, 18, 9, 26)
    found = pointing(torch.rand(num_maps, GRID, GRID), region, animal)
    patches = list(itertools.product(range(GRID), repeat=2))

    def shows(region: torch.Tensor, row: int, column: int) -> bool:
        return bool(region[PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)].any())

    hits = [shows(region, *patch) for patch in patches]
    draws = list(itertools.product(hits, repeat=min(num_maps, 4)))
    assert found["chance"] == sum(hits) / len(hits) == 4 / 16
    assert found["chance_top4"] == pytest.approx(sum(map(any, draws)) / len(draws))
    on_animal = [hit for hit, patch in zip(hits, patches, strict=True) if shows(animal, *patch)]
    assert found["chance_on_animal"] == pytest.approx(sum(on_animal) / len(on_animal)) == 4 / 9


def test_mass_of_a_map_pixel_by_pixel():
    attention = torch.rand(GRID, GRID, generator=torch.Generator().manual_seed(0))
    for region in random_regions(5):
        expected = sum(
            attention[row // PATCH, column // PATCH].item() / PATCH**2 for row, column in region.nonzero().tolist()
        )
        assert mass(attention, region) == pytest.approx(expected / attention.sum().item())
        assert mass(attention, region) + mass(attention, ~region) == pytest.approx(1)
        # What looks everywhere alike has the share of the pixels, and so has what says nothing
        for even in (torch.full((GRID, GRID), 0.3), torch.zeros(GRID, GRID)):
            assert mass(even, region) == pytest.approx(region.double().mean().item())
    alone = torch.zeros(GRID, GRID)
    alone[1, 2] = 0.2
    assert mass(alone, box(8, 16, 16, 24)) == 1
    assert mass(alone, box(8, 16, 20, 32)) == 0.5
    assert mass(alone, box(16, 32, 0, 32)) == 0


# --- What matters -----------------------------------------------------------------------------------------------------


def test_spearman_by_hand():
    assert spearman([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [-1, -20, -21]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    # 1 - 6 * (0 + 1 + 1 + 4 + 4) / (5 * 24)
    assert spearman([1, 2, 3, 4, 5], [1, 3, 2, 6, 2.5]) == pytest.approx(1 - 6 * (0 + 4 + 1 + 1 + 4) / 120)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2, 3], [0, 0, 0]) is None


def test_effect_of_a_removal_by_hand():
    before = torch.tensor([0.8, 0.1, 0.1]).log() + 3.0
    for after, changed in (
        ([0.39, 0.31, 0.3], 1),
        ([0.41, 0.3, 0.29], 0),
        ([0.45, 0.5, 0.05], 1),
        ([0.9, 0.05, 0.05], 0),
    ):
        effect = removal_effect(before, torch.tensor(after).log(), 0)
        assert effect["changed"] == changed
        assert effect["probability_fall"] == pytest.approx(0.8 - after[0])
        assert effect["log_probability_fall"] == pytest.approx(math.log(0.8 / after[0]))


# --- Faithfulness -----------------------------------------------------------------------------------------------------


def by_a_patch(pixel_values: torch.Tensor) -> torch.Tensor:
    """Scores of a toy classifier: class 1 the more, the brighter patch (2, 1) is."""
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
            assert found[index, step].item() == pytest.approx(probability.item(), abs=1e-6)


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


# --- Explainers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, 48])
def test_maps_of_a_prompt_cam_are_its_heads_by_importance(size):
    model = tiny_model("vit").train()
    explainer, pixel_values, classes = PromptCamExplainer(model), images(3, size=size), torch.tensor([4, 0, 2])
    assert not model.training
    arguments = {"interpolate_pos_encoding": size != SIZE}
    torch.testing.assert_close(explainer.logits(pixel_values), model(pixel_values, **arguments).logits)
    maps, ranking = explainer.maps(pixel_values, classes), model.rank_heads(pixel_values, classes, **arguments)
    assert maps.shape == (3, 4, size // PATCH, size // PATCH)
    assert not maps.requires_grad
    for image, rank in itertools.product(range(3), range(4)):
        assert maps[image, rank].equal(ranking.trait_maps[image, ranking.order[image, rank]])
    assert len({tuple(order) for order in ranking.order.tolist()}) > 1


# --- Data -------------------------------------------------------------------------------------------------------------


def test_images_come_with_their_masks_and_other_scenes(birds):
    data = trait_data(birds, names=["blue", "green", "red"])
    assert len(data) == 7
    assert data.labels == [0, 0, 0, 2, 2, 2, 2]
    first = data[0]
    assert (first.label, first.pixel_values.shape) == (0, (3, SIZE, SIZE))
    assert first.mask.equal(torch.from_numpy(np.array(mask_image())))
    without, swapped = data.without(0), data.swapped(0)
    assert set(without) == set(BOXES)
    changed = (without["wing"] != first.pixel_values).any(0)
    assert changed.equal(where(first.mask, data.table, ["wing"]))
    assert set(swapped) == {"red"}
    assert swapped["red"].equal(data[3].pixel_values)


def test_masks_are_resized_like_their_images_without_new_values(birds, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(birds, folder)
    wide = (96, 48)  # pixels of 3 x 1.5
    for file in ("test/blue/0.png", "test_parts/blue/0.png"):
        Image.open(folder / file).resize(wide, Image.Resampling.NEAREST).save(folder / file)
    assert trait_data(folder)[0].mask.equal(trait_data(birds)[0].mask)
    small = trait_data(folder, size=16)[0].mask
    assert small.shape == (16, 16)
    assert small.equal(torch.from_numpy(np.array(mask_image()))[::2, ::2])


def test_masks_that_are_missing_or_do_not_fit_are_told(birds, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(birds, folder)
    mask = folder / "test_parts" / "red" / "1.png"
    mask_image().resize((30, 32)).save(mask)
    with pytest.raises(ValueError, match=r"red.1\.png: a mask of 30 x 32 pixels; expected 32 x 32"):
        evaluate_traits(Watcher(), trait_data(folder), progress=False)
    mask.unlink()
    with pytest.raises(ValueError, match=r"red.1\.png is missing; expected a mask for each test image"):
        trait_data(folder)


def test_an_image_processor_that_crops_is_refused(birds):
    processor = new_image_processor(SIZE)
    processor.do_center_crop = True
    with pytest.raises(ValueError, match="The image processor crops, so that masks do not fit"):
        load_trait_data(birds, NAMES, processor)


def test_classes_that_the_model_lacks_are_told(birds):
    with pytest.raises(ValueError, match="the model knows no class 'blue'"):
        trait_data(birds, names=["red", "green"])


# --- All of it --------------------------------------------------------------------------------------------------------


def test_one_that_looks_at_what_it_decides_by(birds):
    results = evaluate_traits(Watcher(), trait_data(birds), batch_size=2, progress=False)
    assert (results["explainer"], results["num_images"], results["num_correct"]) == ("Watcher", 7, 6)
    for kind in ("at_distinguishing", "at_marks"):
        chance = {
            "chance": 1 / 16,
            "chance_top4": pytest.approx(1 - (15 / 16) ** 4),
            "chance_on_animal": pytest.approx(1 / 5),
        }
        assert results["pointing"][kind] == {"num_images": 6, "top1": 1, "top4": 1, "top4_sum": 1, **chance}
    areas = {"area_distinguishing": 1 / 16, "area_rest_of_animal": 4 / 16, "area_background": 11 / 16}
    looks = {"on_distinguishing": 1, "on_rest_of_animal": 0, "on_background": 0}
    assert results["mass"] == {"num_images": 6, **looks, **areas}
    interventions = results["interventions"]
    red, grey = 250 / 127.5 - 1, 128 / 127.5 - 1  # normalised
    with_crown = math.exp(2 * red) / (math.exp(2 * red) + math.exp(-2) + math.e)
    without_crown = math.exp(2 * grey) / (2 * math.exp(2 * grey) + math.e)
    assert interventions["removed_mark"]["changed"] == 1
    assert interventions["removed_mark"]["probability_fall"] == pytest.approx(with_crown - without_crown, abs=1e-6)
    assert interventions["removed_other"] == {"num_images": 6, "changed": 0, "probability_fall": 0}
    assert interventions["swapped"] == {"num_images": 6, "taken_for_other": 1}
    assert interventions["rank_agreement"] == {"num_images": 6, "attention": 1, "attention_per_pixel": 1}
    assert json.loads(json.dumps(results)) == results


def test_one_that_looks_where_it_does_not_decide(birds):
    results = evaluate_traits(Watcher(looks_at=(1, 1)), trait_data(birds), progress=False)
    assert [results["pointing"]["at_marks"][key] for key in ("top1", "top4", "top4_sum")] == [0, 0, 0]
    assert results["mass"]["on_rest_of_animal"] == 1
    assert results["interventions"]["removed_mark"]["changed"] == 1
    # Ranks 4, 2, 2, 2 of importance and 2, 4, 2, 2 of attention
    assert results["interventions"]["rank_agreement"]["attention"] == pytest.approx(-1 / 3)
    other = evaluate_traits(Watcher(looks_at=(3, 3)), trait_data(birds), progress=False)  # the leaf
    assert other["mass"]["on_background"] == 1
    assert other["interventions"]["rank_agreement"] == {
        "num_images": 0,
        **dict.fromkeys(("attention", "attention_per_pixel")),
    }


def test_the_first_four_maps_count_together(birds):
    class Glancing(Watcher):
        def maps(self, pixel_values, classes):
            maps = super().maps(pixel_values, classes)
            maps[:, 3, 1, 1] = 3.0  # the wing
            maps[:, 4] = 100.0
            return maps

    data = trait_data(birds)
    results = evaluate_traits(Glancing(num_maps=5), data, progress=False)
    looks = [results["mass"][f"on_{place}"] for place in ("distinguishing", "rest_of_animal", "background")]
    assert looks == [0.25, 0.75, 0]
    assert [results["pointing"]["at_marks"][key] for key in ("top1", "top4", "top4_sum")] == [1, 1, 0]
    # Ranks 4, 2, 2, 2 of importance and 3, 4, 1.5, 1.5 of attention
    agreement = results["interventions"]["rank_agreement"]["attention"]
    assert agreement == pytest.approx((1.5 * 0.5 - 0.5 * (1.5 - 1 - 1)) / math.sqrt(3 * 4.5))
    # Deleted in the order of the wing, which does not matter, and then the crown
    crown_only = evaluate_traits(Watcher(), data, progress=False)["faithfulness"]["deletion_curve"]
    assert results["faithfulness"]["deletion_curve"][1] > crown_only[1] + 0.1


def test_one_that_looks_everywhere_alike(birds):
    class Even(Watcher):
        def maps(self, pixel_values, classes):
            return torch.ones(len(pixel_values), 1, GRID, GRID)

    results = evaluate_traits(Even(), trait_data(birds), progress=False)
    assert [results["mass"][f"{what}_rest_of_animal"] for what in ("on", "area")] == [4 / 16, 4 / 16]
    # The legs are as large as two other parts and get as much; each of their pixels gets what others get
    agreement = results["interventions"]["rank_agreement"]
    assert agreement == {"num_images": 6, "attention": pytest.approx(-1 / 3), "attention_per_pixel": None}


def test_one_that_decides_by_something_else(birds, tmp_path):
    """By the wing, which is red where the class is, and is not what makes it."""
    folder = tmp_path / "birds"
    shutil.copytree(birds, folder)
    for file in folder.glob("test*/**/[0-9].png"):
        if "test_parts" not in file.parts and file.parent.name == "red" and "wing" not in file.parts:
            image = Image.open(file)
            image.paste(COLOURS["red"], BOXES["wing"])
            image.save(file)
    results = evaluate_traits(Watcher(decides_by=(1, 1)), trait_data(folder), progress=False)
    assert results["num_correct"] == 4  # the red ones
    assert results["interventions"]["removed_mark"]["changed"] == 0
    assert results["interventions"]["removed_other"]["changed"] == pytest.approx(1 / 3)  # wing, but not tail and legs
    assert results["interventions"]["swapped"]["taken_for_other"] == 0
    assert results["interventions"]["rank_agreement"]["attention"] == pytest.approx(-1 / 3)


def test_hidden_parts_and_removals_without_a_trace_are_left_out(birds, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(birds, folder)
    mask_image(hidden="crown").save(folder / "test_parts" / "red" / "0.png")
    for name in ("blue/0.png", "blue/1.png"):
        shutil.copy(folder / "test" / name, folder / "test_without" / "crown" / name)
    for number, part in itertools.product(range(3), ("wing", "tail")):
        (folder / "test_without" / part / f"blue/{number}.png").unlink()
    results = evaluate_traits(Watcher(), trait_data(folder), progress=False)
    assert results["num_correct"] == results["mass"]["num_images"] == 6
    assert results["pointing"]["at_marks"]["num_images"] == results["pointing"]["at_distinguishing"]["num_images"] == 5
    counts = {kind: row["num_images"] for kind, row in results["interventions"].items()}
    # Of the first red one nothing that matters can be removed, so that all is equally important; of the last blue one
    # crown and legs can, which are too few to be ranked
    assert counts == {"removed_mark": 3, "removed_other": 6, "swapped": 6, "rank_agreement": 2}
    assert results["interventions"]["removed_mark"]["changed"] == 1


def test_without_interventions_and_without_a_correct_image_figures_are_none(birds, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(birds, folder, ignore=shutil.ignore_patterns("test_without", "test_swapped"))
    results = evaluate_traits(Watcher(num_maps=1), trait_data(folder), progress=False)
    assert results["pointing"]["at_marks"]["chance_top4"] == results["pointing"]["at_marks"]["chance"] == 1 / 16
    assert all(set(row.values()) == {0, None} for row in results["interventions"].values())
    wrong = evaluate_traits(Watcher(), trait_data(folder, names=("blue", "red", "neither")), progress=False)
    assert wrong["num_correct"] == 1
    shutil.rmtree(folder / "test" / "red")
    none = evaluate_traits(Watcher(), trait_data(folder, names=("blue", "red", "neither")), progress=False)
    assert none["num_correct"] == 0
    assert set(none["mass"].values()) == {0, None}
    for found in (results, wrong, none):
        assert "most important map" in traits_summary(found)


def test_faithfulness_is_that_of_some_images_of_every_class(birds, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(birds / "test", folder / "test")
    watcher, data = Watcher(), trait_data(folder)
    assert data.table is data[0].mask is None
    assert data.without(0) == data.swapped(0) == {}
    results = evaluate_traits(watcher, data, batch_size=3, faithfulness_images=4, steps=5, progress=False)
    assert set(results) == {"explainer", "num_images", "faithfulness"}
    faithfulness = results["faithfulness"]
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


def test_arguments_and_maps_that_make_no_sense_are_refused(birds):
    data = trait_data(birds)
    with pytest.raises(
        ValueError, match="7 images, batch_size=16, faithfulness_images=0, steps=20: expected 1 or more"
    ):
        evaluate_traits(Watcher(), data, faithfulness_images=0)

    class Negative(Watcher):
        def maps(self, pixel_values, classes):
            return super().maps(pixel_values, classes) - 0.5

    with pytest.raises(ValueError, match=r"Watcher: maps of shape .*, the least value -0.5; expected"):
        evaluate_traits(Negative(), data, progress=False)


def test_the_table_shows_the_figures(birds):
    lines = traits_summary(evaluate_traits(Watcher(), trait_data(birds), progress=False)).splitlines()
    assert lines[0] == "Watcher, 7 photographs, 6 of them classified correctly"

    def figures(what: str) -> list[str]:
        return next(line for line in lines if line.strip().startswith(what))[46:].split()

    assert figures("most important map")[0] == "100.0%"
    assert figures("most important map")[-1] == "6.2%"
    assert figures("on background") == ["0.0%", "68.8%", "of", "the", "pixels"]
    assert figures("its mark removed") == ["100.0%", "6", "photographs"]
    assert figures("another part removed")[0] == "0.0%"
    assert figures("importance ~ attention, Spearman")[0] == "1.00"
    assert max(map(len, lines)) <= 100


# --- promptcam evaluate --traits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Untrained, so that it takes most for one class."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(tiny_model("vit", id2label=dict(enumerate(NAMES))), new_image_processor(SIZE), folder)
    return folder


def test_the_command_writes_figures_beside_the_report(checkpoint, birds, tmp_path):
    arguments = ["--model", checkpoint, "--data", birds, "--output-dir", tmp_path / "out", "--faithfulness-images", 2]
    result = CliRunner().invoke(app, ["evaluate", "--traits", *map(str, arguments), "--num-workers", "0"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    written = json.loads((tmp_path / "out" / "traits.json").read_text())
    assert written["model"] == report["model"] == "tiny"
    assert written["num_correct"] == report["accuracy"] * 7
    assert written["faithfulness"]["num_images"] == 2
    model = tiny_model("vit", id2label=dict(enumerate(NAMES)))
    expected = evaluate_traits(PromptCamExplainer(model), trait_data(birds), faithfulness_images=2, progress=False)
    assert {key: written[key] for key in ("pointing", "num_images")} == {
        key: expected[key] for key in ("pointing", "num_images")
    }
    assert written["mass"] == pytest.approx(expected["mass"])
    assert traits_summary(written) in result.stdout


def test_other_data_get_faithfulness_only_and_old_figures_go(checkpoint, birds, tmp_path, capsys):
    evaluate(checkpoint, birds, tmp_path / "out", num_workers=0, traits=True, faithfulness_images=1)
    assert "num_correct" in json.loads((tmp_path / "out" / "traits.json").read_text())
    shutil.copytree(birds / "test", tmp_path / "photos" / "test")
    capsys.readouterr()
    evaluate(checkpoint, tmp_path / "photos", tmp_path / "out", num_workers=0, traits=True)
    found = json.loads((tmp_path / "out" / "traits.json").read_text())
    assert (found["data"], found["faithfulness"]["num_images"]) == ("photos", 7)
    assert "pointing" not in found
    printed = capsys.readouterr().out
    assert "deletion" in printed
    assert "pointing" not in printed
    evaluate(checkpoint, tmp_path / "photos", tmp_path / "out", num_workers=0)
    assert not (tmp_path / "out" / "traits.json").exists()


def test_missing_masks_are_told_before_anything_is_written(checkpoint, birds, tmp_path):
    shutil.copytree(birds, tmp_path / "birds", ignore=shutil.ignore_patterns("test_parts"))
    with pytest.raises(ValueError, match="is missing; expected a mask for each test image"):
        evaluate(checkpoint, tmp_path / "birds", tmp_path / "out", num_workers=0, traits=True)
    assert not (tmp_path / "out").exists()
    evaluate(checkpoint, tmp_path / "birds", tmp_path / "out", num_workers=0)  # who does not ask needs none
