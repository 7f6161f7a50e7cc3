"""Data whose parts are known: a mask for every part of a test image, and which parts tell classes apart.

Beside the test images of an image folder lie

    parts.json                                  names of the parts, and the look of each part in every class
    test_parts/<class>/<name>.png               one channel; a pixel's value is the part that it shows, 0 for none
    test_without/<part>/<class>/<name>.jpg      optional: the same scene drawn without that part
    test_swapped/<other class>/<class>/<name>.jpg   optional: the same scene with the parts that tell the class from
                                                the other one drawn as the other's

where <name>.jpg is the image's name in test/<class>/, whatever its suffix; other scenes may also be <name>.png.
`parts.json` holds

    {"parts": ["crown", ...],                   value 1 and up in the masks
     "surroundings": ["leaf", ...],             optional: those of them that are not part of the animal
     "classes": {"Amber_crowned_Finch": {"family": "Finch", "looks": {"crown": "amber cap", ...}}, ...}}

with "family" optional. Looks are any text: two classes differ in a part if theirs are not the same.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_atomically

PARTS_FILE = "parts.json"


@dataclass(frozen=True)
class PartTable:
    """
    Which parts there are, and how they look in every class.

    Args:
        names: Names of the parts: of value 1, 2, ... in the masks.
        looks: Class -> part -> how it looks there. A part that is not named looks the same in all classes.
        families: Class -> family, of all classes or of none.
        surroundings: Those of `names` that are not part of the animal, such as leaves that hide it.

    Raises:
        ValueError: If a look is given for a part that is not named, a surrounding is not named, or only some classes
            have a family.
    """

    names: tuple[str, ...]
    looks: Mapping[str, Mapping[str, str]]
    families: Mapping[str, str] = field(default_factory=dict)
    surroundings: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, looks in self.looks.items():
            if unknown := sorted(looks.keys() - set(self.names)):
                raise ValueError(f"{name} has a look for {unknown[0]!r}; expected one of {', '.join(self.names)}.")
        if unknown := sorted(self.surroundings - set(self.names)):
            raise ValueError(f"{unknown[0]!r} of the surroundings is no part; expected one of {', '.join(self.names)}.")
        if self.families and (missing := sorted(self.looks.keys() - self.families.keys())):
            raise ValueError(f"{missing[0]} has no family; expected one for every class, or for none.")

    def differing(self, a: str, b: str) -> frozenset[str]:
        """The parts that tell two classes apart."""
        return frozenset(part for part in self.names if self.looks[a].get(part) != self.looks[b].get(part))

    def look_alikes(self, name: str) -> list[str]:
        """The other classes of a class's family or, where there are no families, those that differ from it in the
        fewest parts."""
        others = [other for other in self.looks if other != name]
        if self.families:
            return [other for other in others if self.families[other] == self.families[name]]
        fewest = min((len(self.differing(name, other)) for other in others), default=0)
        return [other for other in others if len(self.differing(name, other)) == fewest]

    def distinguishing(self, name: str) -> frozenset[str]:
        """The parts that tell a class from at least one of its look-alikes."""
        return frozenset().union(*(self.differing(name, other) for other in self.look_alikes(name)))

    def marks(self, name: str) -> frozenset[str]:
        """The parts that tell a class from each of its look-alikes: they alone would do. May be empty."""
        differing = [self.differing(name, other) for other in self.look_alikes(name)]
        return frozenset.intersection(*differing) if differing else frozenset()

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "PartTable":
        """
        Read `parts.json` of a folder.

        Raises:
            ValueError: If there is none, or it is not as described above.
        """
        file = Path(folder) / PARTS_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            classes = content["classes"]
            return cls(
                names=tuple(content["parts"]),
                looks={name: entry["looks"] for name, entry in classes.items()},
                families={name: entry["family"] for name, entry in classes.items() if "family" in entry},
                surroundings=frozenset(content.get("surroundings", ())),
            )
        except OSError:
            raise ValueError(f"{folder} has no {PARTS_FILE}, which says what the values in the masks mean.") from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: expected 'parts' and, for each of 'classes', 'looks' ({error!r}).") from None

    def save(self, folder: str | os.PathLike) -> None:
        """Write `parts.json` to a folder."""
        classes = {
            name: ({"family": self.families[name]} if self.families else {}) | {"looks": dict(looks)}
            for name, looks in self.looks.items()
        }
        content = {"parts": list(self.names), "surroundings": sorted(self.surroundings), "classes": classes}
        write_atomically(Path(folder) / PARTS_FILE, json.dumps(content, indent=1))


def has_parts(data: str | os.PathLike) -> bool:
    """Whether data are a folder with `parts.json`."""
    return (Path(data) / PARTS_FILE).is_file()


class PartFolder:
    """
    The files of a folder laid out as above, found by the path of the test image that they belong to; `table` is what
    `parts.json` holds.

    Raises:
        ValueError: If there is no `parts.json`, or `test_without/` or `test_swapped/` hold folders of parts or classes
            that it does not know.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.table = PartTable.load(folder)
        self._without = self._versions("test_without", self.table.names)
        self._swapped = self._versions("test_swapped", self.table.looks)

    def _versions(self, kind: str, names: Iterable[str]) -> list[Path]:
        found = sorted(path for path in (self.folder / kind).glob("*") if path.is_dir())
        if unknown := [path for path in found if path.name not in names]:
            raise ValueError(f"{unknown[0]}: {PARTS_FILE} knows no {unknown[0].name!r}; expected one of its names.")
        return found

    def check(self, images: Iterable[Path]) -> None:
        """
        Whether everything is there that has to be.

        Raises:
            ValueError: If images are not in `test/`, of a class that `parts.json` does not know, or without a mask.
        """
        for image in images:
            split, name = image.parts[-3:-1]
            if split != "test":
                raise ValueError(f"{image}: not in {self.folder / 'test'}, whose images there are masks of.")
            if name not in self.table.looks:
                raise ValueError(f"{self.folder / PARTS_FILE} has no class {name!r}; expected all that test/ has.")
            if not self._mask_of(image).is_file():
                raise ValueError(f"{self._mask_of(image)} is missing; expected a mask for each test image.")

    def mask(self, image: Path, size: tuple[int, int]) -> np.ndarray:
        """
        The mask `(height, width)`, uint8, of an image of `size` (width, height), as Pillow gives it.

        Raises:
            ValueError: If it cannot be read, is of another size, or shows parts that `parts.json` does not name.
        """
        file = self._mask_of(image)
        mask = read_mask(file)
        if mask.shape[::-1] != size:
            given, expected = ("{} x {}".format(*pair) for pair in (mask.shape[::-1], size))
            raise ValueError(f"{file}: a mask of {given} pixels; expected {expected}, the size of its image.")
        if mask.max() > len(self.table.names):
            raise ValueError(f"{file}: shows part {mask.max()}, but {PARTS_FILE} names {len(self.table.names)}.")
        return mask

    def without(self, image: Path) -> dict[str, Path]:
        """Part -> the same scene without it, for each part that there is such a file for."""
        return self._scenes(self._without, image)

    def swapped(self, image: Path) -> dict[str, Path]:
        """Other class -> the same scene with its parts, for each class that there is such a file for."""
        return self._scenes(self._swapped, image)

    def _scenes(self, folders: list[Path], image: Path) -> dict[str, Path]:
        scenes = {}
        for folder in folders:
            place = folder / image.parent.name / image.name
            if file := next((file for file in (place, place.with_suffix(".png")) if file.is_file()), None):
                scenes[folder.name] = file
        return scenes

    def _mask_of(self, image: Path) -> Path:
        return self.folder / "test_parts" / image.parent.name / f"{image.stem}.png"


def read_mask(file: str | os.PathLike) -> np.ndarray:
    """
    The values `(height, width)`, uint8, of a mask: a picture of one channel, or with a palette.

    Raises:
        ValueError: If it is no such picture.
    """
    try:
        with Image.open(file) as mask:
            if mask.mode in ("P", "L", "1"):
                return np.array(mask, dtype=np.uint8)
            raise ValueError(f"{file}: a mask of mode {mask.mode}; expected one channel, a value for each part.")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read as a mask ({error}).") from None
