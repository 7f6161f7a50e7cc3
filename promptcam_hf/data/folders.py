"""Photographs in folders: a folder for each class, or the class in the names of the files; with or without splits."""

from collections import Counter
from pathlib import Path

from ..messages import listed
from .class_names import in_natural_order, plain_name, plain_names
from .image_files import find_photographs, is_hidden, left_out
from .parts import PARTS_FILE
from .source import UNDIVIDED, Pattern, Row, Source, from_rows, split_name


def split_folders(folder: Path) -> dict[str, Path]:
    """
    The folders of the splits, under any usual name (see `split_name`).

    Raises:
        ValueError: If there are two for one split.
    """
    folders: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = split_name(path.name)
        if split is not None and path.is_dir():
            if split in folders:
                raise ValueError(f"{folder} has two folders for one split, {folders[split].name} and {path.name}.")
            folders[split] = path
    return folders


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def read_class_folders(folder: Path, splits: dict[str, Path]) -> Source:
    """
    Read folders with a folder for each class. Photographs in folders below it belong to the class, too.

    Args:
        folder: The folder of the data.
        splits: The folder of each split; for data without splits, `UNDIVIDED`: `folder`.

    Raises:
        ValueError: If there are no photographs, or fewer than two classes to train on.
    """
    rows: list[Row] = []
    notes: list[str] = []
    empty: set[str] = set()
    others: Counter[str] = Counter()
    for split, path in splits.items():
        photographs = _photographs_by_class(path, others, notes)
        if split in ("train", UNDIVIDED) and len(photographs) < 2:
            hint = "" if subfolders(path) else ", or --label-pattern to find the class in the file names"
            raise ValueError(f"{path} holds fewer than two folders; expected one for each class{hint}.")
        rows += [Row(split, file, name) for name, files in photographs.items() for file in files]
        empty |= {name for name, files in photographs.items() if not files}
    if not rows:
        reason = f" ({left_out(others)})" if others else ""
        raise ValueError(f"{folder} holds no images{reason}; expected train/<class>/*.jpg and test/<class>/*.jpg.")
    if others:
        notes.append(f"{folder}: {left_out(others)}.")
    names = {row.label for row in rows}
    if empty - names:
        notes.append(f"{folder}: folders without photographs left out: {listed(in_natural_order(empty - names))}.")
    if beside := [] if UNDIVIDED in splits else _beside(folder, splits):
        notes.append(f"{folder}: folders beside {listed(path.name for path in splits.values())} left out: {beside}.")
    return Source(folder.resolve().name, from_rows(rows, in_natural_order(names)), folder, tuple(notes))


def _photographs_by_class(folder: Path, others: Counter[str], notes: list[str]) -> dict[str, list[Path]]:
    """The photographs of each class in the folder of a split. Counts its other files by type, and notes what else it
    leaves out."""
    paths = sorted(folder.iterdir())
    folders = {path.name: path for path in subfolders(folder)}
    others.update(path.suffix.lower() or "no ending" for path in paths if path.is_file() and not is_hidden(path.name))
    photographs: dict[str, list[Path]] = {}
    for name, plain in plain_names(folders, str(folder)).items():
        photographs[plain], of_other_types = find_photographs(folders[name])
        others.update(of_other_types)
    if hidden := [path.name for path in paths if path.is_dir() and is_hidden(path.name)]:
        notes.append(f"{folder}: hidden folders left out: {listed(hidden)}.")
    if broken := [path.name for path in paths if path.is_symlink() and not path.exists()]:
        notes.append(f"{folder}: links that lead nowhere left out: {listed(broken)}.")
    return photographs


def _beside(folder: Path, splits: dict[str, Path]) -> str:
    """The names of folders beside those of the splits. Where parts are known, these hold masks (see `parts.py`)."""
    if (folder / PARTS_FILE).exists():
        return ""
    return listed(path.name for path in subfolders(folder) if path not in splits.values())


def read_named_files(folder: Path, pattern: str) -> Source:
    """
    Read photographs whose class is in the name of the file. If there are folders of splits, only they are read.

    Args:
        folder: The folder of the data.
        pattern: Regular expression that finds the class; see `Pattern`.

    Raises:
        ValueError: If there are no photographs, or none that the pattern fits.
    """
    find_class = Pattern(pattern, "--label-pattern")
    rows: list[Row] = []
    others: Counter[str] = Counter()
    unmatched: list[Path] = []
    for split, path in (split_folders(folder) or {UNDIVIDED: folder}).items():
        files, of_other_types = find_photographs(path)
        others += of_other_types
        for file in files:
            name = plain_name(find_class.find(file, folder) or "")
            rows += [Row(split, file, name)] if name else []
            unmatched += [] if name else [file]
    if not rows:
        example = f"no file name in {folder}, such as {unmatched[0].relative_to(folder).as_posix()!r}"
        reason = f"matches {example}" if unmatched else f"{folder} holds no images"
        raise ValueError(f"{find_class.described}: {reason}; expected one that finds the class.")
    notes = [f"{folder}: {left_out(others)}."] if others else []
    if unmatched:
        examples = listed((path.relative_to(folder).as_posix() for path in unmatched), 3)
        notes.append(f"{folder}: photographs without a match of {find_class.described} left out: {examples}.")
    names = in_natural_order({row.label for row in rows})
    return Source(folder.resolve().name, from_rows(rows, names), folder, tuple(notes))
