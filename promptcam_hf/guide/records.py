"""What the field guide knows about each species, from the vocabulary's folder: no photograph is looked at again."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .occurrences import Shard, shards
from .vocabulary import Vocabulary

PHOTOGRAPHS, MISTAKES = 6, 4  # shown of a species; shown of a pair and direction
HAS_TRAIT = 0.25  # share of the photographs of a class that show a trait from which on the class has it


@dataclass(frozen=True)
class Example:
    """
    A photograph to show.

    Args:
        probability: Of the class that the model takes it for.
        split, row: Where it is.
        peaks: Of each important head x and y as shares of width and height, and the trait, counted from 0. None if the
            photograph is mistaken for another class, or the places are far from their traits.
    """

    probability: float
    split: str
    row: int
    peaks: tuple[tuple[float, float, int], ...] = ()


@dataclass(eq=False)
class Record:
    """
    A species.

    Args:
        num_traits: T.
        num_photographs: Of all splits.
        num_correct: Photographs that are named correctly, of all splits.
        shows: How many of these show each trait, `(T,)`.
        num_tested: Photographs to evaluate on.
        taken_for: What those are taken for: class -> photographs.
        examples: The photographs that the model is surest of.
        mistakes: The photographs to evaluate on that it mistakes, by class, the surest first.
    """

    num_traits: int
    num_photographs: int = 0
    num_correct: int = 0
    shows: np.ndarray = field(init=False)
    num_tested: int = 0
    taken_for: Counter[int] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    mistakes: dict[int, list[Example]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shows = np.zeros(self.num_traits, dtype=int)

    @property
    def shares(self) -> np.ndarray:
        """Share of the correctly named photographs that show each trait, `(T,)`."""
        return self.shows / max(self.num_correct, 1)

    def traits(self) -> list[int]:
        """The traits that the species has, the most frequent first."""
        shares = self.shares
        return [int(trait) for trait in np.argsort(-shares, kind="stable") if shares[trait] >= HAS_TRAIT]


def read_records(folder: Path, num_classes: int, measured: str) -> list[Record]:
    """
    The records of all classes, in the order of their labels. Photographs of `measured` are preferred as examples.

    Args:
        folder: The folder of `promptcam traits`.
        num_classes: How many classes the model knows.
        measured: The split to evaluate on.
    """
    vocabulary = Vocabulary.load(folder)
    records = [Record(len(vocabulary)) for _ in range(num_classes)]
    for split, shard in shards(folder):
        if not len(shard.row):
            continue
        for label, predicted, example in _examples(split, shard, vocabulary):
            record, is_measured = records[label], split == measured
            record.num_photographs += 1
            if is_measured:
                record.num_tested += 1
                record.taken_for[predicted] += 1
            if label == predicted:
                record.num_correct += 1
                record.shows[list({trait for *_, trait in example.peaks})] += 1
                record.examples = _surest([*record.examples, example], measured)[:PHOTOGRAPHS]
            elif is_measured:
                found = [*record.mistakes.get(predicted, []), example]
                record.mistakes[predicted] = _surest(found, measured)[:MISTAKES]
    return records


def _surest(examples: list[Example], measured: str) -> list[Example]:
    return sorted(examples, key=lambda example: (example.split != measured, -example.probability, example.row))


def _examples(split: str, shard: Shard, vocabulary: Vocabulary) -> Iterator[tuple[int, int, Example]]:
    """Label, predicted class and photograph, for each photograph of a shard. As in `TraitNames`, places that are far
    from their trait show none."""
    found = vocabulary.assign(shard.features) if len(shard.features) else (shard.head, shard.head)  # none
    trait, is_near = found[0], found[1] <= vocabulary.reach[found[0]]
    order = np.argsort(shard.photograph, kind="stable")
    starts = np.searchsorted(shard.photograph[order], np.arange(len(shard.row) + 1))
    for place, row in enumerate(shard.row.tolist()):
        inside = [index for index in order[starts[place] : starts[place + 1]] if is_near[index]]
        places = ((*shard.peak[index].tolist(), int(trait[index])) for index in inside)
        peaks = tuple((float(x), float(y), number) for x, y, number in places)
        example = Example(float(shard.probability[place]), split, row, peaks)
        yield int(shard.label[place]), int(shard.predicted[place]), example


def confusable_pairs(records: list[Record], most: int = 2) -> list[tuple[int, int]]:
    """Pairs of classes `(a, b)`, a < b, that the model mistakes for each other on photographs to evaluate on: of each
    class those that it is mistaken for most often, at most `most`."""
    pairs: set[tuple[int, int]] = set()
    for label, record in enumerate(records):
        wrong = Counter({other: count for other, count in record.taken_for.items() if other != label})
        pairs.update((min(label, other), max(label, other)) for other, _ in wrong.most_common(most))
    return sorted(pairs)
