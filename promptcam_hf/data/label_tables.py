"""Tables of labels: a row for each photograph, with the name of its file and its class, perhaps also its split and
group. CSV (separated by commas, semicolons or tabs), JSON lines, or parquet."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ..messages import counted, did_you_mean, listed
from .class_names import in_natural_order, plain_name, read_text
from .folders import split_folders
from .image_files import IMAGE_SUFFIXES, find_photographs
from .source import UNDIVIDED, Layout, Row, Source, from_rows, group_column, split_name

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
# Usual names of the columns, in lower case and without spaces, dashes and underscores
_USUAL = {
    "image": "image filename file imagefile imagename path filepath imagepath photo photograph img picture imageid id",
    "label": "label labels class classname species category taxon taxonname scientificname breed target name",
    "split": "split subset set partition",
    "group": "group",
}


def find_label_tables(folder: Path, layout: Layout) -> list[Path]:
    """
    The tables of labels of a folder: one in it, or one in each folder of a split (`train/metadata.csv`), or one for
    each split (`train.csv`, `test.csv`).

    Args:
        folder: The folder of the data.
        layout: Which columns hold what.

    Returns:
        The tables, none if there are none.

    Raises:
        ValueError: If it is not clear which table is meant.
    """
    tables = _tables_in(folder, layout)
    of_splits = [path for path in tables if split_name(path.stem)]
    if len(tables) == 1 or (tables and tables == of_splits):
        return tables
    if tables:
        names = listed(table.name for table in tables)
        raise ValueError(f"{folder} has several tables of labels: {names}; pass one of them as --data.")
    return [table for path in split_folders(folder).values() for table in _tables_in(path, layout)[:1]]


def _tables_in(folder: Path, layout: Layout) -> list[Path]:
    """The files in a folder that have the columns of a table of labels. The only table counts, too, if the user names
    columns: reading it will tell what is wrong with their names."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    paths = [path for path in paths if not path.name.startswith(".")]
    readable, fitting = [], []
    for path in paths:
        with suppress(ValueError):
            table = _read(path)
            readable.append(path)
            _Columns(path, *table, layout)  # raises an error if it does not fit
            fitting.append(path)
    return fitting or (readable if layout.names_columns and len(readable) == 1 else [])


def is_label_table(path: Path, layout: Layout) -> bool:
    """Whether a file is a table with a column of file names and one of classes."""
    try:
        _Columns(path, *_read(path), layout)
    except ValueError:
        return False
    return True


def read_label_tables(paths: Sequence[Path], folder: Path, layout: Layout) -> Source:
    """
    Read tables of labels and find their photographs: by their paths from the table, or else by their names anywhere
    below `folder`, with or without the file's ending.

    Args:
        paths: The tables. Where there are several, each holds the split that it, or its folder, is named after.
        folder: The folder of the data.
        layout: Which columns hold what, where their names do not say it.

    Returns:
        The photographs. A row without a split column is in the split that the table, its folder or the photograph's
        folder is named after. A photograph that is not found keeps its path, so that it counts as unreadable.

    Raises:
        ValueError: If a table cannot be read, a column is missing, or a photograph is ambiguous or has two classes.
    """
    rows: list[Row] = []
    notes: list[str] = []
    files = _Files(folder)
    for path in paths:
        rows += _rows_of(path, layout, files, notes, is_split=len(paths) > 1)
    if not any(row.path.is_file() for row in rows):
        first = rows[0].path.name if rows else ""
        raise ValueError(
            f"{paths[0]}: none of its photographs is in {folder}, such as {first!r}"
            f"{did_you_mean(first, files.by_name, '; expected paths from the folder of the table.')}"
        )
    rows = _without_repetitions(rows, paths[0], notes)
    _note_the_others(rows, files, notes, paths)
    names = in_natural_order({row.label for row in rows})
    return Source(folder.resolve().name, from_rows(rows, names), folder, tuple(notes))


def _rows_of(path: Path, layout: Layout, files: "_Files", notes: list[str], is_split: bool) -> Iterator[Row]:
    """The photographs of one table."""
    names, cells = _read(path)
    columns = _Columns(path, names, cells, layout)
    of_table = split_name(path.stem) if is_split and path.parent == files.folder else None
    unlabelled = 0
    for number, row in enumerate(cells, start=1):
        wanted = (columns.image, columns.label, columns.group)
        image, label, group = (_text(column and row.get(column)) for column in wanted)
        where = f"{path}, row {number}"
        if not label:
            unlabelled += 1
            continue
        if not image:
            raise ValueError(f"{where}: the column {columns.image!r} is empty; expected the name of a photograph.")
        file = files.find(image, path.parent, where)
        if columns.split is None:
            below = file.relative_to(files.folder).parts[:-1] if file.is_relative_to(files.folder) else ()
            split = of_table or next((found for part in below if (found := split_name(part))), UNDIVIDED)
        else:
            given = _text(row.get(columns.split))
            split = split_name(given) or ""
            if not split:
                raise ValueError(f"{where}: the split {given!r} is unknown; expected train, validation or test.")
        yield Row(split, file, label, group or None)
    if unlabelled:
        notes.append(f"{path}: rows without a class left out: {unlabelled}.")


def _without_repetitions(rows: list[Row], path: Path, notes: list[str]) -> list[Row]:
    """The rows, each photograph once."""
    seen: dict[Path, Row] = {}
    for row in rows:
        before = seen.setdefault(row.path, row)
        if (before.label, before.split) != (row.label, row.split):
            raise ValueError(
                f"{path}: {row.path.name} is {before.label!r} in {before.split}, and {row.label!r} in {row.split}; "
                "expected one class and one split for each photograph."
            )
    if len(rows) > len(seen):
        notes.append(f"{path}: repeated rows left out: {len(rows) - len(seen)}.")
    return list(seen.values())


def _note_the_others(rows: list[Row], files: "_Files", notes: list[str], paths: Sequence[Path]) -> None:
    """Note the photographs in the folder that no table names."""
    named = {row.path for row in rows}
    if others := [path for path in files.all if path not in named]:
        examples = listed((path.relative_to(files.folder).as_posix() for path in others), 3)
        tables = listed(path.name for path in paths)
        notes.append(
            f"{files.folder}: left out {counted(len(others), 'photograph')} that {tables} does not name ({examples})."
        )


class _Files:
    """The photographs below a folder, found by what a table calls them."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def all(self) -> list[Path]:
        return find_photographs(self.folder)[0]

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        """File names, and file names without their endings -> the photographs of this name."""
        found: dict[str, list[Path]] = {}
        for path in self.all:
            for name in {path.name, path.stem}:
                found.setdefault(name, []).append(path)
        return found

    def find(self, name: str, start: Path, where: str) -> Path:
        """
        The photograph of a name.

        Args:
            name: A path from `start` or `folder`, or the end of one.
            start: The folder of the table.
            where: The start of the error message.
        """
        if re.match(r"\w+://", name):
            raise ValueError(f"{where}: {name!r} is an address; expected the file of a photograph that is here.")
        name = name.replace("\\", "/")
        for path in (start / name, self.folder / name):
            if path.is_file():
                return path
        parts = Path(name).parts
        found = [
            path
            for path in self.by_name.get(parts[-1] if parts else "", [])
            if path.parts[-len(parts) : -1] == parts[:-1]
        ]
        if len(found) > 1:
            names = listed((path.relative_to(self.folder).as_posix() for path in found), 3)
            raise ValueError(f"{where}: {name!r} may be {names}; expected the path from the folder of the table.")
        return found[0] if found else start / name


class _Columns:
    """
    The names of the columns of a table.

    Args:
        path: The table.
        columns: All its columns.
        rows: Its rows.
        layout: The columns that the user has named.

    Raises:
        ValueError: If there is no such column, or it is not clear which one is meant.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]], layout: Layout):
        self._path, self._columns, self._rows = path, columns, rows
        self.image: str = self._required("image", layout.image_column)
        self.label: str = self._required("label", layout.label_column)
        self.split = self._optional("split", layout.split_column)
        self.group = self._optional("group", group_column(path, columns, layout))
        if self.group in (self.image, self.label):
            raise ValueError(f"--group-by {self.group}: this is the column of the images or classes.")

    def _required(self, role: str, given: str | None) -> str:
        found = self._optional(role, given)
        if found is None and role == "image":
            found = next((name for name in self._columns if self._holds_files(name)), None)
        if found is None:
            raise ValueError(
                f"{self._path} has no column that is clearly the {role}; choose one with --{role}-column (columns: "
                f"{', '.join(self._columns)})."
            )
        return found

    def _optional(self, role: str, given: str | None) -> str | None:
        if given is not None:
            if given not in self._columns:
                hint = did_you_mean(given, self._columns) or "."
                columns = f"columns: {', '.join(self._columns)}"
                raise ValueError(f"{self._path} has no column '{given}' for --{role}-column; {columns}{hint}")
            return given
        plain = {re.sub(r"[\s_-]", "", name).lower(): name for name in self._columns}
        return next((plain[name] for name in _USUAL[role].split() if name in plain), None)

    def _holds_files(self, column: str) -> bool:
        return bool(self._rows) and Path(_text(self._rows[0].get(column))).suffix.lower() in IMAGE_SUFFIXES


def _text(cell: Any) -> str:
    """A cell as text in one line; an empty one for what is missing."""
    return "" if cell is None or cell != cell else plain_name(str(cell))  # NaN is not equal to itself


def _read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """
    The names of the columns of a table, and its rows.

    Raises:
        ValueError: If it cannot be read, or holds the bytes of the images.
    """
    kind = path.suffix.lower()
    text = "" if kind == ".parquet" else read_text(path)
    try:
        if kind == ".parquet":
            table = pyarrow.parquet.ParquetFile(path)
            if any(pyarrow.types.is_struct(f.type) or "binary" in str(f.type) for f in table.schema_arrow):
                raise ValueError("it holds the photographs themselves")
            return list(table.schema_arrow.names), table.read().to_pylist()
        if kind == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("expected an object in each line")
            return list(dict.fromkeys(name for row in rows for name in row)), rows
        header = text.split("\n", 1)[0]
        separator = Counter(character for character in header if character in ",;\t").most_common(1)
        reader = csv.DictReader(StringIO(text, newline=""), delimiter=separator[0][0] if separator else ",")
        return [name for name in reader.fieldnames or () if name], list(reader)
    except (ValueError, OSError, csv.Error, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as a table ({' '.join(str(error).split())}).") from None
