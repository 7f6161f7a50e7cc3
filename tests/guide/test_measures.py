import numpy as np
import pytest

from promptcam_hf.guide.measures import Consistency, agreement
from promptcam_hf.guide.vocabulary import unit


def test_consistency_is_the_mean_over_pairs():
    random = np.random.default_rng(0)
    points, groups = unit(random.standard_normal((30, 5))), random.integers(3, size=30)
    measured = Consistency((4,), 5)
    for part in (slice(0, 11), slice(11, 30)):  # in several shards
        measured.add((groups[part],), points[part])
    cosines, same = points @ points.T, groups[:, None] == groups
    others = ~np.eye(30, dtype=bool)
    within = [cosines[same & others & (groups == group)[:, None]].mean() for group in range(3)]
    np.testing.assert_allclose(measured.within()[:3], within)
    assert np.isnan(measured.within()[3])  # no points
    assert measured.between() == pytest.approx(cosines[~same].mean())
    assert measured.mean() == pytest.approx(np.average(within, weights=np.bincount(groups)))


def test_agreement_with_what_is_known():
    truth = np.repeat([4, 7, 9], 40)
    perfect = agreement(np.repeat([2, 0, 1], 40), truth)
    assert perfect["purity"] == 1
    assert perfect["adjusted_mutual_information"] == pytest.approx(1)
    assert perfect["chance_purity"] < 0.6
    assert abs(perfect["chance_adjusted_mutual_information"]) < 0.1
    half = agreement(np.repeat([0, 1, 1], 40), truth)
    assert half["purity"] == pytest.approx(2 / 3)
