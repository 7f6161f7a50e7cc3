"""Dividing photographs into some to train on and some to test on."""

import random
from collections import Counter

import pytest

from promptcam_hf.data.division import divide, division_of_model, joined, read_division, record_division


def shares(labels, is_test):
    counts, held = Counter(labels), Counter(label for label, test in zip(labels, is_test, strict=True) if test)
    return {label: (held[label], counts[label] - held[label]) for label in counts}


def test_each_class_has_its_share_and_the_seed_decides():
    labels = ["a"] * 100 + ["b"] * 10 + ["c"] * 3 + ["d"] * 2 + ["e"]
    found = [divide(labels, range(len(labels)), 0.2, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    expected = {"a": (20, 80), "b": (2, 8), "c": (1, 2), "d": (1, 1), "e": (0, 1)}
    assert shares(labels, found[0]) == shares(labels, found[2]) == expected
    assert shares(["a"] * 10, divide(["a"] * 10, range(10), 0.99, 0)) == {"a": (9, 1)}


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_never_on_both_sides(seed):
    generator = random.Random(seed)
    labels, groups = [], []
    for group in range(60):  # of 1 to 9 photographs of 1 to 3 classes
        classes = generator.sample("abcdef", generator.choice([1, 1, 1, 2, 3]))
        for _ in range(generator.randint(1, 9)):
            labels.append(generator.choice(classes))
            groups.append(group)
    is_test = divide(labels, groups, 0.25, seed)
    for group in set(groups):
        assert len({test for test, of_row in zip(is_test, groups, strict=True) if of_row == group}) == 1
    for held, kept in shares(labels, is_test).values():
        assert held > 0
        assert kept > 0
        assert 0.12 < held / (held + kept) < 0.42
    assert 0.22 < sum(is_test) / len(is_test) < 0.29


def test_class_of_one_group_stays_in_training():
    labels, groups = list("aaaabbbb"), [0, 0, 0, 0, 1, 1, 2, 2]
    assert shares(labels, divide(labels, groups, 0.5, 0)) == {"a": (0, 4), "b": (2, 2)}
    assert not any(divide(list("aabb"), [0, 0, 1, 1], 0.5, 0))


def test_the_same_photograph_joins_groups():
    groups = joined(["x", "x", "y", None, None, "z", None], [None, "1", "1", "2", "2", None, None])
    assert len(set(groups[:3])) == 1
    assert groups[3] == groups[4]
    assert len(set(groups)) == 4


def test_record_reads_back(tmp_path):
    (tmp_path / "best").mkdir()
    assert division_of_model(tmp_path) is None
    images = ["a/1, 2.jpg", 'b/"\u00e9".jpg', "train[3]"]
    text = record_division(images, ["a", "b", "b"], ["x", None, None], [12, 7, None], [False, True, False])
    (tmp_path / "split.csv").write_text(text, encoding="utf-8")
    found = read_division(tmp_path / "split.csv")
    assert found == {("a/1, 2.jpg", "12"): "train", ('b/"\u00e9".jpg', "7"): "test", ("train[3]", ""): "train"}
    assert division_of_model(tmp_path) == division_of_model(tmp_path / "best") == tmp_path / "split.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,split\n", "first line is image,split; expected image,label,group,bytes,split"),
        (
            "image,label,group,bytes,split\na,b,,1,train\na,b,,1,later\n",
            "line 3: the split is 'later'; expected train or",
        ),
    ],
)
def test_damaged_record_is_refused(tmp_path, text, message):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_division(tmp_path / "split.csv")
