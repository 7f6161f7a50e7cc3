"""Names of splits, and patterns on the names of files."""

import pytest

from promptcam_hf.data.source import Pattern, split_name


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Train", "TRAINING", "training_set", "train-images", "trainset", " train "]),
        ("validation", ["val", "valid", "Validation", "dev", "val_images"]),
        ("test", ["test", "Testing", "test set", "eval", "evaluation", "holdout", "hold-out"]),
        (None, ["trains", "test_parts", "test_without", "Testudo", "Valeria", "validus", "2020", "", "all"]),
    ],
)
def test_splits_have_many_names_and_classes_are_none(split, names):
    assert {split_name(name) for name in names} == {split}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"^(\w+?)_", "Jay"),
        (r"\d+", "17"),
        (r"(\d+)(_\d+)?", "17"),
        (r"^([^/]+)/", "site 1"),
        (r"/(cam\d)/", "cam2"),
        (r"(cam\d)", None),
        (r"_(x?)\d", None),
    ],
)
def test_pattern_finds_its_group_in_the_name_or_with_a_slash_in_the_path(pattern, found):
    assert Pattern(pattern, "--group-by").find("/data/birds/site 1/cam2/Jay_17.jpg", "/data/birds") == found
