"""Each metric on examples computed by hand or by slow loops; all of them on explainers that look at known places."""

import itertools
import json
import math
import shutil

import pytest
import torch
from PIL import Image

from promptcam_hf.evaluation.trait_metrics import (
    energy_based_pointing,
    evaluate_traits,
    part_region,
    patches_showing,
    pointing_game,
    removal_effect,
    spearman,
    traits_summary,
)

from .cases import BOXES, COLOURS, GRID, PATCH, SIZE, TABLE, Watcher, mask_image, trait_data


def box(top: int, bottom: int, left: int, right: int, size: int = SIZE) -> torch.Tensor:
    region = torch.zeros(size, size, dtype=torch.bool)
    region[top:bottom, left:right] = True
    return region


def peak_at(*place: int) -> torch.Tensor:
    peaked = torch.full((GRID, GRID), 0.1)
    peaked[place] = 1.0
    return peaked


def random_regions(count: int, seed: int = 0) -> torch.Tensor:
    """Each of some single pixels and a small box."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.rand(count, SIZE, SIZE, generator=generator) > 0.995
    for region in regions:
        top, left, height, width = (int(torch.randint(1, n, (), generator=generator)) for n in (28, 28, 9, 9))
        region[top : top + height, left : left + width] = True
    return regions


# --- Where the maps are -----------------------------------------------------------------------------------------------


def test_the_pixels_of_parts():
    mask = torch.tensor([[0, 1, 2], [3, 2, 5]], dtype=torch.uint8)
    assert part_region(mask, TABLE, ["wing", "leaf"]).tolist() == [[False, False, True], [False, True, True]]
    assert not part_region(mask, TABLE, []).any()


def test_patches_that_show_a_region_are_those_within_half_a_patch_of_it():
    for region in random_regions(10):
        expected = torch.zeros(GRID, GRID, dtype=torch.bool)
        for row, column in itertools.product(range(GRID), repeat=2):
            centre = (PATCH * (row + 0.5), PATCH * (column + 0.5))
            for pixel in region.nonzero().tolist():  # a pixel is a square of side 1
                distance = max(max(p - c, c - p - 1) for p, c in zip(pixel, centre, strict=True))
                expected[row, column] |= distance < PATCH / 2
        assert patches_showing(region, (GRID, GRID)).equal(expected)
        assert 0 < expected.sum() < GRID * GRID


def test_pointing_game_on_the_part_off_it_and_just_beside_it():
    part, animal = box(10, 13, 18, 22), box(8, 24, 8, 24)

    def hit(region: torch.Tensor, *place: int) -> float:
        return pointing_game(peak_at(*place)[None], region, animal)["top1"]

    assert hit(part, 1, 2) == 1  # rows 8 to 15, columns 16 to 23
    assert [hit(part, *place) for place in ((1, 1), (0, 2), (2, 2), (1, 3), (3, 0))] == [0] * 5
    # The centre of patch (1, 1) is column 12: half a patch to the right of it, the part still counts
    assert hit(box(10, 13, 15, 22), 1, 1) == 1
    assert hit(box(10, 13, 16, 22), 1, 1) == 0


def test_pointing_game_with_four_maps():
    part, animal = box(8, 16, 16, 24), box(0, 32, 0, 32)
    off, on, strong = peak_at(0, 0), peak_at(1, 2), 10 * peak_at(3, 3)

    def hits(*maps: torch.Tensor) -> list[float]:
        found = pointing_game(torch.stack(maps), part, animal)
        return [found[key] for key in ("top1", "top4", "top4_sum")]

    assert hits(on, off, off, off) == [1, 1, 0]
    assert hits(off, on, on, off) == [0, 1, 0]  # two maps against two: the first of equal patches
    assert hits(off, on, on, on) == [0, 1, 1]
    assert hits(on, on, on, strong) == [1, 1, 0]
    assert hits(off, off, off, off, on, on) == [0, 0, 0]  # the fifth and sixth do not count
    assert hits(on) == [1, 1, 1]


def test_pointing_game_without_a_target_is_left_out():
    assert pointing_game(peak_at(1, 1)[None], box(0, 0, 0, 0), box(0, 32, 0, 32)) == {}


@pytest.mark.parametrize("num_maps", [1, 2, 4, 6])
def test_chance_is_the_share_of_hits_among_all_draws_of_patches(num_maps):
    region, animal = box(6, 10, 12, 20), box(4, 18, 9, 26)
    found = pointing_game(torch.rand(num_maps, GRID, GRID), region, animal)
    patches = list(itertools.product(range(GRID), repeat=2))

    def shows(region: torch.Tensor, row: int, column: int) -> bool:
        return bool(region[PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)].any())

    hits = [shows(region, *patch) for patch in patches]
    draws = list(itertools.product(hits, repeat=min(num_maps, 4)))
    assert found["chance"] == sum(hits) / len(hits) == 4 / 16
    assert found["chance_top4"] == pytest.approx(sum(map(any, draws)) / len(draws))
    on_animal = [hit for hit, patch in zip(hits, patches, strict=True) if shows(animal, *patch)]
    assert found["chance_on_animal"] == pytest.approx(sum(on_animal) / len(on_animal)) == 4 / 9


def test_energy_based_pointing_pixel_by_pixel():
    attention = torch.rand(GRID, GRID, generator=torch.Generator().manual_seed(0))
    for region in random_regions(5):
        expected = sum(
            attention[row // PATCH, column // PATCH].item() / PATCH**2 for row, column in region.nonzero().tolist()
        )
        assert energy_based_pointing(attention, region) == pytest.approx(expected / attention.sum().item())
        assert energy_based_pointing(attention, region) + energy_based_pointing(attention, ~region) == pytest.approx(1)
        # An even map has the share of the pixels, and so has a map of zeros
        for even in (torch.full((GRID, GRID), 0.3), torch.zeros(GRID, GRID)):
            assert energy_based_pointing(even, region) == pytest.approx(region.double().mean().item())
    alone = torch.zeros(GRID, GRID)
    alone[1, 2] = 0.2
    assert energy_based_pointing(alone, box(8, 16, 16, 24)) == 1
    assert energy_based_pointing(alone, box(8, 16, 20, 32)) == 0.5
    assert energy_based_pointing(alone, box(16, 32, 0, 32)) == 0


# --- Interventions ----------------------------------------------------------------------------------------------------


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


# --- evaluate_traits --------------------------------------------------------------------------------------------------


def test_explainer_that_looks_at_what_decides(birds):
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
    fall = pytest.approx(with_crown - without_crown, abs=1e-6 * with_crown)  # the difference of two rounded numbers
    assert interventions["removed_mark"]["probability_fall"] == fall
    assert interventions["removed_other"] == {"num_images": 6, "changed": 0, "probability_fall": 0}
    assert interventions["swapped"] == {"num_images": 6, "taken_for_other": 1}
    assert interventions["rank_agreement"] == {"num_images": 6, "attention": 1, "attention_per_pixel": 1}
    assert json.loads(json.dumps(results)) == results


def test_explainer_that_looks_at_what_does_not_decide(birds):
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
    # The wing, which does not matter, is deleted before the crown
    crown_only = evaluate_traits(Watcher(), data, progress=False)["faithfulness"]["deletion_curve"]
    assert results["faithfulness"]["deletion_curve"][1] > crown_only[1] + 0.1


def test_explainer_with_even_maps(birds):
    class Even(Watcher):
        def maps(self, pixel_values, classes):
            return torch.ones(len(pixel_values), 1, GRID, GRID)

    results = evaluate_traits(Even(), trait_data(birds), progress=False)
    assert [results["mass"][f"{what}_rest_of_animal"] for what in ("on", "area")] == [4 / 16, 4 / 16]
    # The legs are twice as large as any other part, and get twice the attention, but not more per pixel
    agreement = results["interventions"]["rank_agreement"]
    assert agreement == {"num_images": 6, "attention": pytest.approx(-1 / 3), "attention_per_pixel": None}


def test_classifier_that_depends_on_a_part_that_is_not_distinguishing(birds, tmp_path):
    """On the wing, which is red in images of the class "red", but does not define it."""
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


def test_hidden_parts_and_removals_that_change_nothing_are_left_out(birds, tmp_path):
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
    # In the first red image, no part that matters can be removed, so all are equally important; in the last blue image,
    # only crown and legs can be removed, too few for a correlation
    assert counts == {"removed_mark": 3, "removed_other": 6, "swapped": 6, "rank_agreement": 2}
    assert results["interventions"]["removed_mark"]["changed"] == 1


def test_means_over_no_images_are_none(birds, tmp_path):
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


def test_arguments_and_maps_out_of_range_are_refused(birds):
    data = trait_data(birds)
    with pytest.raises(ValueError, match=r"^faithfulness_images=0: expected 1 or more\.$"):
        evaluate_traits(Watcher(), data, faithfulness_images=0)

    class Negative(Watcher):
        def maps(self, pixel_values, classes):
            return super().maps(pixel_values, classes) - 0.5

    with pytest.raises(ValueError, match=r"Watcher: maps of shape .* with the lowest value -0.5; expected"):
        evaluate_traits(Negative(), data, progress=False)


def test_the_summary_shows_the_metrics(birds):
    lines = traits_summary(evaluate_traits(Watcher(), trait_data(birds), progress=False)).splitlines()
    assert lines[0] == "Watcher, 7 photographs, 6 of them classified correctly"

    def found(what: str) -> list[str]:
        return next(line for line in lines if line.strip().startswith(what))[46:].split()

    assert found("most important map")[0] == "100.0%"
    assert found("most important map")[-1] == "6.2%"
    assert found("on background") == ["0.0%", "68.8%", "of", "the", "pixels"]
    assert found("mark removed") == ["100.0%", "6", "photographs"]
    assert found("another part removed")[0] == "0.0%"
    assert found("importance and attention, Spearman")[0] == "1.00"
    assert max(map(len, lines)) <= 100
