"""Photographs that are held out from the training split: what `best/`, early stopping and the temperature of the
probabilities look at, so that nothing is chosen by the photographs that the result is measured on."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence


def choose_held_out(
    labels: Sequence[int], share: float, seed: int, groups: Sequence[Hashable] | None = None
) -> list[int]:
    """
    Choose images to hold out, at random: the given share of each class, rounded, never more, and never its last one.
    Unlike `division.divide`, which tests every class that it can, it may hold out nothing of a small class.

    Args:
        labels: The class of each image.
        share: Share to hold out, in [0, 1).
        seed: Random seed.
        groups: The group of each image, such as the animal it shows: a group is held out as a whole, if none of its
            classes would lose more than its share. Default: each image is a group of its own.

    Returns:
        Their places among the labels, ascending. None if every class is too small.
    """
    quota = {label: min(math.floor(share * count + 0.5), count - 1) for label, count in Counter(labels).items()}
    members: dict[Hashable, list[int]] = defaultdict(list)
    for image, group in enumerate(range(len(labels)) if groups is None else groups):
        members[group].append(image)
    shuffled = list(members.values())
    random.Random(seed).shuffle(shuffled)
    held_out: list[int] = []
    for images in shuffled:
        counts = Counter(labels[image] for image in images)
        if all(count <= quota[label] for label, count in counts.items()):
            held_out += images
            for label, count in counts.items():
                quota[label] -= count
    return sorted(held_out)
