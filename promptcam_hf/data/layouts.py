"""Tells the layouts of data apart. Each layout has a file of its own that reads it into a `Source`:

folders.py        train/<class>/*.jpg and test/<class>/*.jpg; <class>/*.jpg; flat folders, by a pattern
label_tables.py   photographs in files, and a CSV, JSON lines or parquet table that names their classes
parquet.py        parquet files that hold photographs; Hub datasets; splits that `datasets` has loaded
downloads.py      the unpacked downloads of CUB-200-2011 and Oxford-IIIT Pet
"""

import os
from pathlib import Path

import datasets

from ..modeling.hub_promptcam import is_hub_id
from .downloads import read_download
from .folders import read_class_folders, read_named_files, split_folders, subfolders
from .label_tables import TABLE_SUFFIXES, find_label_tables, is_label_table, read_label_tables
from .parquet import read_dataset, with_our_columns
from .parts import MASKS, SWAPPED, WITHOUT
from .source import UNDIVIDED, Layout, Source

LAYOUTS = (
    "train/<class>/*.jpg and test/<class>/*.jpg (or <class>/*.jpg, a table of labels, parquet files, or the unpacked "
    "download of CUB-200-2011 or Oxford-IIIT Pet)"
)


def read_source(data: str | os.PathLike | datasets.DatasetDict, layout: Layout) -> tuple[Source, str | None]:
    """
    Read all splits of data in any layout. Images are not decoded yet.

    Args:
        data: A folder, a table of labels or a parquet file; or, if there is none of this name, a Hub id `"org/name"`;
            or splits that `datasets` has loaded.
        layout: What the user says about the layout.

    Returns:
        The data, and their Hub id if they come from there.

    Raises:
        ValueError: If the data have none of the layouts or cannot be read, or a column is missing or ambiguous.
    """
    if isinstance(data, datasets.DatasetDict):
        return Source("photographs", with_our_columns("the DatasetDict", data, layout)), None
    path = Path(data)
    hub_id = path.as_posix()
    if not path.exists() and is_hub_id(hub_id) and path.suffix not in TABLE_SUFFIXES:
        splits = read_dataset(hub_id, f"{hub_id} is neither a folder nor a Hub dataset", layout)
        return Source(hub_id, splits), hub_id
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return _read_table(path, layout), None
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; expected a folder with {LAYOUTS}, or a Hub id such as org/name.")
    return _read_folder(path, layout), None


def _read_table(path: Path, layout: Layout) -> Source:
    """A file: a table of labels, or parquet with the photographs in it."""
    if path.suffix.lower() == ".parquet" and not is_label_table(path, layout):
        splits = read_dataset("parquet", f"{path} is no parquet file", layout, str(path))
        return Source(path.resolve().stem, {UNDIVIDED: next(iter(splits.values()))})
    return read_label_tables([path], path.parent, layout)


def _read_folder(folder: Path, layout: Layout) -> Source:
    """A folder in the first layout that it has: what the user says, classes of splits, tables, classes. If its only
    folder has folders, that one is read in its place. Masks and edited versions of test photographs are not taken
    for the data."""
    if layout.label_pattern is not None:
        return read_named_files(folder, layout.label_pattern)
    columns = layout.image_column, layout.label_column, layout.split_column
    download, splits = read_download(folder), split_folders(folder)
    classes = max((len(subfolders(path)) for path in splits.values()), default=0)
    if download is None and classes < 2:
        if tables := find_label_tables(folder, layout):
            return read_label_tables(tables, folder, layout)
        if classes == 0 and any(folder.rglob("*.parquet")):
            parquet = read_dataset(str(folder), f"{folder} holds no parquet files", layout)
            return Source(folder.resolve().name, parquet)
    if any(column is not None for column in columns):
        raise ValueError(f"{folder} is a folder of images, not a table; leave out --image-column and --label-column.")
    if download is not None:
        return download
    if splits:
        return read_class_folders(folder, splits)
    inner = [path for path in subfolders(folder) if path.name not in (MASKS, WITHOUT, SWAPPED)]
    if len(inner) > 1:
        return read_class_folders(folder, {UNDIVIDED: folder})
    if inner and subfolders(inner[0]):  # a folder around the data, as archives make it
        return _read_folder(inner[0], layout)
    raise ValueError(
        f"{folder} has no folder 'train'; expected {LAYOUTS}, or --label-pattern to find the class in the file names."
    )
