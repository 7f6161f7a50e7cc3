"""The photographs to train on and those to evaluate on: `load_splits` turns data of any layout into both."""

import csv
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import datasets
import numpy as np

from ..files import as_text
from ..messages import counted, did_you_mean, listed
from .class_names import in_natural_order, plain_name, plain_names, read_text
from .division import TEST_SHARE, divide, joined, read_division, record_division
from .duplicates import byte_sizes, content_keys, image_paths
from .layouts import read_source
from .source import UNDIVIDED, Layout, Pattern, Source, split_name

logger = logging.getLogger(__name__)

EVALUATION_SPLITS = ("validation", "test")
Sides = dict[str, list[str | None]]  # split -> for each of its photographs "train", "test", or None: left out


@dataclass(frozen=True)
class Splits:
    """
    Photographs to train on and to evaluate on, not decoded yet.

    Args:
        train: Training photographs, with the columns `image` (a dictionary with `path` and `bytes`, one of which may be
            `None`) and `label` (`ClassLabel`).
        evaluation: Evaluation photographs, with the same columns.
        names: Class names in the order of their labels.
        name: Name of the data: `"CUB-200-2011"`, `"Oxford-IIIT Pet"`, the folder's name, or the Hub id.
        split: Name of the evaluation split: `"validation"`, `"test"`, another one that was asked for, or `"all"` if the
            data have no splits and all photographs are evaluated.
        hub_id: Id of the dataset on the Hub; `None` for a folder.
        notes: What to know about the data, such as what was left out and why, a sentence each.
        division: The content of `split.csv`, if the data were divided here; see `division.py`.
    """

    train: datasets.Dataset
    evaluation: datasets.Dataset
    names: list[str]
    name: str
    split: str
    hub_id: str | None
    notes: tuple[str, ...] = ()
    division: str | None = None


def load_splits(
    data: str | os.PathLike | datasets.DatasetDict,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    label_pattern: str | None = None,
    label_map: str | os.PathLike | None = None,
    split: str | None = None,
    test_share: float | None = None,
    group_by: str | None = None,
    seed: int = 0,
    division: str | os.PathLike | None = None,
    training: bool = True,
) -> Splits:
    """
    Read the photographs to train on and those to evaluate on.

    Args:
        data: A folder with `train/<class>/*` and `test/<class>/*`, or with `<class>/*`; a table of labels, or a folder
            with one; the unpacked download of CUB-200-2011 (or the folder around it) or of Oxford-IIIT Pet; parquet
            files that hold photographs; a Hub id `"org/name"`; or splits that `datasets` has loaded.
        image_column, label_column, split_column, label_pattern: What the data do not say themselves; see `Layout`.
        label_map: CSV file with the columns `class` and `group`. Groups of classes, such as the genera of species, then
            take the place of the classes.
        split: Name of the split to evaluate on. Default: the first of `validation` and `test` that has any photographs.
        test_share: Share of the photographs to evaluate on, between 0 and 1; all photographs are then divided anew.
            Default: the data's own splits, or 0.2 if they have none to evaluate on.
        group_by: Which photographs belong together, such as those of an individual, and never stand on both sides; see
            `Layout`. Default: the column `group` of a table of labels, if there is one.
        seed: Random seed for dividing.
        division: A `split.csv` that tells how these data were divided before.
        training: Whether the data have to have training photographs; if not, `train` may be empty.

    Returns:
        The splits. The classes of folders and tables are in natural order; `ClassLabel` columns keep theirs.

    Raises:
        ValueError: If the data cannot be read, lack a split, have images without a label, fewer than two classes, or a
            class that is evaluated but not trained, or if an option does not fit the data.
    """
    if test_share is not None and not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: expected a share between 0 and 1, such as 0.2.")
    layout = Layout(image_column, label_column, split_column, label_pattern, group_by)
    loader = _Loader(data, layout, split and (split_name(split) or split), label_map, training)
    if division is not None and (sides := loader.recorded_sides(division)):
        return loader.divided(sides, read_text(division))
    if training and split is None and (test_share is not None or loader.evaluated is None):
        return loader.divided_anew(test_share, seed)
    return loader.as_they_are()


class _Loader:
    """Data that were read, on the way to `Splits`. Arguments as for `load_splits`."""

    def __init__(
        self,
        data: str | os.PathLike | datasets.DatasetDict,
        layout: Layout,
        split: str | None,
        label_map: str | os.PathLike | None,
        training: bool,
    ):
        self.source, self.hub_id = read_source(data, layout)
        self.data = "the DatasetDict" if isinstance(data, datasets.DatasetDict) else os.fspath(data)
        self._groups_of: dict[str, list[str | None]] = {}
        self.group_by, self.split, self.label_map, self.training = layout.group_by, split, label_map, training
        self.notes = list(self.source.notes)
        self.found = {name: photographs for name, photographs in self.source.splits.items() if len(photographs)}
        if len(self.found) == 1 and split is None and not {"train", *EVALUATION_SPLITS} & set(self.found):
            self.found = {UNDIVIDED: next(iter(self.found.values()))}  # whatever a table calls its only split

    @property
    def evaluated(self) -> str | None:
        """The split to evaluate on, if there is one. Without splits and without training, all photographs are."""
        wanted: tuple[str, ...] = EVALUATION_SPLITS if self.split is None else (self.split,)
        wanted += (UNDIVIDED,) if not self.training else ()
        return next((name for name in wanted if name in self.found), None)

    # --- The three ways to splits

    def as_they_are(self) -> Splits:
        """The data's own splits."""
        split = self.evaluated
        if split is None or (self.training and "train" not in self.found):
            missing = "train/" if split else "test/ or validation/" if self.split is None else f"{self.split}/"
            raise ValueError(f"{self.data} has no images in {missing}; found {', '.join(self.found) or 'none'}.")
        names, photographs = self._labelled([name for name in ("train", split) if name in self.found])
        evaluation = photographs[split]
        train = photographs["train"] if "train" in photographs else evaluation.select([])
        if split != "train" and "train" in self.found:
            self._check_groups(split)
        return self._splits(train, evaluation, names, split)

    def divided_anew(self, test_share: float | None, seed: int) -> Splits:
        """All photographs, or the training ones, divided at random into some to train on and some to test on."""
        used = [name for name in ("train", UNDIVIDED) if name in self.found] if test_share is None else [*self.found]
        if not used:
            raise ValueError(f"{self.data} has no images in train/; found {', '.join(self.found) or 'none'}.")
        labels = [label for of_split in _classes(self.data, self._only(used))[1].values() for label in of_split]
        groups = [group for name in used for group in self._groups(name)]
        keys = [key for of_split in content_keys([self.found[name] for name in used]) for key in of_split]
        is_test = divide(labels, joined(groups, keys), test_share or TEST_SHARE, seed)
        if not any(is_test):
            unit = "photograph" if all(group is None for group in groups) else "group"
            raise ValueError(
                f"{self.data} has no images in test/ or validation/, and none of {', '.join(used)} can be held out: "
                f"every class has only one {unit}."
            )
        images = [image for name in used for image in _image_names(self.source, name, self.found[name])]
        sizes = [size for name in used for size in byte_sizes(self.found[name])]
        rows = iter(is_test)
        sides: Sides = {name: ["test" if next(rows) else "train" for _ in self.found[name]["label"]] for name in used}
        return self.divided(sides, record_division(images, labels, groups, sizes, is_test))

    def divided(self, sides: Sides, record: str) -> Splits:
        """The photographs on the given sides."""
        names, photographs = self._labelled([*sides])
        pool = [photographs[name] for name in sides]
        together = pool[0] if len(pool) == 1 else datasets.concatenate_datasets(pool)
        all_sides = [side for of_split in sides.values() for side in of_split]
        train, evaluation = (
            together.select([row for row, side in enumerate(all_sides) if side == wanted])
            for wanted in ("train", self.split or "test")
        )
        return self._splits(train, evaluation, names, self.split or "test", record)

    def recorded_sides(self, division: str | os.PathLike) -> Sides:
        """
        The side that a `split.csv` puts each photograph on, for the splits that it knows; None for photographs that are
        new. Nothing if it is about other data, or a split of the data's own is asked for.

        Raises:
            ValueError: If photographs to train on have changed since.
        """
        recorded = read_division(division)
        if self.split not in (None, "train", "test"):
            return {}
        sides: Sides = {}
        for name, photographs in self.found.items():
            images, sizes = _image_names(self.source, name, photographs), byte_sizes(photographs)
            keys = [(image, "" if size is None else str(size)) for image, size in zip(images, sizes, strict=True)]
            if any(key in recorded for key in keys):
                sides[name] = [recorded.get(key) for key in keys]
        same = sum(side is not None for of_split in sides.values() for side in of_split)
        new = sum(side is None for of_split in sides.values() for side in of_split)
        change = f"{counted(len(recorded) - same, 'photograph')} of {division} missing or changed, {new} new"
        if self.training and (new or same < len(recorded)):
            raise ValueError(f"{self.data}: {change}; restore them, or start a new run.")
        if sides and (new or same < len(recorded)):
            self.notes.append(f"{self.data}: {change}; those are left out.")
        return sides

    # --- Their parts

    def _only(self, names: Sequence[str]) -> dict[str, datasets.Dataset]:
        return {name: self.found[name] for name in names}

    def _labelled(self, used: Sequence[str]) -> tuple[list[str], dict[str, datasets.Dataset]]:
        """The class names, in order, and the photographs of each split with their labels."""
        names, labels = _classes(self.data, self._only(used))
        if self.label_map is not None:
            groups = read_label_map(self.label_map, names)
            names = in_natural_order(set(groups.values()))
            labels = {name: [groups[label] for label in of_split] for name, of_split in labels.items()}
        numbers = {name: number for number, name in enumerate(names)}
        has_groups = any(group is not None for name in used for group in self._groups(name))
        photographs = {
            name: with_labels(
                self.found[name],
                [numbers[label] for label in of_split],
                names,
                self._groups(name) if has_groups else None,
            )
            for name, of_split in labels.items()
        }
        return names, photographs

    def _groups(self, name: str) -> list[str | None]:
        """The group of each photograph of a split; None for those without one."""
        if name not in self._groups_of:
            self._groups_of[name] = self._find_groups(name)
        return self._groups_of[name]

    def _find_groups(self, name: str) -> list[str | None]:
        photographs = self.found[name]
        if "group" in photographs.column_names:
            return [None if group is None else str(group) for group in photographs["group"][:]]
        if self.group_by is None:
            return [None] * len(photographs)
        pattern, paths = Pattern(self.group_by, "--group-by"), image_paths(photographs)
        groups = [None if path is None else pattern.find(path, self.source.folder or "") for path in paths]
        unmatched = [path for path, group in zip(paths, groups, strict=True) if group is None]
        if len(unmatched) == len(paths):
            raise ValueError(f"{pattern.described} matches no file name in {self.data}, such as {unmatched[0]}.")
        if unmatched:
            self.notes.append(
                f"{self.data}: {counted(len(unmatched), 'file name')} without a match of {pattern.described}, such as "
                f"{unmatched[0]}; each of these photographs is a group of its own."
            )
        return groups

    def _check_groups(self, split: str) -> None:
        """Refuse groups on both sides if groups are asked for; otherwise note them."""
        if self.group_by is None and "group" not in self.found["train"].column_names:
            return
        both = {*self._groups("train")} & {*self._groups(split)} - {None}
        if not both:
            return
        message = f"{self.data}: groups in both train and {split}: {listed(in_natural_order(filter(None, both)), 3)}"
        if self.group_by is not None:
            raise ValueError(f"{message}; move them, or pass --test-share to divide all photographs anew.")
        self.notes.append(f"{message}.")

    def _splits(
        self,
        train: datasets.Dataset,
        evaluation: datasets.Dataset,
        names: list[str],
        split: str,
        record: str | None = None,
    ) -> Splits:
        notes = tuple(as_text(note) for note in self.notes)  # not every name of a file can be printed
        for note in notes:
            logger.warning("%s", note)
        if self.training:
            _check_classes(self.data, names, train, evaluation, split)
        return Splits(train, evaluation, names, self.source.name, split, self.hub_id, notes, record)


def with_labels(
    split: datasets.Dataset,
    labels: Sequence[int],
    names: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
) -> datasets.Dataset:
    """
    A split with the columns `image` and `label`, and `group` if there are groups; and other labels.

    Args:
        split: A split with the columns `image` and `label`, and perhaps others.
        labels: The label of each photograph.
        names: Class names in the order of their labels. Default: the labels are plain numbers.
        groups: The group of each photograph, None for one without.
    """
    feature = datasets.Value("int64") if names is None else datasets.ClassLabel(names=list(names))
    # First the new column, then only the wanted ones: see `parquet.with_our_columns`
    split = split.rename_column("label", "label before").add_column("label", np.array(labels), feature=feature)
    if groups is None:
        return split.select_columns(["image", "label"])
    if "group" in split.column_names:
        split = split.rename_column("group", "group before")
    split = split.add_column("group", list(groups), feature=datasets.Value("string"))
    return split.select_columns(["image", "label", "group"])


def _image_names(source: Source, name: str, split: datasets.Dataset) -> list[str]:
    """What `split.csv` calls the photographs of a split."""
    if source.folder is None:
        return [f"{name}[{row}]" for row in range(len(split))]
    return [Path(os.path.relpath(path or "", source.folder)).as_posix() for path in image_paths(split)]


# --- Classes ----------------------------------------------------------------------------------------------------------


def _check_classes(
    data: str, names: list[str], train: datasets.Dataset, evaluation: datasets.Dataset, split: str
) -> None:
    """Refuse classes that cannot be trained; warn of classes that will be missing from the model or its evaluation."""
    trained, evaluated = ({names[label] for label in set(photographs["label"])} for photographs in (train, evaluation))
    if untrained := [name for name in names if name in evaluated - trained]:
        hint = did_you_mean(untrained[0], trained, ".") if len(untrained) == 1 else "."
        raise ValueError(f"{data}: no training images of {listed(untrained)}{hint}")
    if len(trained) < 2:
        only = next(iter(trained))
        raise ValueError(f"{data} has training images of one class only, '{only}'; expected two classes or more.")
    if absent := [name for name in names if name not in trained]:
        logger.warning("%s: no images of %s, so the model will not know them.", data, listed(absent))
    if unmeasured := [name for name in names if name in trained - evaluated]:
        logger.warning("%s: no %s images of %s, so their accuracy cannot be measured.", data, split, listed(unmeasured))
    alike = {name.casefold(): name for name in names}
    if twins := [f"{name} and {alike[name.casefold()]}" for name in names if alike[name.casefold()] != name]:
        logger.warning("%s: classes that differ only in capitals: %s.", data, listed(twins))


def _classes(data: str, splits: dict[str, datasets.Dataset]) -> tuple[list[str], dict[str, list[str]]]:
    """The class names, in order, and for each split the class of each image. Classes of different splits are the same
    if their names are, whatever their numbers."""
    labels: dict[str, list[str]] = {}
    features = {name: split.features["label"] for name, split in splits.items()}
    known = [feature.names for feature in features.values() if isinstance(feature, datasets.ClassLabel)]
    for name, split in splits.items():
        values, feature = split["label"][:], features[name]
        of_numbers = getattr(feature, "names", None)
        if of_numbers is None and known and isinstance(values[0], int):  # numbers beside a split that has their names
            of_numbers = known[0]
        for row, value in enumerate(values):
            if value is None or (of_numbers is not None and not 0 <= value < len(of_numbers)):
                raise ValueError(f"{data}: the image {name}[{row}] has no label; expected one for every image.")
        labels[name] = [str(value) if of_numbers is None else of_numbers[value] for value in values]
    others = in_natural_order({label for of_split in labels.values() for label in of_split})
    plain = plain_names(dict.fromkeys([name for names in known for name in names] + others), data)
    return [*plain.values()], {name: [plain[label] for label in of_split] for name, of_split in labels.items()}


def read_label_map(path: str | os.PathLike, names: list[str]) -> dict[str, str]:
    """Class -> group, from a CSV file with all classes and no others."""
    groups: dict[str, str] = {}
    rows = csv.DictReader(StringIO(read_text(path), newline=""))
    if not {"class", "group"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{path}: its first line is {','.join(rows.fieldnames or ())}; expected class,group.")
    for row in rows:
        name, group = (plain_name(row[column] or "") for column in ("class", "group"))
        if not name or not group:
            raise ValueError(f"{path}, line {rows.line_num}: expected a class and a group.")
        if groups.setdefault(name, group) != group:
            raise ValueError(f"{path}, line {rows.line_num}: '{name}' is in '{group}', and in '{groups[name]}' above.")
    unknown = [name for name in groups if name not in names]
    for name in names:
        if name not in groups:
            raise ValueError(f"{path}: no group for the class '{name}'{did_you_mean(name, unknown, '.')}")
    if unknown:
        raise ValueError(f"{path}: '{unknown[0]}' is not a class of the data{did_you_mean(unknown[0], names, '.')}")
    return groups
