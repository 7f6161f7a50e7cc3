"""Data whose parts are known: a mask for every part of a test image, and which parts tell classes apart.

Beside the test images of an image folder lie

    parts.json                                  names of the parts, and the look of each part in every class
    test_parts/<class>/<name>.png               one channel; a pixel's value is the part that it shows, 0 for none
    test_without/<part>/<class>/<name>.png      optional: the same scene drawn without that part
    test_swapped/<other class>/<class>/<name>.png   optional: the same scene with the parts that tell the class from
                                                the other one drawn as the other's

where <name> is that of the image in test/<class>/, whatever its suffix. `parts.json` holds

    {"parts": ["crown", ...],                   value 1 and up in the masks
     "surroundings": ["leaf", ...],             optional: those of them that are not part of the animal
     "classes": {"Amber_crowned_Finch": {"family": "Finch", "looks": {"crown": "amber cap", ...}}, ...}}

with "family" optional. Looks are any text: two classes differ in a part if theirs are not the same.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .files import write_whole

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
        ValueError: If a look is given for a part that is not named, or only some classes have a family.
    """

    names: tuple[str, ...]
    looks: Mapping[str, Mapping[str, str]]
    families: Mapping[str, str] = field(default_factory=dict)
    surroundings: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, looks in self.looks.items():
            if unknown := sorted(looks.keys() - set(self.names)):
                raise ValueError(f"{name} has a look for {unknown[0]!r}; expected one of {', '.join(self.names)}.")
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
        write_whole(Path(folder) / PARTS_FILE, json.dumps(content, indent=1))


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
