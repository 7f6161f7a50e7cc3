"""Synthetic birds: look-alike species whose traits are known, for trying out and measuring interpretable classifiers.

Every bird is drawn from scratch (Pillow and numpy, no image files). A *species* is a recipe that says which colour
and shape each part of the bird has. Species come in *families*: inside a family two species differ in one or two
parts only (a crown, a wing bar, the ring around the eye), so a classifier has to find that very part; species of
different families differ in many. The drawing comes with an exact mask of every part, so you can check where a model
looked, and a scene can be drawn again with one part removed, recoloured, or as another species has it (the
interventions of FunnyBirds; Hesse et al., ICCV 2023). Species names are invented.

    python -m promptcam_hf.demo.drawing birds --classes 8 --train 60 --test 10 --size 224 --seed 0
"""

import argparse
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from ..data.parts import PartTable

if TYPE_CHECKING:
    import datasets

PARTS: tuple[str, ...] = ("crown", "face", "eye_ring", "eye", "beak", "throat", "breast", "belly", "back", "wing")
PARTS += ("wing_bar", "tail", "tail_tip", "legs")
SCENERY = ("bark", "leaf", "old_leaf")  # painted like parts, but not part of the bird
MATERIALS = PARTS + SCENERY
BASE, DARK, LIGHT, INK = range(4)  # the four tones of a material
SUPERSAMPLING = 3  # drawn this many times larger, then averaged, for smooth edges; odd, so that pixels have a centre

_COLOURS = """
amber:f0a92b ash:a3abb0 azure:3f8fd6 charcoal:343840 cocoa:8b6748 coral:f2765a cream:f4e6c6 honey:dba45a horn:d9a066
indigo:3b4a9c ivory:f8f2e2 jade:3fa27c lemon:f6d848 lilac:b39ad6 olive:868f45 plum:7a4573 rose:ee93a8 russet:b5562f
sand:dcc199 scarlet:d83a30 sky:a9d5ee slate:5d7080 tan:b98a5e teal:2b8791 umber:5f4636
"""
COLOURS = {name: tuple(bytes.fromhex(code)) for name, code in (pair.split(":") for pair in _COLOURS.split())}  # RGB

# Four lines for each family: its name, its build, its plumage, and its marks: a common species has none, each of its
# relatives has one, which tells it from all others. A look is "part=colour", "part=/shape" or "part=colour/shape".
FIELD_GUIDE = """
Finch
beak=horn/cone legs=umber tail=/notched face=/cheek crown=/cap
crown=cocoa face=sand throat=cream breast=cream belly=ivory back=tan wing=umber tail=umber
crown=amber crown=scarlet wing_bar=ivory throat=charcoal breast=rose crown=/crest tail_tip=ivory
Warbler
beak=slate/thin legs=slate tail=/square face=/mask crown=/cap
crown=olive face=olive throat=lemon breast=lemon belly=cream back=olive wing=slate tail=slate
eye_ring=ivory crown=charcoal throat=russet wing_bar=ivory back=teal breast=coral crown=azure
Jay
beak=charcoal/dagger legs=charcoal tail=/long face=/cheek crown=/crest
crown=azure face=ivory throat=ivory breast=ash belly=ivory back=azure wing=indigo tail=indigo
tail_tip=ivory throat=charcoal wing_bar=sky crown=charcoal crown=plum breast=honey face=amber
Thrush
beak=amber/thin legs=cocoa tail=/square face=/cheek crown=/cap breast=/spotted
crown=russet face=tan throat=cream breast=cream belly=ivory back=russet wing=umber tail=russet
breast=amber eye_ring=ivory crown=slate tail_tip=ivory wing_bar=amber beak=coral throat=coral
Kingfisher
beak=charcoal/spear legs=scarlet tail=/short face=/mask crown=/crest
crown=teal face=charcoal throat=ivory breast=amber belly=honey back=teal wing=teal tail=indigo
beak=scarlet wing_bar=sky throat=lemon breast=ivory crown=russet eye_ring=lemon back=sky
Wagtail
beak=charcoal/thin legs=charcoal tail=/streamer face=/cheek crown=/cap
crown=ash face=ivory throat=ivory breast=ivory belly=ivory back=ash wing=slate tail=charcoal
throat=charcoal breast=lemon crown=charcoal wing_bar=ivory legs=amber face=lemon belly=rose
Tanager
beak=ash/hooked legs=umber tail=/fork face=/mask crown=/cap
crown=scarlet face=scarlet throat=scarlet breast=scarlet belly=coral back=scarlet wing=charcoal tail=charcoal
wing_bar=ivory crown=amber throat=lemon beak=lemon belly=ivory breast=plum tail_tip=amber
Tit
beak=charcoal/cone legs=slate tail=/square face=/cheek crown=/crest
crown=slate face=ivory throat=sky breast=lilac belly=ivory back=slate wing=indigo tail=indigo
crown=lemon throat=charcoal wing_bar=ivory breast=rose face=rose crown=jade tail_tip=ivory
"""
FAMILIES = [FIELD_GUIDE.strip().splitlines()[i : i + 4] for i in range(0, 32, 4)]
HABITATS = ("", "Mountain_", "River_", "Island_", "Forest_", "Desert_", "Marsh_", "Coast_")
SUFFIXES = {"eye_ring": "ringed", "face": "faced", "beak": "billed", "tail_tip": "tipped", "wing_bar": "barred"}
SUFFIXES |= {"crown": "crowned", "belly": "bellied", "legs": "legged"}
UNMARKED = {"wing_bar": "wing", "tail_tip": "tail", "eye_ring": "face"}  # they have that colour without a mark

THEMES = (  # sky, ground, leaf, old leaf, bark
    "d3e8f2 b5cf93 5f9a4a 93b84e 7d6149",  # meadow
    "fbe3cf c9a9b4 7c9468 c98d6a 6d5350",  # dawn
    "a9c7a5 4f7a62 3f7d4d 7da552 5f4c3e",  # forest
    "f7e7c3 d2a265 c4752f dba53a 715039",  # autumn
    "e4ebee a7bcc4 6f9386 a9b38c 6f6a64",  # mist
    "e9eefa e6c3d2 7aa86a e79ab4 7a5c50",  # blossom
    "bfe0f5 8cc0c8 4a9377 8fc07a 80664c",  # lake
)


@dataclass(frozen=True)
class Species:
    """A kind of bird: for each of `PARTS` the name of its colour (a key of `COLOURS`) and of its shape (may be "")."""

    name: str
    family: str
    colours: dict[str, str]
    shapes: dict[str, str]


def _look(text: str) -> tuple[str, str, str]:
    """Read "part=colour/shape" -> part, colour, shape; a missing one is ""."""
    part, _, colour_and_shape = text.partition("=")
    colour, _, shape = colour_and_shape.partition("/")
    return part, colour, shape


def _relatives(index: int, habitat: int) -> Iterator[Species]:
    """The species of one family; from the second habitat on it has the plumage and the marks of another family."""
    noun, build, _, _ = FAMILIES[index]
    _, _, plumage, marks = FAMILIES[(index + habitat) % len(FAMILIES)]
    family = HABITATS[habitat] + noun
    colours, shapes = {"eye": "charcoal"}, dict.fromkeys(PARTS, "")
    for part, colour, shape in map(_look, f"{build} {plumage}".split()):
        colours |= {part: colour} if colour else {}
        shapes |= {part: shape} if shape else {}
    colours |= {part: colours[lies_on] for part, lies_on in UNMARKED.items()}
    yield Species(f"Common_{family}", family, colours, shapes)
    for part, colour, shape in map(_look, marks.split()):
        if shape and shape == shapes[part]:  # a crest is no mark where all have one, but a cap is
            shape = "cap"
        title = (
            f"{colour}_{SUFFIXES.get(part, part + 'ed')}" if colour else {"crest": "crested", "cap": "capped"}[shape]
        )
        marked = {part: colour or colours[part]}, {part: shape or shapes[part]}
        yield Species(f"{title.capitalize()}_{family}", family, colours | marked[0], shapes | marked[1])


def make_species(num_classes: int, per_family: int = 4) -> list[Species]:
    """The first `num_classes` species (1 to 512), `per_family` (1 to 8) look-alikes of one family after another.

    The list only grows at its end: the first species are the same however many you ask for.
    """
    if num_classes < 1 or not 1 <= per_family <= 8:
        raise ValueError(f"need num_classes >= 1 and 1 <= per_family <= 8, got {num_classes} and {per_family}")
    families = [list(_relatives(i, h)) for h in range(len(HABITATS)) for i in range(len(FAMILIES))]
    ordered = [s for start in range(0, 8, per_family) for f in families for s in f[start : start + per_family]]
    if num_classes > len(ordered):
        raise ValueError(f"only {len(ordered)} species are known, {num_classes} were asked for")
    return ordered[:num_classes]


def random_species(seed: int) -> Species:
    """A species made up at random, unlike those of `make_species`: one of a family of its own."""
    rng = np.random.default_rng(seed)
    colours = {part: str(rng.choice(list(COLOURS))) for part in PARTS} | {"eye": "charcoal"}
    # As in nature, neighbouring parts are often of one colour, and marks are often missing
    for part, neighbour in (("face", "crown"), ("throat", "breast"), ("belly", "breast"), ("wing", "back")):
        colours[part] = colours[neighbour] if rng.random() < 0.35 else colours[part]
    for part, lies_on in UNMARKED.items():
        colours[part] = colours[lies_on] if rng.random() < 0.5 else colours[part]
    choices: dict[str, Collection[str]] = {
        "beak": BEAKS,
        "tail": TAILS,
        "crown": ("cap", "crest"),
        "face": ("cheek", "mask"),
    }
    choices["breast"] = ("", "spotted")
    shapes = dict.fromkeys(PARTS, "") | {part: str(rng.choice(list(shapes))) for part, shapes in choices.items()}
    return Species(f"Bird_{seed}", f"Family_{seed}", colours, shapes)


def which_parts_differ(a: Species, b: Species) -> set[str]:
    """The parts whose colour or shape is not the same in both species."""
    return {part for part in PARTS if a.colours[part] != b.colours[part] or a.shapes[part] != b.shapes[part]}


def swapped(species: Species, other: Species, parts: Collection[str]) -> Species:
    """The species with some parts as another species has them."""
    colours, shapes = ({part: getattr(other, look)[part] for part in parts} for look in ("colours", "shapes"))
    return replace(species, colours=species.colours | colours, shapes=species.shapes | shapes)


def recoloured(species: Species, part: str, colour: str) -> Species:
    """The species with one part in another of `COLOURS`."""
    return replace(species, colours=species.colours | {part: colour})


def part_table(species: list[Species]) -> PartTable:
    """What tells these species apart, part by part."""
    looks = {s.name: {part: f"{s.colours[part]} {s.shapes[part]}".strip() for part in PARTS} for s in species}
    return PartTable(PARTS, looks, families={s.name: s.family for s in species})


# ---------------------------------------------------------------------------------------------------- bird outlines
# Bird coordinates: the bird looks right, x grows to the right and y downwards, the origin is inside the body and the
# unit is about the height of the bird from its feet (y = 0.46) to its crown (y = -0.51).

OUTLINES = {  # closed curves through these points, in hundredths
    "belly": "-50,24 -32,17 -8,12 15,8 55,8 55,50 -50,50",
    "breast": "52,-22 34,-22 22,-18 13,-6 10,8 15,19 27,23 40,22 55,10",
    "throat": "54,-30 42,-29 32,-24 24,-17 25,-8 34,-5 44,-7 54,-12",
    "body": "43,-36 37,-46 25,-51 12,-47 3,-37 -4,-24 -15,-9 -29,4 -41,13 -44,20 -34,27 -17,32 2,34 20,29 35,18 42,3 "
    "43,-11 42.5,-22 44,-29",
    "cheek": "54,-37 36,-40 24,-40 13,-33 12,-24 21,-17 33,-20 42,-25 54,-28",
    "mask": "54,-38 36,-43 20,-41 5,-32 3,-26 15,-25 30,-26 42,-26 54,-29",
    "cap": "48,-36 38,-40 27,-41 15,-38 6,-30 -3,-29 -6,-45 10,-60 40,-60 52,-50",
    "crest": "40,-42 34,-52 23,-59 8,-65 -2,-65 5,-59 -6,-58 1,-51 -7,-47 3,-42 10,-36 26,-38",
    "mantle": "17,-6 11,-14 -2,-16 -18,-7 -36,8 -44,17 -30,19 -8,17 12,13 18,4",
    "coverts": "18,-5 12,-14 -2,-16 -12,-11 -12,-3 -6,3 0,9 9,10 16,6",
}
BEAKS = {  # how long, how high, how far the tip bends down
    "cone": (0.21, 0.165, 0.03),
    "thin": (0.24, 0.110, 0.02),
    "dagger": (0.26, 0.125, 0.02),
    "spear": (0.33, 0.120, 0.03),
    "hooked": (0.21, 0.160, 0.08),
}
TAILS = {  # for each feather its length and how far its tip is off the axis of the tail
    "square": ((0.40, -0.09), (0.42, -0.03), (0.42, 0.03), (0.40, 0.09)),
    "notched": ((0.44, -0.10), (0.41, -0.03), (0.41, 0.03), (0.44, 0.10)),
    "fork": ((0.54, -0.17), (0.46, -0.09), (0.46, 0.09), (0.54, 0.17)),
    "short": ((0.27, -0.09), (0.30, -0.03), (0.30, 0.03), (0.27, 0.09)),
    "long": ((0.46, -0.13), (0.52, -0.07), (0.55, 0.0), (0.52, 0.07), (0.46, 0.13)),
    "streamer": ((0.50, -0.06), (0.58, -0.03), (0.60, 0.03), (0.50, 0.06)),
}
JOINTS = {"head": (0.14, -0.22), "tail": (-0.36, 0.16), "wing": (0.08, -0.06)}  # where each part turns
BEHIND, ON, IN_FRONT = range(3)


class _Drawing:
    """Filled polygons from back to front, and how much each of their points follows each joint."""

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []  # (n, 2) each, in bird coordinates
        self.weights: list[np.ndarray] = []  # (n, 3) each, 0 to 1, a column for each of JOINTS
        self.labels: list[int] = []
        self.layers: list[int] = []  # BEHIND the body, ON it (cut off at its outline), IN_FRONT of it

    def add(self, points: np.ndarray, material: str, tone: int = BASE, joint: str = "head", layer: int = ON) -> None:
        weights = np.zeros((len(points), len(JOINTS)))
        bend = np.clip((-0.10 - points[:, 1]) / 0.18, 0, 1) if joint == "head" else 1.0  # the neck bends softly
        if joint:
            weights[:, list(JOINTS).index(joint)] = bend
        self.points.append(points)
        self.weights.append(weights)
        self.labels.append(_label(material, tone))
        self.layers.append(layer)

    def posed(self, angles: dict[str, float]) -> list[np.ndarray]:
        """The polygons after turning the joints by so many degrees."""
        points, weights = np.concatenate(self.points), np.concatenate(self.weights)
        moved = points.copy()
        for weight, (joint, pivot) in zip(weights.T, JOINTS.items(), strict=True):
            moved += weight[:, None] * ((points - pivot) @ (_rotation(angles[joint]) - np.eye(2)))
        return np.split(moved, np.cumsum([len(p) for p in self.points])[:-1])


def _label(material: str, tone: int = BASE) -> int:
    return 4 * MATERIALS.index(material) + 4 + tone  # 0 to 3 stay free for the background


def _points(text: str) -> np.ndarray:
    """Read "x,y x,y ...", in hundredths -> (n, 2)."""
    return np.array([pair.split(",") for pair in text.split()], float) / 100


def _smooth(outline: str | np.ndarray, steps: int = 6) -> np.ndarray:
    """A closed Catmull-Rom curve through n points, (n, 2) or a text for `_points` -> (n * steps, 2)."""
    outline = _points(outline) if isinstance(outline, str) else outline
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (np.roll(outline, shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve.reshape(-1, 2)


def _blade(base, tip, width: float, point: float = 1.0, skew: float = 0.0, steps: int = 10) -> np.ndarray:
    """A blade from base to tip -> (2 * steps, 2): an ellipse for point=1, a leaf for 2; skew > 0 fattens the tip."""
    base, tip = np.asarray(base, float), np.asarray(tip, float)
    angle = np.linspace(0, np.pi, steps)
    along, across = (1 - np.cos(angle)) / 2, np.sin(angle) ** point
    across = across * (1 + skew * (2 * along - 1)) * width / 2
    axis = tip - base
    normal = np.array([-axis[1], axis[0]]) / max(np.hypot(*axis), 1e-9)
    side = across[:, None] * normal
    middle = base + along[:, None] * axis
    return np.concatenate([middle + side, (middle - side)[::-1]])


def _disc(x: float, y: float, radius: float) -> np.ndarray:
    return _blade((x - radius, y), (x + radius, y), 2 * radius)


@lru_cache(maxsize=256)
def _bird(beak: str, tail: str, crown: str, face: str, breast: str) -> _Drawing:
    """The whole bird, from back to front, before it takes a pose."""
    bird = _Drawing()
    add = bird.add

    # tail: feathers side by side, the outer ones below, each with a tip of its own material
    axis, normal, root = np.array([-0.90, 0.43]), np.array([0.43, 0.90]), np.array([-0.34, 0.17])
    for i, (length, off) in enumerate(sorted(TAILS[tail], key=lambda feather: -abs(feather[1]))):
        start, end = root + 0.3 * off * normal, root + length * axis + off * normal
        feather = _blade(start, end, 0.10, 0.6, 0.15, steps=24)
        is_tip = (feather - start) @ (end - start) > 0.66 * (end - start) @ (end - start)
        add(feather, "tail", (DARK, BASE)[i % 2], "tail", BEHIND)
        add(feather[is_tip], "tail_tip", (DARK, BASE)[i % 2], "tail", BEHIND)
    for hip, foot, tone in (((0.13, 0.25), (0.19, 0.46), DARK), ((0.02, 0.27), (0.06, 0.47), BASE)):
        add(_blade(hip, foot, 0.055, 0.4), "legs", tone, "", BEHIND)
        for dx, dy in ((-0.06, 0.03), (0.10, 0.015), (0.085, 0.05)):
            add(_blade((foot[0], foot[1] - 0.01), (foot[0] + dx, foot[1] + dy), 0.045, 0.8), "legs", tone, "", BEHIND)
    if crown == "crest":
        add(_smooth(OUTLINES["crest"]), "crown", DARK, "head", BEHIND)
    # beak: two mandibles, their roots hidden by the head
    length, height, bend = BEAKS[beak]
    tip, middle = (0.41 + length, -0.30 + bend), 0.41 + 0.5 * length
    for tone, edge in ((DARK, 0.42), (BASE, -0.62)):
        outline = [(0.38, -0.31), (0.38, -0.31 + edge * height), (middle, -0.31 + 0.8 * edge * height), tip]
        outline.append((middle, -0.30 + 0.2 * bend))
        add(_smooth(np.array(outline)), "beak", tone, "head", BEHIND)
    # body: its outline first, then the regions on it
    add(_smooth(OUTLINES["body"]), "back")
    for material in ("belly", "breast", "throat"):
        add(_smooth(OUTLINES[material]), material)
    for x, y in _points("18,2 27,0 35,3 22,10 31,10 25,18 17,17"):
        tone, width = (INK, 0.034) if breast == "spotted" else (DARK, 0.014)
        add(_blade((x, y - 0.02), (x - 0.015, y + 0.025), width, 1.2, 0.5), "breast", tone)
    add(_smooth(OUTLINES[face]), "face")
    add(_smooth(OUTLINES["cap"]), "crown")
    for start, end in _points("35,-45.5 25,-48 23,-46.5 13,-43.5 25,-43 16,-41").reshape(3, 2, 2):
        add(_blade(start, end, 0.016, 1.2), "crown", DARK)
    add(_disc(0.315, -0.335, 0.103), "eye_ring")
    add(_disc(0.315, -0.335, 0.056), "eye")
    add(_disc(0.334, -0.355, 0.019), "eye", LIGHT)

    # wing: two rows of long feathers, the bar, the shoulder with a few scales
    def row(count: int, ends: str, width: float, material: str, *tones: int) -> None:
        corners = _points(ends)  # where the first and the last feather start, where the first and the last one end
        for i, t in enumerate(np.linspace(0, 1, count)):
            start, end = (1 - t) * corners[::2] + t * corners[1::2]
            add(_blade(start, end, width, 0.65, 0.15), material, tones[i % len(tones)], "wing", IN_FRONT)

    row(6, "-5,-2 7,6 -60,20 -18,25", 0.10, "wing", DARK, INK)
    add(_smooth(OUTLINES["mantle"]), "wing", BASE, "wing", IN_FRONT)
    row(5, "0,-10 10,2 -44,10 -7,20", 0.11, "wing", BASE, DARK)
    row(5, "-2,-7 10,3 -25.5,3 6,20", 0.10, "wing_bar", BASE)
    row(5, "0,-9 13,2 -15.5,-2.5 10,11.5", 0.10, "wing", DARK)
    add(_smooth(OUTLINES["coverts"]), "wing", LIGHT, "wing", IN_FRONT)
    for x, y in _points("-6,-7 1,-9 8,-8 -1,-2 6,-2 5,4 12,0"):
        add(_blade((x - 0.022, y - 0.012), (x + 0.012, y + 0.022), 0.014, 1.2), "wing", DARK, "wing", IN_FRONT)
    return bird


# ------------------------------------------------------------------------------------------------------ the picture
def _rotation(degrees: float) -> np.ndarray:
    """A matrix m such that points (n, 2) @ m are turned clockwise on the screen."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([(c, s), (-s, c)])


def _direction(angle: float | np.ndarray) -> np.ndarray:
    """Angles in radians (...) -> unit vectors (..., 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _backdrop(rng: np.random.Generator, theme: list[np.ndarray], size: int) -> Image.Image:
    """A soft, cluttered background: sky to ground, blurred foliage, discs of light, leaves and twigs out of focus."""
    sky, ground, leaf, old_leaf, bark = theme
    side = 128
    slant = np.linspace(0, 1, side)[:, None] + rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, side)
    mix = np.clip(slant, 0, 1)[..., None]
    image = Image.fromarray((sky * (1 - mix) + ground * mix).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")

    def tint(colour: np.ndarray, alpha: float) -> tuple[int, ...]:
        return (*(min(255, int(c)) for c in colour * rng.uniform(0.85, 1.15)), int(alpha))

    for _ in range(14):
        x, y, r = rng.uniform(0, side), side * rng.beta(1.6, 1), rng.uniform(8, 26)
        colour = (leaf, ground, old_leaf)[rng.integers(3)]
        draw.ellipse((x - r, y - 0.7 * r, x + r, y + 0.7 * r), fill=tint(colour, 90))
    image = image.filter(ImageFilter.GaussianBlur(7))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(4, 10)):
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(3, 11)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tint(0.5 * sky + 127, rng.uniform(25, 70)))
    for _ in range(rng.integers(1, 4)):
        start, end = rng.uniform(0, side, 2), rng.uniform(-30, side + 30, 2)
        width = int(rng.integers(2, 5))
        draw.line((*start.tolist(), *end.tolist()), fill=tint(bark, 120), width=width)
    for _ in range(rng.integers(8, 18)):
        base, angle, length = rng.uniform(0, side, 2), rng.uniform(0, 2 * np.pi), rng.uniform(10, 24)
        blade = _blade(base, base + length * _direction(angle), 0.42 * length, 1.5)
        draw.polygon(blade.ravel().tolist(), fill=tint((leaf, old_leaf)[rng.integers(2)], rng.uniform(90, 170)))
    return image.filter(ImageFilter.GaussianBlur(1.8)).resize((size, size), Image.Resampling.BICUBIC)


class _Sheet:
    """A supersampled picture whose pixels are labels (material and tone), and where the bird stands on it."""

    EXTENT = _points("-93,58 -97,35 75,-30 6,-70 20,56")  # the room that the largest bird takes

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.side = rng, size * SUPERSAMPLING
        self.labels = Image.new("L", (self.side, self.side))
        self.mirror = rng.choice([-1.0, 1.0])
        tilt = np.clip(rng.normal(0, 5), -10, 10)
        self.turn = rng.uniform(0.44, 0.57) * _rotation(tilt) * np.array([self.mirror, 1.0])
        room = self.EXTENT @ self.turn
        low, high = 0.01 - room.min(axis=0), 0.99 - room.max(axis=0)
        self.place = low + (high - low) * rng.beta(2, 2, 2)

    def locate(self, points: np.ndarray) -> np.ndarray:
        """Bird coordinates (..., 2) -> fractions of the picture (..., 2), y downwards."""
        return points @ self.turn + self.place

    def paint(self, points: np.ndarray, label: int, on: Image.Image | None = None) -> None:
        """Fill a polygon (n, 2) given in fractions of the picture."""
        ImageDraw.Draw(on or self.labels).polygon((points * self.side).ravel().tolist(), fill=label)

    def leaf(self, base: np.ndarray, angle: float, length: float) -> None:
        """A leaf with a darker half and a pale midrib."""
        tip = base + length * _direction(angle)
        blade = _blade(base, tip, length * self.rng.uniform(0.38, 0.5), 1.5)
        material = "leaf" if self.rng.random() < 0.75 else "old_leaf"
        self.paint(blade, _label(material))
        self.paint(blade[: len(blade) // 2], _label(material, DARK))
        self.paint(_blade(base, base + 0.9 * (tip - base), 0.03 * length + 0.002, 0.6), _label(material, LIGHT))

    def perch(self) -> None:
        """The branch that the bird sits on, and its leaves."""
        rng = self.rng
        x = np.linspace(-2.5, 2.5, 40)
        sag = rng.normal(0, 0.02, 2)
        top = 0.47 + sag[0] * np.sin(3 * x) + sag[1] * (np.cos(5 * x) - 1)
        thick = 0.085 + 0.02 * np.sin(4 * x + rng.uniform(0, 6)) - 0.012 * x * rng.choice([-1, 1])
        for upper, lower, tone in ((0.0, 1.0, BASE), (0.62, 1.0, DARK), (0.14, 0.3, LIGHT)):
            edges = [np.stack([x, top + upper * thick], 1), np.stack([x, top + lower * thick], 1)[::-1]]
            self.paint(self.locate(np.concatenate(edges)), _label("bark", tone))
        for _ in range(rng.integers(3, 8)):
            at = self.locate(np.array([rng.uniform(-1.4, 1.4), 0.5]))
            self.leaf(at, rng.uniform(0, 2 * np.pi), rng.uniform(0.09, 0.17))

    def bird(self, drawing: _Drawing, without: Collection[str]) -> None:
        """The bird, its joints turned a little. Where a part is left out, what lies under it shows."""
        rng = self.rng
        angles = {"head": rng.uniform(-11, 9), "tail": rng.uniform(-12, 12), "wing": rng.uniform(-4, 7)}
        body, cutout = Image.new("L", self.labels.size), Image.new("L", self.labels.size)
        previous = BEHIND
        for points, label, layer in zip(drawing.posed(angles), drawing.labels, drawing.layers, strict=True):
            outline, material = self.locate(points), MATERIALS[label // 4 - 1]
            if layer == ON and previous == BEHIND:  # the first polygon on the body is its outline
                self.paint(outline, 255, cutout)
                if material in without:
                    label = _label("belly")  # a body has to be there
            elif material in without:
                continue
            if layer == IN_FRONT and previous == ON:
                self.labels.paste(body, mask=cutout)
            self.paint(outline, label, body if layer == ON else self.labels)
            previous = layer

    def twig(self) -> None:
        """A leafy twig in front of the bird."""
        rng = self.rng
        end = self.locate(np.array([rng.uniform(-0.5, 0.5), rng.uniform(-0.35, 0.4)]))
        heading, bow = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
        along = np.linspace(0, 1, 12)
        middle = end + 1.4 * along[:, None] * _direction(heading + bow * along)
        half = (0.003 + 0.012 * along[:, None]) * _direction(heading + bow * along + np.pi / 2)
        self.paint(np.concatenate([middle + half, (middle - half)[::-1]]), _label("bark"))
        for i, aside in enumerate(rng.uniform(0.3, 1.2, rng.integers(3, 6))):
            angle = heading + np.pi + aside * (-1) ** i
            self.leaf(end + 0.05 * i * _direction(heading), angle, rng.uniform(0.1, 0.16))


def _palette(rng: np.random.Generator, species: Species, theme: list[np.ndarray]) -> np.ndarray:
    """The colour of every label, uint8 (256, 3): a little different from bird to bird, equal names staying equal."""
    wobble = rng.normal(1, 0.035, (len(COLOURS), 1)) * rng.normal(1, 0.012, (len(COLOURS), 3))
    colours = {name: np.multiply(rgb, factor) for (name, rgb), factor in zip(COLOURS.items(), wobble, strict=True)}
    _, _, leaf, old_leaf, bark = theme
    palette = np.zeros((256, 3))
    inks = [*(colours[species.colours[part]] for part in PARTS), bark, leaf, old_leaf]
    for material, ink in zip(MATERIALS, inks, strict=True):
        at = _label(material)
        palette[at : at + 4] = ink, 0.78 * ink, ink + 0.22 * (255 - ink), 0.5 * ink
    palette[_label("eye", LIGHT)] = 255
    palette[_label("breast", INK)] = COLOURS["umber"]
    return np.clip(palette, 0, 255).astype(np.uint8)


def draw_bird(
    species: Species, seed: int, size: int = 224, without: Collection[str] = ()
) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """Draw one bird of a species.

    The seed alone decides everything that is not the species: pose, place, mirroring, light, background, what is in
    front of the bird. So two look-alikes drawn with the same seed differ only in the parts that tell them apart.

    Args:
        species: from `make_species`, or your own.
        seed: any integer >= 0.
        size: side of the square picture in pixels, at least 32.
        without: those of `PARTS` to leave out: what lies under them shows. The body stays; without its back it has the
            colour of the belly.

    Returns:
        The RGB picture (size, size), and for each of `PARTS` a bool mask (size, size) of its visible pixels (those
        whose middle shows it). Masks do not overlap; a part hidden behind a leaf may have an empty one. An unmarked
        part (say a wing bar in the colour of the wing) has its mask all the same: it is the place to look at.

    Raises:
        ValueError: If the size is too small, or `without` names no part.
    """
    if unknown := set(without) - set(PARTS):
        raise ValueError(f"without={min(unknown)!r}: expected parts, which are {', '.join(PARTS)}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")
    rng = np.random.default_rng(seed)
    theme = [np.array(tuple(bytes.fromhex(code)), float) for code in THEMES[rng.integers(len(THEMES))].split()]
    backdrop = _backdrop(rng, theme, size)
    sheet = _Sheet(rng, size)
    sheet.perch()
    sheet.bird(_bird(*(species.shapes[part] for part in ("beak", "tail", "crown", "face", "breast"))), without)
    if rng.random() < 0.35:
        sheet.twig()

    # from labels to colours and part masks: a pixel is the mean of the supersampled ones, its part that of the middle
    labels = sheet.labels
    middle = slice(SUPERSAMPLING // 2, None, SUPERSAMPLING)
    seen = np.asarray(labels)[middle, middle].astype(int) // 4 - 1
    masks = {part: seen == i for i, part in enumerate(PARTS)}
    covered = np.asarray(labels.point([0] * 4 + [255] * 252).reduce(SUPERSAMPLING), np.float32)[..., None] / 255
    labels.putpalette(_palette(rng, species, theme).tobytes())
    drawn = np.asarray(labels.convert("RGB").reduce(SUPERSAMPLING), np.float32)
    picture = drawn + (1 - covered) * np.asarray(backdrop)

    # light from above, which makes the bird look round
    down = (np.linalg.inv(sheet.turn) @ (sheet.mirror * rng.uniform(-0.35, 0.35), 1)).astype(np.float32) / 0.45
    x, y = (np.arange(size, dtype=np.float32) + 0.5) / size - sheet.place.astype(np.float32)[:, None]
    depth = np.clip(x * down[0] + y[:, None] * down[1], -1, 1)
    shade = np.where((seen >= 0) & (seen < len(PARTS)), 1.02 - 0.14 * depth, 1)
    warmth = rng.normal(0, 0.025)
    light = rng.uniform(0.9, 1.04) * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    picture = np.clip(picture * shade[..., None] * light.astype(np.float32), 0, 255).astype(np.uint8)
    return Image.fromarray(picture), masks


# ------------------------------------------------------------------------------------------------------------- data
def mask_image(masks: dict[str, np.ndarray]) -> Image.Image:
    """The masks of a picture as one picture with a palette: a pixel's value is 1 + the part's place in `PARTS`, 0 where
    there is none; for people, each part has a colour."""
    values = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for value, part in enumerate(PARTS, start=1):
        values[masks[part]] = value
    image = Image.fromarray(values).convert("P")
    image.putpalette(b"\0\0\0" + b"".join(bytes(COLOURS[name]) for name in list(COLOURS)[: len(PARTS)]))
    return image


def scene_seed(seed: int, split: str, label: int, number: int) -> int:
    """The seed of a picture. No two pictures of a data set share one, so neither training and test pictures nor two
    species share a pose and a background, which would give the species away."""
    return ((seed * 2 + ("train", "test").index(split)) * 1000 + label) * 100_000 + number


def bird_dataset(
    num_classes: int = 16, per_class: int = 60, size: int = 224, seed: int = 0, split: str = "train"
) -> "datasets.Dataset":
    """
    A data set of drawn birds.

    Args:
        num_classes: Number of species, 1 to 512.
        per_class: Pictures of each, at most 100,000.
        size: Pixels of a side, at least 32.
        seed: Another seed, other pictures.
        split: `"train"` or `"test"`, which have no picture in common.

    Returns:
        Rows `{"image": PIL image, "label": int, "parts": PIL image, "seed": int}`: `parts` as `mask_image` makes it,
        and `draw_bird(make_species(num_classes)[label], seed, size)` draws the scene again.

    Raises:
        ValueError: If a number is out of its range.
    """
    import datasets  # slow to import, and seldom needed

    _check(per_class, seed, size)
    species = make_species(num_classes)

    def rows() -> Iterator[dict[str, Any]]:
        for label, kind in enumerate(species):
            for number in range(per_class):
                scene = scene_seed(seed, split, label, number)
                image, masks = draw_bird(kind, scene, size)
                yield {"image": _png(image), "label": label, "parts": _png(mask_image(masks)), "seed": scene}

    names = [kind.name for kind in species]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=names),
            "parts": datasets.Image(),
            "seed": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_list(list(rows()), features=features, split=datasets.NamedSplit(split))


def _png(image: Image.Image) -> dict[str, Any]:
    content = BytesIO()
    image.save(content, "png")
    return {"bytes": content.getvalue(), "path": None}


def write_image_folder(
    directory: str | Path,
    num_classes: int = 8,
    train_per_class: int = 60,
    test_per_class: int = 10,
    size: int = 224,
    seed: int = 0,
    progress: bool = True,
    interventions_per_class: int = 0,
) -> list[Species]:
    """
    Write `train/<species>/*.jpg` and `test/<species>/*.jpg` in a new or empty directory, and for the test pictures what
    `promptcam_hf.data.parts` describes: masks, the names of the parts, and of the first `interventions_per_class` of each
    species the same scenes without each part in turn, and with the parts of each look-alike.

    The same arguments (and versions of Pillow and numpy) give the same files, byte for byte.

    Returns:
        The species.

    Raises:
        ValueError: If a number is out of its range.
        FileExistsError: If there is something in the directory.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} is not an empty directory; name a new one, or empty it first")
    counts = {"train": train_per_class, "test": test_per_class}
    for count in (*counts.values(), interventions_per_class):
        _check(count, seed, size)
    species = make_species(num_classes)
    table = part_table(species)
    by_name = {kind.name: kind for kind in species}
    with tqdm(total=num_classes * sum(counts.values()), desc="drawing", unit="bird", disable=not progress) as bar:
        for label, kind in enumerate(species):
            for split, count in counts.items():
                (directory / split / kind.name).mkdir(parents=True)
                for number in range(count):
                    scene, name = scene_seed(seed, split, label, number), f"{kind.name}/{number:05d}"
                    image, masks = draw_bird(kind, scene, size)
                    _save_jpeg(image, directory / split / f"{name}.jpg")
                    if split == "test":
                        file = directory / "test_parts" / f"{name}.png"
                        file.parent.mkdir(parents=True, exist_ok=True)
                        mask_image(masks).save(file)
                    if split == "test" and number < interventions_per_class:
                        look_alikes = [by_name[other] for other in table.look_alikes(kind.name)]
                        for folder, changed in _interventions(kind, look_alikes, scene, size):
                            _save_jpeg(changed, directory / folder / f"{name}.jpg")
                    bar.update()
    table.save(directory)
    return species


def _interventions(
    species: Species, look_alikes: list[Species], seed: int, size: int
) -> Iterator[tuple[str, Image.Image]]:
    """A scene without each part in turn, and with the parts of each look-alike, each with the folder it goes to."""
    for part in PARTS:
        yield f"test_without/{part}", draw_bird(species, seed, size, without={part})[0]
    for other in look_alikes:
        like_other = swapped(species, other, which_parts_differ(species, other))
        yield f"test_swapped/{other.name}", draw_bird(like_other, seed, size)[0]


def _save_jpeg(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=92)


def _check(count: int, seed: int, size: int) -> None:
    if not 0 <= count <= 100_000 or seed < 0:
        raise ValueError(f"need 0 to 100000 pictures of each species and seed >= 0, got {count} and {seed}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m promptcam_hf.demo.drawing",
        description="Write a folder of synthetic birds for training an image classifier: OUTPUT_DIR/train/<species> "
        "and OUTPUT_DIR/test/<species>, with masks of the parts of the test pictures. Species come in families of four "
        "look-alikes, which differ in one or two parts; species of different families differ in more.",
        epilog="With --classes 4 there is a single family, and only small parts tell its species apart.",
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or empty directory")
    parser.add_argument("--classes", type=int, default=8, help="how many species, 1 to 512 (default: %(default)s)")
    parser.add_argument("--train", type=int, default=60, help="training pictures of each (default: %(default)s)")
    parser.add_argument("--test", type=int, default=10, help="test pictures of each (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of a picture in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures (default: %(default)s)")
    parser.add_argument(
        "--interventions",
        type=int,
        default=0,
        help="of so many test pictures of each also the scene without each part, and with each look-alike's parts "
        "(default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    try:
        write_image_folder(
            args.output_dir,
            args.classes,
            args.train,
            args.test,
            args.size,
            args.seed,
            interventions_per_class=args.interventions,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
