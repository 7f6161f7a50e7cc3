"""Masks of body parts: which part each pixel of a test image shows, and in which parts the classes differ.

They are kept in an image folder, beside its test images:

    parts.json                                      the names of the parts, and how each looks in each class
    test_parts/<class>/<name>.png                   one channel; the value of a pixel is its part, 0 is none
    test_without/<part>/<class>/<name>.jpg          optional: the same scene without that part
    test_swapped/<other class>/<class>/<name>.jpg   optional: the same scene, where the parts in which the two classes
                                                    differ look as in the other class

<name>.jpg is the name of the image in test/<class>/, with its suffix; the images in test_without/ and test_swapped/ may
also be <name>.png. `parts.json` holds

    {"parts": ["crown", ...],          the parts of value 1, 2, ... in the masks
     "surroundings": ["leaf", ...],    optional: those of them that do not belong to the animal
     "classes": {"Amber_crowned_Finch": {"family": "Finch", "looks": {"crown": "amber cap", ...}}, ...}}

"family" is optional. A look is any text: two classes differ in a part if their texts for it differ.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_atomically
from ..messages import did_you_mean

PARTS_FILE = "parts.json"
MASKS, WITHOUT, SWAPPED = "test_parts", "test_without", "test_swapped"


@dataclass(frozen=True)
class PartTable:
    """
    The body parts, and how they look in each class.

    Args:
        names: Names of the parts of value 1, 2, ... in the masks.
        looks: Class -> part -> its look. A part without a look is the same in all classes that give none.
        families: Class -> family, for all classes or for none.
        surroundings: Those of `names` that do not belong to the animal, such as leaves that hide it.

    Raises:
        ValueError: If looks or surroundings contain a part that is not in `names`, or if only some classes have a
            family.
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
            raise ValueError(f"{unknown[0]!r} in surroundings is not a part; expected one of {', '.join(self.names)}.")
        if self.families and (missing := sorted(self.looks.keys() - self.families.keys())):
            raise ValueError(f"{missing[0]} has no family; expected one for each class, or none at all.")

    def differing(self, a: str, b: str) -> frozenset[str]:
        """The parts in which two classes differ."""
        return frozenset(part for part in self.names if self.looks[a].get(part) != self.looks[b].get(part))

    def look_alikes(self, name: str) -> list[str]:
        """The other classes in the family of a class; without families, those that differ from it in the fewest
        parts."""
        others = [other for other in self.looks if other != name]
        if self.families:
            return [other for other in others if self.families[other] == self.families[name]]
        fewest = min((len(self.differing(name, other)) for other in others), default=0)
        return [other for other in others if len(self.differing(name, other)) == fewest]

    def distinguishing(self, name: str) -> frozenset[str]:
        """The parts in which a class differs from at least one of its look-alikes."""
        return frozenset().union(*(self.differing(name, other) for other in self.look_alikes(name)))

    def marks(self, name: str) -> frozenset[str]:
        """The parts in which a class differs from every one of its look-alikes: each of them alone identifies it. May
        be empty."""
        differing = [self.differing(name, other) for other in self.look_alikes(name)]
        return frozenset.intersection(*differing) if differing else frozenset()

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "PartTable":
        """
        Read the `parts.json` of a folder.

        Raises:
            ValueError: If there is none, or it does not have the format above.
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
            raise ValueError(
                f"{folder} has no {PARTS_FILE}; expected one with the meaning of the values in the masks."
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: expected 'parts', and 'looks' for each of the 'classes' ({error!r}).") from None

    def save(self, folder: str | os.PathLike) -> None:
        """
        Write `parts.json` to a folder, which has to exist.

        Raises:
            OSError: If it cannot be written; a former one stays.
        """
        classes = {
            name: ({"family": self.families[name]} if self.families else {}) | {"looks": dict(looks)}
            for name, looks in self.looks.items()
        }
        content = {"parts": list(self.names), "surroundings": sorted(self.surroundings), "classes": classes}
        write_atomically(Path(folder) / PARTS_FILE, json.dumps(content, indent=1))


def has_parts(data: str | os.PathLike) -> bool:
    """Whether data (a folder or a Hub id) are a folder with `parts.json`."""
    return (Path(data) / PARTS_FILE).is_file()


class PartFolder:
    """
    A folder with the layout above: finds the files that belong to a test image. `table` is the content of `parts.json`.

    Args:
        folder: The image folder.

    Raises:
        ValueError: If there is no valid `parts.json`, or `test_without/` or `test_swapped/` have folders of parts or
            classes that it does not list.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.table = PartTable.load(folder)
        self._without = self._versions(WITHOUT, self.table.names)
        self._swapped = self._versions(SWAPPED, self.table.looks)

    def _versions(self, kind: str, names: Iterable[str]) -> list[Path]:
        """The folders in `test_without/` or `test_swapped/`, each of which has to be called by one of these names."""
        found = sorted(path for path in (self.folder / kind).glob("*") if path.is_dir())
        if unknown := [path for path in found if path.name not in names]:
            raise ValueError(
                f"{unknown[0]}: {unknown[0].name!r} is not in {PARTS_FILE}{did_you_mean(unknown[0].name, names, '.')}"
            )
        return found

    def check(self, images: Iterable[Path]) -> None:
        """
        Check that each of these images has a mask.

        Args:
            images: Paths of test images.

        Raises:
            ValueError: If an image is not in `test/`, has no mask, or is of a class that `parts.json` does not list.
        """
        for image in images:
            split, name = image.parts[-3:-1]
            if split != "test":
                raise ValueError(
                    f"{image} is not in {self.folder / 'test'}; expected one from there, as only those have masks."
                )
            if name not in self.table.looks:
                raise ValueError(f"{self.folder / PARTS_FILE} has no class {name!r}; expected all classes of test/.")
            if not self._mask_of(image).is_file():
                raise ValueError(f"{self._mask_of(image)} is missing; expected a mask for each test image.")

    def mask(self, image: Path, size: tuple[int, int]) -> np.ndarray:
        """
        Read the mask of an image.

        Args:
            image: Path of a test image.
            size: Its width and height in pixels, as in `PIL.Image.Image.size`.

        Returns:
            The mask `(height, width)`, uint8: 0 or 1 + the index of a part in `table.names`.

        Raises:
            ValueError: If the mask cannot be read, has another size, or has values without a name in `parts.json`.
        """
        file = self._mask_of(image)
        mask = read_mask(file)
        if mask.shape[::-1] != size:
            given, expected = ("{} x {}".format(*pair) for pair in (mask.shape[::-1], size))
            raise ValueError(f"{file}: a mask of {given} pixels; expected {expected}, the size of its image.")
        if mask.max() > (last := len(self.table.names)):
            raise ValueError(
                f"{file}: the mask has the value {mask.max()}; expected at most {last}, the parts in {PARTS_FILE}."
            )
        return mask

    def without(self, image: Path) -> dict[str, Path]:
        """Part -> file with the same scene without that part, as far as there are such files."""
        return self._scenes(self._without, image)

    def swapped(self, image: Path) -> dict[str, Path]:
        """Other class -> file with the same scene with the parts of that class, as far as there are such files."""
        return self._scenes(self._swapped, image)

    def _scenes(self, folders: list[Path], image: Path) -> dict[str, Path]:
        scenes = {}
        for folder in folders:
            place = folder / image.parent.name / image.name
            if file := next((file for file in (place, place.with_suffix(".png")) if file.is_file()), None):
                scenes[folder.name] = file
        return scenes

    def _mask_of(self, image: Path) -> Path:
        return self.folder / MASKS / image.parent.name / f"{image.stem}.png"


def read_mask(file: str | os.PathLike) -> np.ndarray:
    """
    Read a mask: an image with one channel, or with a palette.

    Args:
        file: Path of the mask.

    Returns:
        Its values `(height, width)`, uint8.

    Raises:
        ValueError: If it cannot be read, or has several channels.
    """
    try:
        with Image.open(file) as mask:
            if mask.mode in ("P", "L", "1"):
                return np.array(mask, dtype=np.uint8)
            raise ValueError(f"{file}: a mask of mode {mask.mode}; expected one channel, with a value for each part.")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read as a mask ({error}).") from None
