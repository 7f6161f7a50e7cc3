"""Dividing photographs without a split into some to train on and some to test on, and `split.csv`, which records it.

    image,label,group,bytes,split
    Finch/0.jpg,Finch,,41523,train

`image` is the path below the folder of the data or, for photographs in a table, its place in it, such as `train[17]`.
`bytes`, the size of the photograph, tells whether it is still the same one.
"""

import csv
import os
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from io import StringIO
from pathlib import Path

from .class_names import read_text

SPLIT_FILE = "split.csv"
TEST_SHARE = 0.2
_COLUMNS = ["image", "label", "group", "bytes", "split"]


def divide(labels: Sequence[str], groups: Sequence[Hashable], share: float, seed: int) -> list[bool]:
    """
    Choose photographs to test on: about the given share of each class, in whole groups, at random. Each class keeps a
    photograph to train on, and gets one to test on if it can.

    Args:
        labels: The class of each photograph.
        groups: The group of each photograph. A group stays together; it may hold several classes.
        share: Share of the photographs to test on, between 0 and 1.
        seed: Random seed.

    Returns:
        For each photograph, whether it is one to test on.
    """
    members: dict[Hashable, Counter[str]] = defaultdict(Counter)  # group -> class -> photographs
    for label, group in zip(labels, groups, strict=True):
        members[group][label] += 1
    of_class: dict[str, list[Hashable]] = defaultdict(list)
    for group, counts in members.items():
        for label in counts:
            of_class[label].append(group)
    left = Counter(labels)  # to train on
    missing = {label: share * count for label, count in left.items()}  # still to be taken for testing
    taken: set[Hashable] = set()

    def take(group: Hashable) -> None:
        taken.add(group)
        for label, count in members[group].items():
            left[label] -= count
            missing[label] -= count

    generator = random.Random(seed)
    # Classes with few groups first: others have more of a choice afterwards
    for label in sorted(of_class, key=lambda label: (len(of_class[label]), label)):
        candidates = [group for group in of_class[label] if group not in taken]
        generator.shuffle(candidates)
        has_none = len(candidates) == len(of_class[label])
        candidates = [group for group in candidates if all(left[other] > n for other, n in members[group].items())]
        for group in candidates:
            count = members[group][label]
            leaves_some = all(left[other] > n for other, n in members[group].items())
            if leaves_some and abs(missing[label] - count) < abs(missing[label]):
                take(group)
                has_none = False
        if has_none and candidates:
            take(min(candidates, key=lambda group: members[group][label]))
    return [group in taken for group in groups]


def joined(groups: Sequence[Hashable | None], keys: Sequence[str | None]) -> list[Hashable]:
    """
    Groups in which the same photograph is never in two of them.

    Args:
        groups: The group of each photograph; None if it has none.
        keys: A key of each photograph's contents; see `content_keys`.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = node = parent.get(above, above)
        return node

    nodes: list[Hashable] = [
        ("photograph", row) if group is None else ("group", group) for row, group in enumerate(groups)
    ]
    for node, key in zip(nodes, keys, strict=True):
        if key is not None:
            parent[root(node)] = root(("contents", key))
    return [root(node) for node in nodes]


def record_division(
    images: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str | None],
    sizes: Sequence[int | None],
    is_test: Sequence[bool],
) -> str:
    """The content of `split.csv`."""
    file = StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    splits = ("test" if test else "train" for test in is_test)
    writer.writerows(zip(images, labels, (group or "" for group in groups), sizes, splits, strict=True))
    return file.getvalue()


def read_division(path: str | os.PathLike) -> dict[tuple[str, str], str]:
    """
    Read `split.csv`.

    Returns:
        Photograph (its name and its size in bytes) -> `train` or `test`.

    Raises:
        ValueError: If it is damaged.
    """
    rows = csv.DictReader(StringIO(read_text(path), newline=""))
    if rows.fieldnames != _COLUMNS:
        raise ValueError(f"{path}: its first line is {','.join(rows.fieldnames or ())}; expected {','.join(_COLUMNS)}.")
    found = {}
    for row in rows:
        if row["split"] not in ("train", "test"):
            raise ValueError(f"{path}, line {rows.line_num}: the split is {row['split']!r}; expected train or test.")
        found[row["image"], row["bytes"]] = row["split"]
    return found


def division_of_model(model: str | os.PathLike) -> Path | None:
    """The `split.csv` of the run that a checkpoint folder, or its best/, belongs to; None if there is none."""
    folder = Path(model)
    folder = folder.parent if folder.name == "best" else folder
    return folder / SPLIT_FILE if (folder / SPLIT_FILE).is_file() else None
