"""How good a vocabulary is: do the heads of a class look at the same thing on all photographs, and are traits parts?"""

from pathlib import Path
from typing import Any

import numpy as np

from ..data.parts import PartFolder

SHUFFLES = 20
PEAK_PIXELS = 0.04  # of width and height: the square around a peak whose most frequent part counts


class Consistency:
    """
    Mean cosine similarities of peaks, from sums alone, so that no peak is kept.

    Args:
        groups: Shape of the groups whose peaks are compared, such as `(classes, heads)`.
        dimensions: D.
    """

    def __init__(self, groups: tuple[int, ...], dimensions: int):
        self.sums = np.zeros((*groups, dimensions))
        self.counts = np.zeros(groups)

    def add(self, group: tuple[np.ndarray, ...], points: np.ndarray) -> None:
        """Add points `(m, D)` of length 1, each with the indices `(m,)` of its group."""
        np.add.at(self.sums, group, points)
        np.add.at(self.counts, group, 1)

    def within(self) -> np.ndarray:
        """Mean cosine similarity of two different points of each group; NaN for fewer than two points."""
        pairs = self.counts * (self.counts - 1)
        total = (self.sums**2).sum(-1) - self.counts
        return np.divide(total, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)

    def between(self) -> float:
        """Mean cosine similarity of two points of different groups: what shuffling points over the groups would give
        on average. NaN with fewer than two groups."""
        pairs = self.counts.sum() ** 2 - (self.counts**2).sum()
        total = (self.sums.reshape(-1, self.sums.shape[-1]).sum(0) ** 2).sum() - (self.sums**2).sum()
        return float(total / pairs) if pairs else float("nan")

    def mean(self) -> float:
        """The mean of `within`, weighted by the groups' points."""
        within = self.within()
        known = ~np.isnan(within)
        return float(np.average(within[known], weights=self.counts[known])) if known.any() else float("nan")


def purity(clusters: np.ndarray, truth: np.ndarray) -> float:
    """The share of points `(m,)` that are of their cluster's most frequent kind."""
    table = np.zeros((clusters.max() + 1, truth.max() + 1))
    np.add.at(table, (clusters, truth), 1)
    return float(table.max(1).sum() / len(truth))


def agreement(clusters: np.ndarray, truth: np.ndarray, seed: int = 0) -> dict[str, float]:
    """
    How well clusters agree with what points are known to be.

    Args:
        clusters, truth: The cluster and the kind of each point, `(m,)`.
        seed: Random seed of the chance levels.

    Returns:
        `purity` and `adjusted_mutual_information` (Vinh et al., JMLR 2010), and the means of both when the clusters are
        shuffled over the points: `chance_purity`, `chance_adjusted_mutual_information`.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    truth, random = np.unique(truth, return_inverse=True)[1], np.random.default_rng(seed)
    shuffled = [random.permutation(clusters) for _ in range(SHUFFLES)]
    return {
        "purity": purity(clusters, truth),
        "chance_purity": float(np.mean([purity(other, truth) for other in shuffled])),
        "adjusted_mutual_information": float(adjusted_mutual_info_score(truth, clusters)),
        "chance_adjusted_mutual_information": float(
            np.mean([adjusted_mutual_info_score(truth, other) for other in shuffled])
        ),
    }


def parts_at(folder: PartFolder, path: Path, size: tuple[int, int], peaks: np.ndarray) -> list[int]:
    """
    The part at each peak of a test image: the most frequent one in a small square around it.

    Args:
        folder: The data with masks.
        path: The test image.
        size: Its width and height in pixels.
        peaks: x and y as shares of width and height, `(m, 2)`.

    Returns:
        For each peak 0 (the background) or 1 + the index of a part in `folder.table.names`.
    """
    mask = folder.mask(path, size)
    found = []
    for x, y in peaks * size:
        half_width, half_height = (max(1, round(PEAK_PIXELS * side / 2)) for side in size)
        left, top = max(0, int(x) - half_width), max(0, int(y) - half_height)
        square: Any = mask[top : int(y) + half_height + 1, left : int(x) + half_width + 1]
        found.append(int(np.bincount(square.ravel()).argmax()))
    return found
