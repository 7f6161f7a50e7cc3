"""What there is to train on, as a short text: photographs of each split and class, what was left out, duplicates."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import datasets

from ..files import as_text
from ..messages import counted, listed
from .division import SPLIT_FILE
from .duplicates import content_keys, image_paths
from .splits import Splits

FEWEST = 5  # classes to list


def overview(splits: Splits, skipped: Sequence[str] = ()) -> str:
    """
    Describe photographs in a short table. Reads only those whose size another one has, to find duplicates.

    Args:
        splits: The photographs.
        skipped: Why some photographs were skipped, a sentence each.

    Returns:
        Lines of text: the number of photographs of each split, those of a class, the five smallest classes, what was
        left out, and photographs that are the same, byte for byte: in both splits (a leak), under two classes, or
        several times in one split.
    """
    parts = {"train": splits.train, splits.split: splits.evaluation}
    counts = {name: _per_class(split, len(splits.names)) for name, split in parts.items()}
    fewest = sorted(range(len(splits.names)), key=lambda label: [of_split[label] for of_split in counts.values()])
    rows = [
        (f"{splits.name}: {len(splits.names)} classes", [*parts]),
        ("photographs", [str(len(split)) for split in parts.values()]),
        ("in a class", [_range(of_split) for of_split in counts.values()]),
        *(
            (f"  {splits.names[label]}", [str(of_split[label]) for of_split in counts.values()])
            for label in fewest[:FEWEST]
        ),
    ]
    if len(splits.names) > FEWEST:
        rows.insert(3, ("the smallest:", []))
    width = max(len(title[:60]) for title, _ in rows)
    lines = [f"{title[:60]:<{width}}" + "".join(f"{cell:>12}" for cell in cells) for title, cells in rows]
    if splits.division is not None:
        lines.append(f"{splits.split} was chosen at random from the photographs; {SPLIT_FILE} lists both.")
    lines += splits.notes
    if skipped:
        lines.append(f"Left out: {counted(len(skipped), 'photograph')} that cannot be read: {listed(skipped, 3)}")
    lines += _duplicates(parts, splits.names)
    return as_text("\n".join(line.rstrip() for line in lines))  # not every name of a file can be printed


def _per_class(split: datasets.Dataset, num_classes: int) -> list[int]:
    counts = [0] * num_classes
    for label in split["label"][:]:
        counts[label] += 1
    return counts


def _range(counts: list[int]) -> str:
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"


def _duplicates(parts: dict[str, datasets.Dataset], names: Sequence[str]) -> list[str]:
    """A line for each kind of duplicates that there are."""
    places: dict[str, list[tuple[str, int, str]]] = defaultdict(list)  # contents -> (split, label, photograph)
    for (split, photographs), keys in zip(parts.items(), content_keys([*parts.values()]), strict=True):
        paths, labels = image_paths(photographs), photographs["label"][:]
        for row, (key, path, label) in enumerate(zip(keys, paths, labels, strict=True)):
            if key is not None:
                name = "/".join(Path(path).parts[-2:]) if path else f"{split}[{row}]"
                places[key].append((split, label, name))
    copies = [found for found in places.values() if len(found) > 1]
    leaks = [found for found in copies if len({split for split, _, _ in found}) > 1]
    mixed = [found for found in copies if len({label for _, label, _ in found}) > 1]
    lines = []
    if leaks:
        both = " and ".join(parts)
        lines.append(f"Leak: {_count(leaks)} in both {both}, so the accuracy is too high: {_examples(leaks, names)}")
    if mixed:
        lines.append(f"Contradiction: {_count(mixed)} in two classes: {_examples(mixed, names)}")
    for split in parts:
        inside = [[place for place in found if place[0] == split] for found in copies]
        if inside := [found for found in inside if len(found) > 1]:
            lines.append(f"Duplicates: {_count(inside)} more than once in {split}: {_examples(inside, names)}")
    return lines


def _count(found: Sequence) -> str:
    return f"{counted(len(found), 'photograph')} {'is' if len(found) == 1 else 'are'}"


def _examples(found: Sequence[list[tuple[str, int, str]]], names: Sequence[str]) -> str:
    return listed((" = ".join(f"{split}: {name}" for split, _, name in places[:2]) for places in found), 3)
