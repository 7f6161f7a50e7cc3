"""A vocabulary of traits: what the peaks of many photographs have in common.

Features of a vision backbone say first which part of the body a patch shows, and then how it looks. So peaks are
clustered twice (k-means): over all species into parts, and then, within each part, into looks. A trait is a look of a
part. Looks are clustered in a linear discriminant analysis of the species, which leaves out what varies between the
photographs of one species, such as its pose.

Shapes: m occurrences, D features, P parts, T traits.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..files import write_arrays
from ..messages import counted

FILE = "vocabulary.npz"
PARTS, LOOKS = range(4, 17), range(2, 7)  # numbers of clusters to choose from
SILHOUETTE_SAMPLE = 2000  # occurrences
FEWEST = 8  # occurrences a cluster of looks has to have on average
LDA_DIMENSIONS = 8
REACHED = 0.95  # share of the occurrences of a trait within its reach


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """
    The clusters. Traits are numbered from 1 in tables; here, from 0.

    Args:
        mean: Mean of the features of all patches `(D,)`.
        parts: Centroids of the parts `(P, D)`, of features as `normalised` returns them.
        projections: Of each part, from features to the space of its looks, `(P, D, d)`.
        looks: Centroids of the looks there, `(T, d)`.
        part: The part of each trait `(T,)`, ascending.
        centroids: Mean normalised features of each trait `(T, D)`.
        reach: Cosine distance from the centroid of each trait within which most of its occurrences lie `(T,)`.
    """

    mean: np.ndarray
    parts: np.ndarray
    projections: np.ndarray
    looks: np.ndarray
    part: np.ndarray
    centroids: np.ndarray
    reach: np.ndarray

    def __len__(self) -> int:
        return len(self.part)

    def normalised(self, features: np.ndarray) -> np.ndarray:
        """Features `(..., D)` less the mean of all patches, of length 1, float32."""
        return unit(features.astype(np.float32) - self.mean)

    def assign(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        The trait of each occurrence.

        Args:
            features: Features of peaks `(m, D)`.

        Returns:
            Traits `(m,)`, counted from 0, and their cosine distances from the trait's centroid `(m,)`, in [0, 2].
        """
        points = self.normalised(features)
        part, trait = nearest(points, self.parts), np.zeros(len(points), dtype=int)
        for number in range(len(self.parts)):
            inside, traits = part == number, np.flatnonzero(self.part == number)
            trait[inside] = traits[nearest(points[inside] @ self.projections[number], self.looks[traits])]
        return trait, 1 - (points * unit(self.centroids)[trait]).sum(-1)

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """
        Read the vocabulary of a folder.

        Raises:
            ValueError: If there is none, or it is damaged.
        """
        if not (folder / FILE).is_file():
            raise ValueError(f"{folder} has no {FILE}; expected a folder from `promptcam traits`.")
        try:
            with np.load(folder / FILE) as content:
                return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (ValueError, KeyError, EOFError, BadZipFile):  # KeyError: of an earlier version
            raise ValueError(
                f"{folder / FILE} is damaged or of another version; remove it and run `promptcam traits` again."
            ) from None

    def save(self, folder: Path) -> None:
        """Write the vocabulary to a folder."""
        write_arrays(folder / FILE, **{field.name: getattr(self, field.name) for field in fields(self)})


def fit_vocabulary(
    features: np.ndarray,
    labels: np.ndarray,
    mean: np.ndarray,
    parts: int | None = None,
    looks: int | None = None,
    seed: int = 0,
) -> Vocabulary:
    """
    Cluster the features of peaks.

    Args:
        features: `(m, D)`.
        labels: The class of each peak's photograph `(m,)`.
        mean: Mean of the features of all patches `(D,)`.
        parts: How many parts. Default: of 4 to 16, the number with the best silhouette (Rousseeuw, 1987).
        looks: How many looks a part, fewer where it has few peaks. Default: of 2 to 6, the best.
        seed: Random seed.

    Raises:
        ValueError: If there are fewer peaks than clusters.
    """
    points = unit(features.astype(np.float32) - mean)
    least = parts or PARTS.start
    if len(points) < 2 * least:
        raise ValueError(
            f"{counted(len(points), 'peak')} for {counted(least, 'part')}; expected more photographs that are named "
            "correctly."
        )
    part, centroids = _cluster(points, _numbers(parts, PARTS, len(points) // 2), seed)
    projections, all_looks, part_of, means, reach = [], [], [], [], []
    for number in range(len(centroids)):
        inside = points[part == number]
        projection = _discriminating(inside, labels[part == number])
        projected = inside @ projection
        look, look_centroids = _cluster(projected, _numbers(looks, LOOKS, len(inside) // FEWEST), seed)
        projections.append(projection)
        for other in range(len(look_centroids)):
            all_looks.append(look_centroids[other])
            part_of.append(number)
            means.append(inside[look == other].mean(0))
            reach.append(np.quantile(1 - inside[look == other] @ unit(means[-1]), REACHED))
    columns = (np.stack(projections), np.stack(all_looks), np.array(part_of), np.stack(means), np.array(reach))
    return Vocabulary(mean, centroids, *columns)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(..., D)` of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12)


def nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The number of the centroid `(k, D)` nearest to each point `(m, D)`: `(m,)`."""
    return ((centroids**2).sum(-1) - 2 * points @ centroids.T).argmin(-1)


def _numbers(given: int | None, candidates: Iterable[int], most: int) -> list[int]:
    """The numbers of clusters to try."""
    if given is not None:
        return [max(1, min(given, most))]
    return [number for number in candidates if number <= most] or [1]


def _cluster(points: np.ndarray, numbers: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each point `(m,)`, and the centroids, for the number with the best silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    best: tuple[float, Any] = (-2.0, None)
    distinct = len(np.unique(points, axis=0))  # one, for example, if a part is seen on one species alone
    sample = np.random.RandomState(seed).permutation(len(points))[:SILHOUETTE_SAMPLE]
    for number in [number for number in numbers if number <= distinct] or [distinct]:
        found = KMeans(number, n_init=4, random_state=seed).fit(points)
        labels = found.labels_[sample]
        is_measured = len(numbers) > 1 and 1 < len(np.unique(labels)) < len(sample)
        score = silhouette_score(points[sample], labels) if is_measured else -1.0
        if score > best[0]:
            best = (score, found)
    return best[1].labels_, best[1].cluster_centers_.astype(np.float32)


def _discriminating(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Directions `(D, d)` that tell species apart: of a linear discriminant analysis with a shrunk covariance. Columns
    that are not needed are zero."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    projection = np.zeros((points.shape[1], LDA_DIMENSIONS), dtype=np.float32)
    classes, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, classes[counts >= 2])
    if len(np.unique(labels[kept])) < 2:
        return projection
    try:
        analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(points[kept], labels[kept])
    except np.linalg.LinAlgError:  # all peaks of each species are the same, as on copies of one photograph
        return projection
    directions = analysis.scalings_[:, : min(LDA_DIMENSIONS, len(analysis.classes_) - 1)]
    projection[:, : directions.shape[1]] = directions
    return projection
