"""The layouts that photographs come in: image folders, the unpacked downloads of CUB-200-2011 and Oxford-IIIT Pet,
parquet files and Hub datasets. All are read into splits with the columns `image` and `label`."""

import errno
import logging
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from ..messages import listed
from .class_names import plain_names
from .image_files import find_photographs, left_out

logger = logging.getLogger(__name__)

EVALUATION_SPLITS = ("validation", "val", "test")
SPLITS = ("train", "validation", "val", "test")
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
LAYOUTS = (
    "train/<class>/*.jpg and test/<class>/*.jpg (or parquet files, or the unpacked download of CUB-200-2011 or "
    "Oxford-IIIT Pet)"
)


def read_splits(
    data: str | os.PathLike | datasets.DatasetDict, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, dict[str, datasets.Dataset]]:
    """
    Read all splits of a folder or, if there is no such folder, of a Hub dataset. Images are not decoded yet.

    Args:
        data: Folder in one of the layouts, Hub id `"org/name"`, or splits that `datasets` has loaded.
        image_column: Column with the images, in parquet files and Hub datasets. Default: the only column of images.
        label_column: Column with the classes, in parquet files and Hub datasets. Default: the only column of type
            `ClassLabel`, or else the one called `label` or `labels`.

    Returns:
        Name of the data, and splits by name. Their columns are `image`, a dictionary with `path` and `bytes`, one of
        which may be `None`, and `label`: a `ClassLabel`, strings or integers.

    Raises:
        ValueError: If the data have none of the layouts or cannot be read, or a column is missing or ambiguous.
    """
    if isinstance(data, datasets.DatasetDict):
        return "photographs", _with_our_columns("the DatasetDict", data, image_column, label_column)
    folder = Path(data)
    hub_id = folder.as_posix()
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        return hub_id, _read_tables(
            hub_id, f"{hub_id} is neither a folder nor a Hub dataset", image_column, label_column
        )
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a folder with {LAYOUTS}, or a Hub id such as org/name.")

    cubs = [path for path in (folder, folder / "CUB_200_2011") if (path / "image_class_labels.txt").is_file()]
    is_pets = (folder / "annotations" / "trainval.txt").is_file()
    has_class_folders = any(path.is_dir() for split in _split_folders(folder).values() for path in split.iterdir())
    name = folder.resolve().name
    if not (cubs or is_pets or has_class_folders) and any(folder.rglob("*.parquet")):
        return name, _read_tables(str(folder), f"{folder} holds no parquet files", image_column, label_column)
    if image_column is not None or label_column is not None:
        raise ValueError(f"{folder} is a folder of images, not a table; leave out --image-column and --label-column.")
    if cubs:
        return "CUB-200-2011", _read_cub(cubs[0])
    if is_pets:
        return "Oxford-IIIT Pet", _read_pets(folder)
    return name, _read_image_folder(folder)


# --- Folders ----------------------------------------------------------------------------------------------------------


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits, in upper or lower case; `valid` is `validation`."""
    folders: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = re.sub("^valid$", "validation", path.name.lower())
        if split in SPLITS and path.is_dir():
            if split in folders:
                raise ValueError(f"{folder} has two folders for one split, {folders[split].name} and {path.name}.")
            folders[split] = path
    return folders


def _read_image_folder(folder: Path) -> dict[str, datasets.Dataset]:
    """`train/<class>/**`, and the same in `validation/`, `val/` or `test/`; the classes are sorted by name."""
    splits = _split_folders(folder)
    if not splits:
        raise ValueError(f"{folder} has no folder 'train'; expected {LAYOUTS}.")
    found: list[tuple[str, Path, str]] = []
    empty: set[str] = set()
    others: Counter[str] = Counter()
    for split, path in splits.items():
        photographs, of_other_types = _photographs_by_class(path)
        if split == "train" and len(photographs) < 2:
            raise ValueError(f"{path} holds fewer than two folders; expected one for each class.")
        found += [(split, file, name) for name, files in photographs.items() for file in files]
        empty |= {name for name, files in photographs.items() if not files}
        others += of_other_types
    if not found:
        reason = f" ({left_out(others)})" if others else ""
        raise ValueError(f"{folder} holds no images{reason}; expected {LAYOUTS}.")
    if others:
        logger.warning("%s: %s.", folder, left_out(others))
    names = sorted({name for *_, name in found})
    if empty := empty - set(names):
        logger.warning("%s: folders without photographs left out: %s.", folder, listed(sorted(empty)))
    numbers = {name: number for number, name in enumerate(names)}
    rows = [(split, file, numbers[name]) for split, file, name in found]
    return _from_files(rows, {number: name for name, number in numbers.items()})


def _photographs_by_class(folder: Path) -> tuple[dict[str, list[Path]], Counter[str]]:
    """The photographs of each class in the folder of a split, and the count of its other files by type."""
    paths = sorted(folder.iterdir())
    folders = {path.name: path for path in paths if path.is_dir() and not path.name.startswith(".")}
    photographs: dict[str, list[Path]] = {}
    others = Counter(path.suffix.lower() or "no ending" for path in paths if path.is_file() and path.name[0] != ".")
    for name, plain in plain_names(folders, str(folder)).items():
        photographs[plain], of_other_types = find_photographs(folders[name])
        others += of_other_types
    if hidden := [path.name for path in paths if path.is_dir() and path.name.startswith(".")]:
        logger.warning("%s: hidden folders left out: %s.", folder, listed(hidden))
    if broken := [path.name for path in paths if path.is_symlink() and not path.exists()]:
        logger.warning("%s: links that lead nowhere left out: %s.", folder, listed(broken))
    return photographs, others


def _read_cub(folder: Path) -> dict[str, datasets.Dataset]:
    """CUB-200-2011 with its official split. Its files name a class like `001.Black_footed_Albatross`."""
    images, numbers, is_train, classes = (
        dict(_fields(folder / f"{name}.txt", 2))
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    )
    rows = []
    for image, path in images.items():
        if is_train.get(image) not in ("0", "1") or numbers.get(image) not in classes:
            raise ValueError(f"{folder}: image {image} of images.txt has no split or no class in the other files.")
        split = "train" if is_train[image] == "1" else "test"
        rows.append((split, folder / "images" / path, int(numbers[image])))
    return _from_files(rows, {int(number): name.split(".", 1)[-1] for number, name in classes.items()})


def _read_pets(folder: Path) -> dict[str, datasets.Dataset]:
    """Oxford-IIIT Pet with its official split. An image is named after its class, like `american_bulldog_10`."""
    rows, names = [], {}
    for split, file in (("train", "trainval"), ("test", "test")):
        for image, number, *_ in _fields(folder / "annotations" / f"{file}.txt", 4):
            rows.append((split, folder / "images" / f"{image}.jpg", int(number)))
            names[int(number)] = image.rsplit("_", 1)[0]
    return _from_files(rows, names)


def _fields(path: Path, count: int) -> Iterable[list[str]]:
    """The rows of a table with columns separated by spaces and without a header; skips empty lines and `#` comments."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; expected the complete unpacked download.")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) != count:
            raise ValueError(f"{path}, line {number}: {len(fields)} columns, expected {count}.")
        yield fields


def _from_files(rows: list[tuple[str, Path, int]], names: dict[int, str]) -> dict[str, datasets.Dataset]:
    """Splits from rows (split, file, class number). Classes are in the order of their numbers."""
    labels = {number: label for label, number in enumerate(sorted(names))}
    features = datasets.Features(
        image=datasets.Image(decode=False), label=datasets.ClassLabel(names=[names[number] for number in labels])
    )
    splits = {}
    for split in dict.fromkeys(name for name, *_ in rows):
        columns = {
            "image": [{"path": str(path), "bytes": None} for name, path, _ in rows if name == split],
            "label": [labels[number] for name, _, number in rows if name == split],
        }
        splits[split] = datasets.Dataset.from_dict(columns, features=features, split=split)
    return splits


# --- Tables -----------------------------------------------------------------------------------------------------------


def _read_tables(
    source: str, otherwise: str, image_column: str | None, label_column: str | None
) -> dict[str, datasets.Dataset]:
    """Parquet files in a folder, or a Hub dataset in any format that `datasets` reads. `otherwise` starts the error."""
    try:
        splits = datasets.load_dataset(source)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in CANNOT_WRITE:
            raise ValueError(
                f"{source}: its copy cannot be written to {cause.filename or 'the cache'} ({cause.strerror}); "
                "set HF_HOME to a folder that can be written, on a disk with space."
            ) from None
        reason = textwrap.shorten(str(cause), 300).rstrip(".")
        raise ValueError(f"{otherwise} that can be read ({reason}).") from None
    return _with_our_columns(source, splits, image_column, label_column)


def _with_our_columns(
    source: str, splits: datasets.DatasetDict, image_column: str | None, label_column: str | None
) -> dict[str, datasets.Dataset]:
    """The same splits with the columns `image`, not decoded, and `label`."""
    features = next(iter(splits.values())).features
    image = _column(source, features, "image", image_column)
    label = _column(source, features, "label", label_column)
    return {
        name: split.with_format(None)  # or a transform set by the user would be applied
        .select_columns([image, label])
        .rename_columns({image: "image", label: "label"})
        .cast_column("image", datasets.Image(decode=False))
        for name, split in splits.items()
    }


def _column(source: str, features: datasets.Features, role: str, given: str | None) -> str:
    """The column for a role ("image" or "label"): the given one; or else the only one of the right type; or else, if
    there are none or several of that type, the one with a usual name."""
    type_, usual_names, fits = {
        "image": (datasets.Image, ("image", "img"), _holds_images),
        "label": (datasets.ClassLabel, ("label", "labels"), _holds_labels),
    }[role]
    option, columns = f"--{role}-column", f"columns: {', '.join(features)}"
    if given is not None:
        if given not in features:
            raise ValueError(f"{source} has no column '{given}' for {option}; {columns}.")
        if not fits(features[given]):
            raise ValueError(f"{source}: the column '{given}' cannot be used as {option}; {columns}.")
        return given
    of_type = [name for name, feature in features.items() if isinstance(feature, type_)]
    usual = [name for name in of_type or features if name in usual_names and fits(features[name])]
    for found in (of_type, usual):
        if len(found) == 1:
            return found[0]
    problem = "several columns that could be" if of_type else "no column that is clearly"
    raise ValueError(f"{source} has {problem} the {role}; choose one with {option} ({columns}).")


def _holds_images(feature: Any) -> bool:
    is_encoded = isinstance(feature, dict) and "bytes" in feature
    return isinstance(feature, datasets.Image) or is_encoded or getattr(feature, "dtype", "").endswith("binary")


def _holds_labels(feature: Any) -> bool:
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
    return isinstance(feature, datasets.ClassLabel) or bool(re.fullmatch(r"(large_)?string|u?int\d+|bool", dtype))
