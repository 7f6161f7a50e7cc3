"""Parquet files that hold photographs, Hub datasets, and splits that `datasets` has loaded."""

import os
import re
import textwrap
from glob import escape, has_magic
from typing import Any

import datasets

from ..messages import did_you_mean, reason_of
from .source import Layout, group_column, split_name


def read_dataset(source: str, otherwise: str, layout: Layout, files: str | None = None) -> dict[str, datasets.Dataset]:
    """
    Read parquet files, or a Hub dataset in any format that `datasets` reads.

    Args:
        source: Folder or Hub id.
        otherwise: The start of the error message if it cannot be read.
        layout: `image_column`, `label_column` and `group_by` are used.
        files: A single parquet file, instead of all that `source` holds.

    Returns:
        Splits as in `Source`.

    Raises:
        ValueError: If it cannot be read, or a column is missing or ambiguous.
    """
    try:
        if files is not None:
            splits = datasets.load_dataset(source, data_files=escape(files))
        elif os.path.isdir(source) and has_magic(os.path.realpath(source)):
            # `datasets` takes such a name, as in `photos[1]`, for a pattern, and would read `photos1`
            splits = datasets.load_dataset("parquet", data_dir=escape(os.path.realpath(source)))
        else:
            splits = datasets.load_dataset(source)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = textwrap.shorten(reason_of(error.__cause__ or error), 300).rstrip(".")
        raise ValueError(f"{otherwise} that can be read ({reason}).") from None
    return with_our_columns(files or source, splits, layout)


def with_our_columns(source: str, splits: datasets.DatasetDict, layout: Layout) -> dict[str, datasets.Dataset]:
    """
    The same splits, where the columns `image` (not decoded), `label` and, if `layout.group_by` is a column, `group`
    are the ones meant. The others get names that do not collide with these. They stay, because `datasets` cannot add a
    column to a table from which all columns of an earlier `add_column` are removed.

    Args:
        source: Where they come from; it starts the error messages.
        splits: The splits.
        layout: `image_column`, `label_column` and `group_by` are used.
    """
    found = {}
    for name, split in splits.items():
        features = split.features
        ours = {
            _column(source, features, "image", layout.image_column): "image",
            _column(source, features, "label", layout.label_column): "label",
        }
        if (group := group_column(source, features, layout)) is not None:
            if group in ours:
                raise ValueError(f"--group-by {group}: this is the {ours[group]} column.")
            ours[group] = "group"
        others = (column for column in features if column not in ours)
        names = ours | {column: f"other {number}" for number, column in enumerate(others)}
        split = split.with_format(None).rename_columns(names)  # or a transform set by the user would be applied
        found[split_name(name) or name] = split.cast_column("image", datasets.Image(decode=False))
    if len(found) < len(splits):
        raise ValueError(f"{source} has two splits of one kind among {', '.join(splits)}; rename one.")
    return found


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
            hint = did_you_mean(given, features)
            raise ValueError(f"{source} has no column '{given}' for {option}; {columns}{hint or '.'}")
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
