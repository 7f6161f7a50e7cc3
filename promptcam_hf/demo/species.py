"""What the drawn species look like: which colour and shape each part of the bird has.

Species come in *families*. Within a family, the common species has no mark, and each of its look-alikes has one: a
crown, a wing bar or the ring around the eye in a colour of its own. So two look-alikes differ in one or two parts, and
a classifier has to find these. Species of different families differ in three parts or more. All names are invented.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..data.parts import PartTable

PARTS: tuple[str, ...] = ("crown", "face", "eye_ring", "eye", "beak", "throat", "breast", "belly", "back", "wing")
PARTS += ("wing_bar", "tail", "tail_tip", "legs")

_COLOURS = """
amber:f0a92b ash:a3abb0 azure:3f8fd6 charcoal:343840 cocoa:8b6748 coral:f2765a cream:f4e6c6 honey:dba45a horn:d9a066
indigo:3b4a9c ivory:f8f2e2 jade:3fa27c lemon:f6d848 lilac:b39ad6 olive:868f45 plum:7a4573 rose:ee93a8 russet:b5562f
sand:dcc199 scarlet:d83a30 sky:a9d5ee slate:5d7080 tan:b98a5e teal:2b8791 umber:5f4636
"""
COLOURS = {name: tuple(bytes.fromhex(code)) for name, code in (pair.split(":") for pair in _COLOURS.split())}  # RGB

# The shapes of the parts that have more than one
SHAPES = {
    "beak": ("cone", "thin", "dagger", "spear", "hooked"),
    "tail": ("square", "notched", "fork", "short", "long", "streamer"),
    "crown": ("cap", "crest"),
    "face": ("cheek", "mask"),
    "breast": ("", "spotted"),
}
# A species without one of these marks has it in the colour of the part that it lies on
LIES_ON = {"wing_bar": "wing", "tail_tip": "tail", "eye_ring": "face"}


class _Family(NamedTuple):
    """Each look is written `part=colour`, `part=/shape` or `part=colour/shape`. `marks` has one for each look-alike."""

    name: str
    build: str
    plumage: str
    marks: str


_FAMILIES = (
    _Family(
        "Finch",
        "beak=horn/cone legs=umber tail=/notched face=/cheek crown=/cap",
        "crown=cocoa face=sand throat=cream breast=cream belly=ivory back=tan wing=umber tail=umber",
        "crown=amber crown=scarlet wing_bar=ivory throat=charcoal breast=rose crown=/crest tail_tip=ivory",
    ),
    _Family(
        "Warbler",
        "beak=slate/thin legs=slate tail=/square face=/mask crown=/cap",
        "crown=olive face=olive throat=lemon breast=lemon belly=cream back=olive wing=slate tail=slate",
        "eye_ring=ivory crown=charcoal throat=russet wing_bar=ivory back=teal breast=coral crown=azure",
    ),
    _Family(
        "Jay",
        "beak=charcoal/dagger legs=charcoal tail=/long face=/cheek crown=/crest",
        "crown=azure face=ivory throat=ivory breast=ash belly=ivory back=azure wing=indigo tail=indigo",
        "tail_tip=ivory throat=charcoal wing_bar=sky crown=charcoal crown=plum breast=honey face=amber",
    ),
    _Family(
        "Thrush",
        "beak=amber/thin legs=cocoa tail=/square face=/cheek crown=/cap breast=/spotted",
        "crown=russet face=tan throat=cream breast=cream belly=ivory back=russet wing=umber tail=russet",
        "breast=amber eye_ring=ivory crown=slate tail_tip=ivory wing_bar=amber beak=coral throat=coral",
    ),
    _Family(
        "Kingfisher",
        "beak=charcoal/spear legs=scarlet tail=/short face=/mask crown=/crest",
        "crown=teal face=charcoal throat=ivory breast=amber belly=honey back=teal wing=teal tail=indigo",
        "beak=scarlet wing_bar=sky throat=lemon breast=ivory crown=russet eye_ring=lemon back=sky",
    ),
    _Family(
        "Wagtail",
        "beak=charcoal/thin legs=charcoal tail=/streamer face=/cheek crown=/cap",
        "crown=ash face=ivory throat=ivory breast=ivory belly=ivory back=ash wing=slate tail=charcoal",
        "throat=charcoal breast=lemon crown=charcoal wing_bar=ivory legs=amber face=lemon belly=rose",
    ),
    _Family(
        "Tanager",
        "beak=ash/hooked legs=umber tail=/fork face=/mask crown=/cap",
        "crown=scarlet face=scarlet throat=scarlet breast=scarlet belly=coral back=scarlet wing=charcoal tail=charcoal",
        "wing_bar=ivory crown=amber throat=lemon beak=lemon belly=ivory breast=plum tail_tip=amber",
    ),
    _Family(
        "Tit",
        "beak=charcoal/cone legs=slate tail=/square face=/cheek crown=/crest",
        "crown=slate face=ivory throat=sky breast=lilac belly=ivory back=slate wing=indigo tail=indigo",
        "crown=lemon throat=charcoal wing_bar=ivory breast=rose face=rose crown=jade tail_tip=ivory",
    ),
)
_HABITATS = ("", "Mountain_", "River_", "Island_", "Forest_", "Desert_", "Marsh_", "Coast_")
_PER_FAMILY = 8  # one common species and seven look-alikes
_AT_ONCE = 4  # species of a family that stand together in the list of `make_species`
_NAMED_FOR = {"eye_ring": "ringed", "face": "faced", "beak": "billed", "tail_tip": "tipped", "wing_bar": "barred"}
_NAMED_FOR |= {"crown": "crowned", "belly": "bellied", "legs": "legged", "crest": "crested", "cap": "capped"}


@dataclass(frozen=True)
class Species:
    """
    A species of bird.

    Args:
        name: Such as "Amber_crowned_Finch".
        family: Such as "Finch".
        colours: The colour of each of `PARTS`, by its name in `COLOURS`.
        shapes: The shape of each of `PARTS`, one of `SHAPES`; "" for parts that have a single shape.
    """

    name: str
    family: str
    colours: dict[str, str]
    shapes: dict[str, str]


def make_species(num_classes: int) -> list[Species]:
    """
    The first species of a fixed list: four look-alikes of one family, four of the next, and so on.

    Args:
        num_classes: Number of species, 1 to 512.

    Raises:
        ValueError: If the number is out of range.
    """
    families = [list(_members(index, habitat)) for habitat in range(len(_HABITATS)) for index in range(len(_FAMILIES))]
    most = len(families) * _PER_FAMILY
    if not 1 <= num_classes <= most:
        raise ValueError(f"num_classes={num_classes}: expected 1 to {most}, the number of known species.")
    starts = range(0, _PER_FAMILY, _AT_ONCE)
    return [kind for i in starts for family in families for kind in family[i : i + _AT_ONCE]][:num_classes]


def _members(index: int, habitat: int) -> Iterator[Species]:
    """The species of a family. In each further habitat, it has the plumage and the marks of another family."""
    dressed_as = _FAMILIES[(index + habitat) % len(_FAMILIES)]
    family = _HABITATS[habitat] + _FAMILIES[index].name
    colours, shapes = {"eye": "charcoal"}, dict.fromkeys(PARTS, "")
    for part, colour, shape in _looks(f"{_FAMILIES[index].build} {dressed_as.plumage}"):
        colours |= {part: colour} if colour else {}
        shapes |= {part: shape} if shape else {}
    colours |= {part: colours[below] for part, below in LIES_ON.items()}
    yield Species(f"Common_{family}", family, colours, shapes)
    for part, colour, shape in _looks(dressed_as.marks):
        if shape and shape == shapes[part]:  # where the whole family has a crest, the mark is a cap
            shape = "cap"
        title = f"{colour}_{_NAMED_FOR.get(part, part + 'ed')}" if colour else _NAMED_FOR[shape]
        own_colours, own_shapes = {part: colour or colours[part]}, {part: shape or shapes[part]}
        yield Species(f"{title.capitalize()}_{family}", family, colours | own_colours, shapes | own_shapes)


def _looks(text: str) -> Iterator[tuple[str, str, str]]:
    """Part, colour and shape of each look in a line of `_FAMILIES`; "" for a colour or shape that is not given."""
    for look in text.split():
        part, _, colour_and_shape = look.partition("=")
        colour, _, shape = colour_and_shape.partition("/")
        yield part, colour, shape


def random_species(seed: int) -> Species:
    """A random species in a family of its own, for pre-training. None of those of `make_species` looks like it."""
    rng = np.random.default_rng(seed)
    colours = {part: str(rng.choice(list(COLOURS))) for part in PARTS} | {"eye": "charcoal"}
    # As in nature, neighbouring parts often share a colour, and marks are often missing
    for part, neighbour in (("face", "crown"), ("throat", "breast"), ("belly", "breast"), ("wing", "back")):
        colours[part] = colours[neighbour] if rng.random() < 0.35 else colours[part]
    for part, below in LIES_ON.items():
        colours[part] = colours[below] if rng.random() < 0.5 else colours[part]
    shapes = dict.fromkeys(PARTS, "") | {part: str(rng.choice(list(names))) for part, names in SHAPES.items()}
    return Species(f"Bird_{seed}", f"Family_{seed}", colours, shapes)


def which_parts_differ(a: Species, b: Species) -> set[str]:
    """The parts that have another colour or shape in the other species."""
    return {part for part in PARTS if a.colours[part] != b.colours[part] or a.shapes[part] != b.shapes[part]}


def swapped(species: Species, other: Species, parts: Collection[str]) -> Species:
    """The species with some of its parts replaced by those of another species."""
    colours, shapes = ({part: getattr(other, look)[part] for part in parts} for look in ("colours", "shapes"))
    return replace(species, colours=species.colours | colours, shapes=species.shapes | shapes)


def recoloured(species: Species, part: str, colour: str) -> Species:
    """The species with one part in another of `COLOURS`."""
    return replace(species, colours=species.colours | {part: colour})


def part_table(species: list[Species]) -> PartTable:
    """The parts of these species, and how each part looks in each of them."""
    looks = {
        kind.name: {part: f"{kind.colours[part]} {kind.shapes[part]}".strip() for part in PARTS} for kind in species
    }
    return PartTable(PARTS, looks, families={kind.name: kind.family for kind in species})
