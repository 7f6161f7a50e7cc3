import numpy as np
import pytest

from promptcam_hf.guide.key import build_key, key_text

NAMES = ["Red_Robin", "Grey_Robin", "Red_Wren", "Grey_Wren"]
TRAITS = ["red crown", "long bill", "round tail"]
PARTS = np.array([0, 1, 2])


def photographs(noise: float, each: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Of four species: the first trait is that of species 0 and 2, the second that of 0 and 1, the third is chance."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), each)
    shows = np.stack([labels % 2 == 0, labels < 2, random.random(len(labels)) < 0.5], axis=1)
    return shows + noise * random.standard_normal(shows.shape), labels


def test_a_key_asks_what_tells_the_species_apart():
    scores, labels = photographs(0.05)
    key = build_key(scores, labels, PARTS)
    couplets = sorted(key.couplets(), key=lambda couplet: couplet.number)
    assert [couplet.number for couplet in couplets] == [1, 2, 3]
    assert {couplet.question.trait for couplet in couplets} == {0, 1}
    assert [key.follow(row) for row in scores] == labels.tolist()
    for couplet in couplets:
        assert couplet.is_right(scores, labels).all()
    lines = key_text(key, NAMES, TRAITS).split("\n")
    assert lines[0].startswith("1a    red crown ..")
    assert lines[0].endswith(" 2")
    assert lines[1].startswith("1b    no red crown ..")
    assert lines[1].endswith(" 3")
    assert [line.rpartition(". ")[2] for line in lines[3:5] + lines[6:8]] == [
        name.replace("_", " ") for name in ("Red_Robin", "Red_Wren", "Grey_Robin", "Grey_Wren")
    ]


def test_accuracy_is_that_of_the_photographs_a_couplet_is_for():
    scores, labels = photographs(0.0)
    key = build_key(scores, labels, PARTS)
    asked = scores[:5, key.question.trait]  # a view
    asked[:] = 1 - asked  # 5 of the 80 photographs now answer the first question wrongly
    assert key.is_right(scores, labels).sum() == 75
    last = max(key.couplets(), key=lambda couplet: couplet.number)
    assert len(last.is_right(scores, labels)) == 40  # photographs of two species
    assert sum(key.follow(row) == label for row, label in zip(scores, labels, strict=True)) == 75


def test_what_makes_no_key_is_refused():
    scores, labels = photographs(0.05)
    with pytest.raises(ValueError, match="two classes or more"):
        build_key(scores[:20], labels[:20], PARTS)
    with pytest.raises(ValueError, match="No trait tells the classes"):
        build_key(np.zeros_like(scores), labels, PARTS)


def test_a_key_compares_looks_of_one_part():
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1], 30)
    visible = random.random(60)  # how well the part can be seen: only the difference of its looks tells the species
    scores = np.stack([visible + 0.1 * (labels == 0), visible + 0.1 * (labels == 1)], axis=1)
    key = build_key(scores, labels, np.array([0, 0]))
    assert key.question.others == (1 - key.question.trait,)
    assert key.is_right(scores, labels).all()
    text = key_text(key, NAMES, TRAITS)
    name = TRAITS[key.question.trait]
    assert text.startswith(f"1a    more like {name} than other looks of part 1 ..")
    assert f"\n1b    less like {name} .." in text
