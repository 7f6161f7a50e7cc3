"""Pointing at CUB's keypoints, on a tiny folder of drawn scenes in CUB's layout."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.cub_keypoints import CubKeypoints, Keypoints
from promptcam_hf.evaluation.keypoints import measure_keypoints, pointing_distances
from promptcam_hf.evaluation.trait_data import load_trait_data
from promptcam_hf.evaluation.trait_metrics import evaluate_traits, traits_summary

from .cases import BOXES, COLOURS, SIZE, Watcher, WideWatcher, scene, widen

ATTRIBUTES = ["has_crown_color::red", "has_crown_color::blue", "has_wing_shape::round", "has_size::small"]
LOOKS = {"red": [90.0, 5.0, 60.0, 100.0], "blue": [0.0, 95.5, 50.0, 0.0]}  # they differ in crown and size
PARTS = {"1": "crown", "2": "left wing", "3": "tail"}


@pytest.fixture
def cub(tmp_path):
    """Four test images: as drawn; twice as large; the crown is out of sight; no bounding box, and no row for a part."""
    folder = tmp_path / "CUB_200_2011"
    images, boxes, places = [], [], []
    for number, (name, scale) in enumerate([("red", 1), ("blue", 2), ("red", 1), ("blue", 1)], start=1):
        path = f"00{1 + (name == 'blue')}.{name}/{number}.png"
        file = folder / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        scene(COLOURS[name]).resize((SIZE * scale, SIZE * scale), Image.Resampling.NEAREST).save(file)
        images.append(f"{number} {path}")
        if number != 4:
            boxes.append(f"{number} 0.0 0.0 {16.0 * scale} {32.0 * scale}")
        for part, key in (("1", "crown"), ("2", "wing"), ("3", "tail")):
            left, top, right, bottom = (scale * value for value in BOXES[key])
            is_seen = not (part == "1" and number == 3)
            if (number, part) != (4, "2"):
                places.append(f"{number} {part} {(left + right) / 2} {(top + bottom) / 2} {int(is_seen)}")
    files = {
        "images.txt": images,
        "classes.txt": ["1 001.red", "2 002.blue"],
        "image_class_labels.txt": ["1 1", "2 2", "3 1", "4 2"],
        "train_test_split.txt": [f"{number} 0" for number in range(1, 5)],
        "bounding_boxes.txt": boxes,
        "parts/parts.txt": [f"{number} {name}" for number, name in PARTS.items()],
        "parts/part_locs.txt": places,
        "attributes/attributes.txt": [f"{number} {name}" for number, name in enumerate(ATTRIBUTES, start=1)],
        "attributes/class_attribute_labels_continuous.txt": [" ".join(map(str, row)) for row in LOOKS.values()],
    }
    for name, lines in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_reader_knows_points_boxes_and_differences(cub, monkeypatch):
    monkeypatch.chdir(cub.parent)
    for folder in (cub, cub.parent, cub.name, "."):
        keypoints = CubKeypoints(folder)
        assert keypoints.differing("red", "blue") == keypoints.differing("blue", "red") == {"crown"}
        assert keypoints.differing("red", "red") == frozenset()
        larger = keypoints.of(cub / "images" / "002.blue" / "2.png")
        assert larger == Keypoints((0, 0, 32, 64), {"crown": (24, 8), "left wing": (24, 24), "tail": (8, 24)})
        assert set(keypoints.of("001.red/3.png").points) == {"left wing", "tail"}
        assert keypoints.of("002.blue/4.png") is None
    (cub / "attributes" / "attributes.txt").rename(cub.parent / "attributes.txt")  # where the download has it
    assert CubKeypoints(cub.name).differing("red", "blue") == {"crown"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("parts/part_locs.txt", "1 1 3.0 4.0\n", r"part_locs\.txt, line 1: 4 columns; expected 5"),
        ("parts/part_locs.txt", "9 1 3.0 4.0 1\n", "there is no image 9"),
        ("parts/part_locs.txt", "1 1 3,0 4.0 1\n", r"part_locs\.txt: could not convert string to float: '3,0'"),
        ("attributes/class_attribute_labels_continuous.txt", "1 2 3 4\n", "1 row; expected 2"),
        ("bounding_boxes.txt", None, r"bounding_boxes\.txt is missing"),
    ],
)
def test_damaged_files_are_refused(cub, file, content, message):
    (cub / file).unlink() if content is None else (cub / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        CubKeypoints(cub)


def test_distances_of_a_hand_computed_case():
    """A grid of 2 x 2 patches over 40 x 20 pixels, whose centres are at 10 and 30, 5 and 15."""
    maps, known = torch.zeros(2, 2, 2), Keypoints((0, 0, 20, 20), {})
    maps[0, 1, 0], maps[1, 0, 1] = 1.0, 3.0
    found = pointing_distances(maps, known, [(12, 15), (30, 19)], (40, 20))
    assert found["distance"] == pytest.approx(0.1)  # from (10, 15): 2 of 20 pixels
    assert found["distance_sum"] == pytest.approx(14 / 20)  # from (30, 5) to (30, 19)
    assert (found["hit"], found["hit_sum"]) == (1, 0)
    assert found["chance_hit"] == 0.5  # two centres are in the box
    assert found["chance_distance"] == pytest.approx((0.1 + math.hypot(0.1, 0.5)) / 2)


def test_images_whose_runner_up_is_no_class_of_cub_are_left_out(cub):
    data = load_trait_data(cub, ("red", "blue", "neither"), new_image_processor(SIZE))
    found = measure_keypoints(Watcher(), data, batch_size=3, progress=False)
    assert found == {"num_images": 0} | dict.fromkeys([key for key in found if key != "num_images"])


def test_maps_are_measured_where_the_differing_part_can_be_seen(cub):
    data = load_trait_data(cub, ("red", "blue"), new_image_processor(SIZE))
    assert data.table is None
    at_crown, at_tail = (
        measure_keypoints(watcher, data, batch_size=3, progress=False)
        for watcher in (TwoClasses(), TwoClasses(looks_at=(1, 0)))
    )
    assert at_crown["num_images"] == at_tail["num_images"] == 2
    assert (at_crown["hit"], at_crown["distance"]) == (1, 0)
    assert at_tail["hit"] == 0
    # Each patch is half as wide and a quarter as high as the box
    assert at_tail["distance"] == pytest.approx(math.hypot(0.5, 0.25))
    assert 0 < at_crown["chance_hit"] < 0.5
    assert at_crown["chance_hit"] == at_tail["chance_hit"]
    results = evaluate_traits(TwoClasses(), data, faithfulness_images=1, steps=1, progress=False)
    assert results["keypoints"] == at_crown
    assert "100.0%" in traits_summary(results)


def test_maps_lie_over_wide_photographs_where_the_aspect_ratio_is_kept(cub):
    widen(*cub.glob("images/*/*.png"))
    for name, factors in (("bounding_boxes.txt", (1, 8, 4, 8, 4)), ("parts/part_locs.txt", (1, 1, 8, 4, 1))):
        rows = np.loadtxt(cub / name) * factors
        np.savetxt(cub / name, rows, fmt=["%d" if factor == 1 else "%g" for factor in factors])
    data = load_trait_data(cub, ("red", "blue"), new_image_processor(SIZE, keep_aspect=True))
    found = measure_keypoints(TwoClassesInWide(looks_at=(1, 1)), data, progress=False)
    assert (found["num_images"], found["hit"], found["distance"]) == (2, 1, 0)


class TwoClasses(Watcher):
    def logits(self, pixel_values):
        return super().logits(pixel_values)[:, :2]


class TwoClassesInWide(TwoClasses, WideWatcher):
    pass
