"""Known traits of CUB-200-2011, from files that every download has: where the parts of each bird are, and in which
parts two species differ.

    images.txt, classes.txt, bounding_boxes.txt                 as in the root of the download
    parts/parts.txt, parts/part_locs.txt                        names of the 15 parts; where they are in each image
    attributes/class_attribute_labels_continuous.txt            for each class, in per cent, how many annotators named
                                                                each attribute
    attributes/attributes.txt (or beside the download's folder) names of the attributes, such as has_crown_color::blue
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..messages import counted
from .downloads import read_rows

LOCATIONS, BOXES = "parts/part_locs.txt", "bounding_boxes.txt"
# What an attribute is about, by the middle of its name (has_<what>_<quality>::<value>) -> the parts with keypoints
PARTS_OF = {
    "bill": ("beak",),
    "wing": ("left wing", "right wing"),
    "upperparts": ("back",),
    "underparts": ("belly", "breast"),
    "breast": ("breast",),
    "back": ("back",),
    "tail": ("tail",),
    "upper_tail": ("tail",),
    "under_tail": ("tail",),
    "head": ("crown", "forehead", "nape"),
    "throat": ("throat",),
    "eye": ("left eye", "right eye"),
    "forehead": ("forehead",),
    "nape": ("nape",),
    "belly": ("belly",),
    "leg": ("left leg", "right leg"),
    "crown": ("crown",),
}
DIFFERENCE = 50.0  # percentage points of annotators


@dataclass(frozen=True)
class Keypoints:
    """
    Where a bird and its parts are, in pixels of the original image.

    Args:
        box: Left, top, width and height of the bounding box.
        points: Part -> x and y, for the parts that can be seen.
    """

    box: tuple[float, float, float, float]
    points: dict[str, tuple[float, float]]


class CubKeypoints:
    """
    The parts of the birds of CUB-200-2011, and in which of them the species differ.

    Args:
        folder: The unpacked download, or the folder around it.

    Raises:
        ValueError: If a file is missing, or does not have the columns or numbers that it should.
    """

    def __init__(self, folder: str | os.PathLike):
        found = cub_folder(folder)
        if found is None:
            raise ValueError(f"{folder} has no {LOCATIONS}; expected the unpacked download of CUB-200-2011.")
        self.folder = found
        names = dict(self._rows("parts/parts.txt", 2))
        images = dict(self._rows("images.txt", 2))
        points: dict[str, dict[str, tuple[float, float]]] = {number: {} for number in images}
        for image, part, x, y, visible in self._rows(LOCATIONS, 5):
            if image not in images or part not in names:
                raise ValueError(f"{self.folder / LOCATIONS}: there is no image {image} or no part {part}.")
            if visible == "1":
                points[image][names[part]] = self._numbers(LOCATIONS, [x, y])  # type: ignore[assignment]
        boxes = {number: self._numbers(BOXES, box) for number, *box in self._rows(BOXES, 5)}
        self._keypoints = {
            _name(path): Keypoints(boxes[number], points[number])  # type: ignore[arg-type]
            for number, path in images.items()
            if number in boxes
        }
        self._looks = self._read_attributes()

    def of(self, image: str | os.PathLike) -> Keypoints | None:
        """The keypoints of an image, by its path; None if the download has none of it."""
        return self._keypoints.get(_name(image))

    def differing(self, a: str, b: str) -> frozenset[str]:
        """
        The parts in which two classes differ: those for which an attribute was named by at least 50 percentage points
        more annotators for one than for the other. Empty if one of them is no class of CUB.

        Args:
            a, b: Names of the classes, without their numbers.
        """
        if a not in self._looks or b not in self._looks:
            return frozenset()
        apart = np.abs(self._looks[a] - self._looks[b]) >= DIFFERENCE
        return frozenset(part for index in apart.nonzero()[0] for part in self._parts[index])

    def _read_attributes(self) -> dict[str, np.ndarray]:
        """Class -> per cent of annotators for each attribute. Sets `_parts`, which parts each attribute is about."""
        inside, beside = "attributes/attributes.txt", "../attributes.txt"
        is_beside = (self.folder / beside).is_file() and not (self.folder / inside).is_file()
        names = [name for _, name in self._rows(beside if is_beside else inside, 2)]
        self._parts = [_parts_of(name) for name in names]
        classes = [name.split(".", 1)[-1] for _, name in self._rows("classes.txt", 2)]
        file = "attributes/class_attribute_labels_continuous.txt"
        table = [self._numbers(file, row) for row in self._rows(file, len(names), spaces_in_last=False)]
        if len(table) != len(classes):
            raise ValueError(
                f"{self.folder / file}: {counted(len(table), 'row')}; expected {len(classes)}, one for each class."
            )
        return dict(zip(classes, map(np.array, table), strict=True))

    def _rows(self, file: str, count: int, spaces_in_last: bool = True) -> Iterator[list[str]]:
        return read_rows(self.folder / file, count, spaces_in_last)

    def _numbers(self, file: str, row: list[str]) -> tuple[float, ...]:
        try:
            return tuple(map(float, row))
        except ValueError as error:
            raise ValueError(f"{self.folder / file}: {error}.") from None


def cub_folder(data: str | os.PathLike) -> Path | None:
    """The folder of CUB-200-2011 with keypoints in, or itself, `data`; None if there is none."""
    return next((path for path in (Path(data), Path(data) / "CUB_200_2011") if (path / LOCATIONS).is_file()), None)


def _name(path: str | os.PathLike) -> str:
    return "/".join(Path(path).parts[-2:])


def _parts_of(attribute: str) -> tuple[str, ...]:
    """The parts that an attribute such as `has_upper_tail_color::grey` is about; none for size, shape and the like."""
    what = attribute.split("::")[0].removeprefix("has_").rsplit("_", 1)[0]
    return PARTS_OF.get(what, ())
