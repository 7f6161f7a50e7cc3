"""The one form that every layout is read into, `Source`, and what a user may say about a layout, `Layout`."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets

from ..messages import did_you_mean

_PLAIN_TEXT = re.compile(r"[\w -]*")  # as a regular expression it would find the same text everywhere
UNDIVIDED = "all"  # the split of data that has no splits
_OF_WHAT = r"([-_ ]?(set|data|dataset|split|images?|imgs?|photos?))?"
_SPLIT_NAMES = {
    "train": re.compile(f"(train|training){_OF_WHAT}"),
    "validation": re.compile(f"(val|valid|validation|dev){_OF_WHAT}"),
    "test": re.compile(f"(test|testing|eval|evaluation|holdout|hold-?out){_OF_WHAT}"),
}


@dataclass(frozen=True)
class Layout:
    """
    What the data do not say about themselves.

    Args:
        image_column: Column of a table with the images, or their file names.
        label_column: Column of a table with the classes.
        split_column: Column of a label table with the splits.
        label_pattern: Regular expression that finds the class in the name of a file; see `Pattern`.
        group_by: Column of a table, or a regular expression on the names of the files, that says which photographs
            show the same individual, sequence or camera.
    """

    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    label_pattern: str | None = None
    group_by: str | None = None

    @property
    def names_columns(self) -> bool:
        """Whether it names a column of a table."""
        is_column = self.group_by is not None and _PLAIN_TEXT.fullmatch(self.group_by)
        return bool(self.image_column or self.label_column or self.split_column or is_column)


@dataclass(frozen=True)
class Source:
    """
    Data as they were found.

    Args:
        name: Name of the data: `"CUB-200-2011"`, `"Oxford-IIIT Pet"`, the folder's name, or the Hub id.
        splits: Splits by name (`train`, `validation`, `test`, or another one that the data use). Data without splits
            have one, `UNDIVIDED`. Their columns are `image`, a dictionary with `path` and `bytes`, one of which may be
            `None`; `label`: a `ClassLabel`, strings or integers; perhaps `group`; and any others.
        folder: The folder that holds the photographs, if they are files.
        notes: What to know about the data, such as what was left out and why, a sentence each.
    """

    name: str
    splits: dict[str, datasets.Dataset]
    folder: Path | None = None
    notes: tuple[str, ...] = ()


class Row(NamedTuple):
    """A photograph in a file. `split` may be `UNDIVIDED`."""

    split: str
    path: Path
    label: str
    group: str | None = None


def split_name(name: str) -> str | None:
    """
    The split that a folder, a file or a cell of a table is named after: `train`, `validation` or `test`, for any usual
    spelling, such as `Training`, `val` or `test_images`. None if it is no name of a split.
    """
    plain = name.strip().lower()
    return next((split for split, spelling in _SPLIT_NAMES.items() if spelling.fullmatch(plain)), None)


def from_rows(rows: Iterable[Row], names: Sequence[str]) -> dict[str, datasets.Dataset]:
    """
    Splits from photographs in files.

    Args:
        rows: The photographs.
        names: All classes, in the order of their labels.
    """
    rows, labels = list(rows), {name: label for label, name in enumerate(names)}
    features = datasets.Features(
        image=datasets.Image(decode=False), label=datasets.ClassLabel(names=list(names)), group=datasets.Value("string")
    )
    if all(row.group is None for row in rows):
        del features["group"]
    splits = {}
    for split in dict.fromkeys(row.split for row in rows):
        mine = [row for row in rows if row.split == split]
        columns = {
            "image": [{"path": str(row.path), "bytes": None} for row in mine],
            "label": [labels[row.label] for row in mine],
            "group": [row.group for row in mine],
        }
        splits[split] = datasets.Dataset.from_dict(
            {name: columns[name] for name in features}, features=features, split=split
        )
    return splits


def group_column(source: str | os.PathLike, columns: Iterable[str], layout: Layout) -> str | None:
    """
    The column of a table that `layout.group_by` names; None if it is a regular expression, or not given.

    Raises:
        ValueError: If it can only be a column, and there is none of this name.
    """
    columns, given = list(columns), layout.group_by
    if given is None or given in columns:
        return given
    if _PLAIN_TEXT.fullmatch(given):
        hint = did_you_mean(given, columns) or "."
        raise ValueError(f"{source} has no column '{given}' for --group-by; columns: {', '.join(columns)}{hint}")
    return None


class Pattern:
    """
    A regular expression that takes a class or a group from the name of a file. With a slash in it, it is searched in
    the path below the folder of the data, otherwise in the file's name alone. Its first group in parentheses counts,
    or all that it matches if it has none.

    Args:
        pattern: The regular expression.
        option: The option it is the value of; for the error message.

    Raises:
        ValueError: If it is no regular expression, or would match the same text everywhere.
    """

    def __init__(self, pattern: str, option: str):
        self.described = f"{option} {pattern!r}"
        try:
            self.expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{self.described} is not a regular expression ({error}).") from None
        if _PLAIN_TEXT.fullmatch(pattern):
            raise ValueError(f"{self.described}: expected a regular expression such as '^([^_]+)_'.")
        self.in_path = "/" in pattern

    def find(self, path: str | os.PathLike, folder: str | os.PathLike) -> str | None:
        """What it finds in the path of a file in a folder; None if it finds nothing."""
        below = Path(os.path.relpath(path, folder)).as_posix()
        found = self.expression.search(below if self.in_path else below.rsplit("/", 1)[-1])
        if found is None:
            return None
        return (found.group(1) if self.expression.groups else found.group()) or None
