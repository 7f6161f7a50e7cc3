import numpy as np
import pytest

from promptcam_hf.guide.vocabulary import Vocabulary, fit_vocabulary


@pytest.fixture(scope="module")
def peaks() -> dict[str, np.ndarray]:
    """Of 6 species and 4 parts. In each part, half of the species look one way. What varies most within a part is the
    pose, which is not the species'."""
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.standard_normal((32, 12)))[0].T  # 4 parts, 4 looks, 4 poses
    labels, part = random.integers(6, size=2400), random.integers(4, size=2400)
    look = (labels + part) % 2
    pose = random.choice([-1, 1], size=2400)
    features = 3 * directions[part] + 0.8 * (2 * look - 1)[:, None] * directions[4 + part]
    features = features + 1.0 * pose[:, None] * directions[8 + part] + 0.1 * random.standard_normal((2400, 32)) + 5
    return {"features": features.astype(np.float16), "labels": labels, "part": part, "look": look}


def fitted(peaks, **options) -> Vocabulary:
    return fit_vocabulary(peaks["features"], peaks["labels"], np.full(32, 5.0), **options)


def test_traits_are_looks_of_parts(peaks, tmp_path):
    vocabulary = fitted(peaks)
    assert len(vocabulary.parts) == 4
    assert np.bincount(vocabulary.part).tolist() == [2] * 4  # the species' looks, not the poses
    trait, distance = vocabulary.assign(peaks["features"])
    for number in range(len(vocabulary)):
        inside = trait == number
        assert len(np.unique(peaks["part"][inside])) == 1
        assert (peaks["look"][inside] == peaks["look"][inside][0]).mean() > 0.95
    assert 0 <= distance.min() <= distance.max() < 0.2
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    np.testing.assert_array_equal(again.assign(peaks["features"])[0], trait)


def test_numbers_of_clusters_can_be_given(peaks):
    vocabulary = fitted(peaks, parts=2, looks=3)
    assert np.bincount(vocabulary.part).tolist() == [3, 3]


def test_a_part_of_one_species_has_one_look(peaks):
    only = (peaks["part"] != 0) | (peaks["labels"] == 0)
    vocabulary = fit_vocabulary(peaks["features"][only], peaks["labels"][only], np.full(32, 5.0))
    assert sorted(np.bincount(vocabulary.part)) == [1, 2, 2, 2]


def test_copies_of_photographs_make_a_vocabulary(peaks):
    rows = [
        np.flatnonzero((peaks["part"] == part) & (peaks["labels"] == label))[0] for part in range(4) for label in (0, 1)
    ]
    copies = np.repeat(rows, 50)
    vocabulary = fit_vocabulary(peaks["features"][copies], peaks["labels"][copies], np.full(32, 5.0))
    assert len(vocabulary.parts) >= 4


def test_too_little_is_refused(peaks, tmp_path):
    few = {name: column[:5] for name, column in peaks.items()}
    with pytest.raises(ValueError, match="5 peaks for 4 parts; expected more photographs"):
        fitted(few)
    with pytest.raises(ValueError, match=r"has no vocabulary.npz; expected a folder from `promptcam traits`"):
        Vocabulary.load(tmp_path)
