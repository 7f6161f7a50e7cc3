"""Dividing photographs without a split into some to train on and some to test on, and `split.csv`, which records it.

    image,label,group,bytes,split
    Finch/0.jpg,Finch,,41523,train

`image` is the path below the folder of the data or, for photographs in a table, its place in it, such as `train[17]`.
`bytes`, the size of the photograph, tells whether it is still the same one.
"""

import csv
import math
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
    photograph to train on, and gets one to test on if it can. As groups stay whole, it may take somewhat more than the
    share; `validation.choose_held_out` never does, and leaves small classes alone.

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
    total, left = Counter(labels), Counter(labels)  # photographs of each class, and those left to train on
    taken: set[Hashable] = set()

    def change(group: Hashable) -> float:
        """How much moving a group to the other side changes the sum, over its classes, of the squares of the distance
        from the share. Infinite if a class would have nothing left to train on."""
        sign, error = (-1, 0.0) if group in taken else (1, 0.0)
        for label, count in members[group].items():
            if left[label] <= sign * count:
                return math.inf
            off = 1 - left[label] / total[label] - share
            error += (off + sign * count / total[label]) ** 2 - off**2
        return error

    def move(group: Hashable) -> None:
        sign = -1 if group in taken else 1
        taken.symmetric_difference_update({group})
        left.subtract({label: sign * count for label, count in members[group].items()})

    order = list(members)
    random.Random(seed).shuffle(order)
    is_better = True
    while is_better:
        is_better = False
        for group in order:
            if change(group) < -1e-9:
                move(group)
                is_better = True
    of_class: dict[str, list[Hashable]] = {label: [] for label in total}
    for group in order:
        for label in members[group]:
            of_class[label].append(group)
    for label, candidates in of_class.items():
        candidates.sort(key=lambda group: members[group][label])
        smallest = next((group for group in candidates if change(group) < math.inf), None)
        if left[label] == total[label] and smallest is not None:
            move(smallest)
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
