"""The scores of FunnyBirds on hand-computed cases, and on a tiny folder of scenes."""

from itertools import combinations

import numpy as np
import pytest
import torch

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.evaluation.funnybirds import Scene, funnybirds_scores, importance
from promptcam_hf.evaluation.funnybirds_scenes import measure_funnybirds

from .cases import SIZE, Watcher, WideWatcher, save_scene, widen

PARTS = ("beak", "eye", "foot", "tail", "wing")


def subsets():
    return [frozenset(kept) for count in range(6) for kept in combinations(PARTS, count)]


def scene(gains: dict[str, float], parts: dict[str, float], objects=(), without_object=(), overlaps=None, label=0):
    """A classifier that adds up what the parts are worth for class 0, against 4 for class 1."""
    kept = {some: torch.tensor([sum(gains.get(part, 0) for part in some), 4.0]) for some in subsets()}
    return Scene(label, kept, without_object, dict.fromkeys(PARTS, 0.0) | parts, objects, overlaps)


def test_minimal_sufficient_sets():
    """Beak and eye give 6, either of them with wing 5; nothing else more than 4."""
    bird = scene({"beak": 3, "eye": 3, "wing": 2}, {})
    assert set(bird.minimal_sufficient_sets) == {
        frozenset(pair) for pair in (("beak", "eye"), ("beak", "wing"), ("eye", "wing"))
    }


def test_a_perfect_explanation_scores_one():
    overlaps = (
        ({"beak": 2, "foot": 1, "eye": 0, "tail": 1}, frozenset({"beak", "foot"})),
        ({"beak": 0, "foot": 1, "eye": 2, "tail": 3}, frozenset({"eye", "tail"})),
    )
    # All parts are relevant and differ: 5 of a logit of 10 and so on; the object is worth nothing
    gains = {"beak": 5.0, "eye": 2.0, "foot": 1.2, "tail": 1.0, "wing": 0.8}
    parts = {part: gain / 20 for part, gain in gains.items()}
    scores = funnybirds_scores([scene(gains, parts, [0.0], [10.0], overlaps)])
    assert {name: scores[name] for name in ("csdc", "pc", "dc", "d", "bi", "sd", "ts", "com", "mx")} == pytest.approx(
        dict.fromkeys(("csdc", "pc", "dc", "d", "bi", "sd", "ts", "com", "mx"), 1.0)
    )
    assert scores["accuracy"] == 1


def test_scores_of_a_hand_computed_case():
    """The beak alone decides; half of the map is on the tail, 40 % on an object, 5 % on the beak."""
    bird = scene({"beak": 8.0}, {"tail": 0.5, "beak": 0.05}, objects=[0.4, 0.0], without_object=[7.7, 7.5])
    scores = funnybirds_scores([bird])
    # Irrelevant: eye, foot, tail, wing and the first object (a fall of 0.3 of 8); the second is relevant (0.5)
    assert scores["bi"] == 0.5
    # t < 0.05: beak and tail are important, and one irrelevant thing besides (the object): 1 + 1 - 2/5
    assert (scores["csdc"], scores["pc"], scores["dc"]) == (1, 1, 1)
    assert scores["d"] == pytest.approx(1 - 2 / 5)
    assert scores["threshold"] == pytest.approx(0.01)
    assert scores["com"] == pytest.approx((1 + 0.6) / 2)
    # Importance (0.05, 0, 0, 0.5, 0) and fall (8, 0, 0, 0, 0): ranks 3, 1, 1, 4, 1 and 4, 1.5, ...: rho by hand
    ranks, falls = np.array([4, 2, 2, 5, 2.0]), np.array([5, 2.5, 2.5, 2.5, 2.5])
    assert scores["sd"] == pytest.approx((np.corrcoef(ranks, falls)[0, 1] + 1) / 2)
    assert scores["ts"] is None
    assert scores["mx"] == pytest.approx((scores["com"] + scores["sd"]) / 2)


def test_scenes_that_are_misclassified_count_for_all_but_csdc():
    wrong = scene({"beak": 2.0}, {"tail": 1.0})  # class 1 wins whatever is kept
    right = scene({"beak": 8.0}, {"beak": 1.0})
    scores = funnybirds_scores([wrong, right])
    assert scores["accuracy"] == 0.5
    assert scores["csdc"] == 1  # of the second
    assert (scores["pc"], scores["dc"]) == (1, 0.5)  # nothing changes the first


def test_each_class_has_to_rank_its_own_parts_first():
    own, others = frozenset({"beak"}), frozenset({"eye"})
    for first, second, expected in (((2, 1), (1, 2), 1), ((2, 1), (2, 1), 0), ((1, 1), (1, 2), 0)):
        maps = [dict(zip(("beak", "eye"), values, strict=True)) for values in (first, second)]
        bird = scene({"beak": 8.0}, {}, overlaps=((maps[0], own), (maps[1], others)))
        assert funnybirds_scores([bird])["ts"] == expected


def test_importance_is_the_share_of_the_map_on_the_dilated_mask():
    mask, values = torch.zeros(9, 9, dtype=torch.bool), torch.ones(9, 9)
    mask[4, 4] = True
    assert importance(values, mask) == pytest.approx(25 / 81)
    mask[0, 0] = True
    assert importance(values, mask) == pytest.approx((25 + 9 - 1) / 81)
    assert importance(torch.zeros(9, 9), mask) == 0


@pytest.fixture
def scenes(tmp_path):
    return save_scene(tmp_path / "scenes")


def test_scenes_of_a_folder(scenes):
    """The classifier looks at the beak's colour alone."""
    names = ("red", "blue", "neither")
    scores = [
        measure_funnybirds(watcher, scenes, names, new_image_processor(SIZE), progress=False)
        for watcher in (Watcher(), Watcher(looks_at=(3, 3)))
    ]
    for name in ("csdc", "pc", "dc", "d", "bi", "sd", "com", "mx"):
        assert scores[0][name] == pytest.approx(1.0), name
    assert scores[0]["num_images"] == scores[0]["accuracy"] == 1
    # A map on the object names no part: removing none changes nothing
    assert (scores[1]["csdc"], scores[1]["pc"], scores[1]["dc"]) == (0, 0, 0)
    assert scores[1]["d"] == pytest.approx(0.5)  # wing and object are irrelevant, the object is important
    assert scores[1]["bi"] == 1


def test_maps_lie_over_wide_scenes_where_the_aspect_ratio_is_kept(scenes):
    widen(*scenes.glob("*/*/*.*"))
    processor = new_image_processor(SIZE, keep_aspect=True)
    # The patch shows the beak and the wing below, and the padding above is no part of the map
    scores = measure_funnybirds(WideWatcher(looks_at=(1, 1)), scenes, ("red", "blue", "neither"), processor)
    assert scores["accuracy"] == 1
    assert scores["sd"] == 1


def test_a_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no scenes\.jsonl"):
        measure_funnybirds(Watcher(), tmp_path, ["red"], new_image_processor(SIZE))
