"""Draws a bird, with an exact mask of every part.

Everything is drawn from scratch with Pillow and numpy. The bird is a jointed puppet of filled polygons, which takes a
random pose on a branch in front of a blurred background. A scene can be drawn again with one part removed, recoloured,
or as another species has it: the interventions of FunnyBirds (Hesse et al., ICCV 2023).

Bird coordinates: the bird faces right, x grows to the right and y downwards. The origin is inside the body, and the
unit is about the height of the bird, from its feet (y = 0.46) to its crown (y = -0.51).
"""

from collections.abc import Collection
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .species import COLOURS, PARTS, Species

MIN_SIZE = 32  # pixels
MATERIALS = (*PARTS, "bark", "leaf", "old_leaf")  # what can be painted: the parts of the bird, and the branch
BASE, DARK, LIGHT, INK = range(4)  # the four tones of a material
SUPERSAMPLING = 3  # drawn this many times larger, then averaged, for smooth edges; odd, so that pixels have a centre

THEMES = (  # sky, ground, leaf, old leaf, bark
    "d3e8f2 b5cf93 5f9a4a 93b84e 7d6149",  # meadow
    "fbe3cf c9a9b4 7c9468 c98d6a 6d5350",  # dawn
    "a9c7a5 4f7a62 3f7d4d 7da552 5f4c3e",  # forest
    "f7e7c3 d2a265 c4752f dba53a 715039",  # autumn
    "e4ebee a7bcc4 6f9386 a9b38c 6f6a64",  # mist
    "e9eefa e6c3d2 7aa86a e79ab4 7a5c50",  # blossom
    "bfe0f5 8cc0c8 4a9377 8fc07a 80664c",  # lake
)

# --- The puppet ------------------------------------------------------------------------------------------------------

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
BEAKS = {  # length, height, how far the tip bends down
    "cone": (0.21, 0.165, 0.03),
    "thin": (0.24, 0.110, 0.02),
    "dagger": (0.26, 0.125, 0.02),
    "spear": (0.33, 0.120, 0.03),
    "hooked": (0.21, 0.160, 0.08),
}
TAILS = {  # of each feather: its length, and the distance of its tip from the axis of the tail
    "square": ((0.40, -0.09), (0.42, -0.03), (0.42, 0.03), (0.40, 0.09)),
    "notched": ((0.44, -0.10), (0.41, -0.03), (0.41, 0.03), (0.44, 0.10)),
    "fork": ((0.54, -0.17), (0.46, -0.09), (0.46, 0.09), (0.54, 0.17)),
    "short": ((0.27, -0.09), (0.30, -0.03), (0.30, 0.03), (0.27, 0.09)),
    "long": ((0.46, -0.13), (0.52, -0.07), (0.55, 0.0), (0.52, 0.07), (0.46, 0.13)),
    "streamer": ((0.50, -0.06), (0.58, -0.03), (0.60, 0.03), (0.50, 0.06)),
}
JOINTS = {"head": (0.14, -0.22), "tail": (-0.36, 0.16), "wing": (0.08, -0.06)}  # where each part turns
BEHIND, ON, IN_FRONT = range(3)  # the layers: behind the body, on it (cut off at its outline), in front of it


class _Puppet:
    """Filled polygons from back to front, and how far each of their points follows each joint."""

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []  # (n, 2) each, in bird coordinates
        self.weights: list[np.ndarray] = []  # (n, 3) each, 0 to 1, a column for each of JOINTS
        self.labels: list[int] = []
        self.layers: list[int] = []

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
        """The polygons after turning each joint by its angle in degrees."""
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
def _puppet(beak: str, tail: str, crown: str, face: str, breast: str) -> _Puppet:
    """The whole bird, from back to front, before it takes a pose."""
    bird = _Puppet()
    _add_tail(bird, TAILS[tail])
    _add_legs(bird)
    if crown == "crest":
        bird.add(_smooth(OUTLINES["crest"]), "crown", DARK, "head", BEHIND)
    _add_beak(bird, *BEAKS[beak])
    _add_body(bird, is_spotted=breast == "spotted")
    _add_head(bird, face)
    _add_wing(bird)
    return bird


def _add_tail(bird: _Puppet, feathers: tuple[tuple[float, float], ...]) -> None:
    """Feathers side by side, the outer ones below, each with a tip of its own material."""
    axis, normal, root = np.array([-0.90, 0.43]), np.array([0.43, 0.90]), np.array([-0.34, 0.17])
    for i, (length, off) in enumerate(sorted(feathers, key=lambda feather: -abs(feather[1]))):
        start, end = root + 0.3 * off * normal, root + length * axis + off * normal
        feather = _blade(start, end, 0.10, 0.6, 0.15, steps=24)
        is_tip = (feather - start) @ (end - start) > 0.66 * (end - start) @ (end - start)
        bird.add(feather, "tail", (DARK, BASE)[i % 2], "tail", BEHIND)
        bird.add(feather[is_tip], "tail_tip", (DARK, BASE)[i % 2], "tail", BEHIND)


def _add_legs(bird: _Puppet) -> None:
    for hip, foot, tone in (((0.13, 0.25), (0.19, 0.46), DARK), ((0.02, 0.27), (0.06, 0.47), BASE)):
        bird.add(_blade(hip, foot, 0.055, 0.4), "legs", tone, "", BEHIND)
        for dx, dy in ((-0.06, 0.03), (0.10, 0.015), (0.085, 0.05)):  # toes
            toe = _blade((foot[0], foot[1] - 0.01), (foot[0] + dx, foot[1] + dy), 0.045, 0.8)
            bird.add(toe, "legs", tone, "", BEHIND)


def _add_beak(bird: _Puppet, length: float, height: float, bend: float) -> None:
    """Two mandibles. The head hides their roots."""
    tip, middle = (0.41 + length, -0.30 + bend), 0.41 + 0.5 * length
    for tone, edge in ((DARK, 0.42), (BASE, -0.62)):
        outline = [(0.38, -0.31), (0.38, -0.31 + edge * height), (middle, -0.31 + 0.8 * edge * height), tip]
        outline.append((middle, -0.30 + 0.2 * bend))
        bird.add(_smooth(np.array(outline)), "beak", tone, "head", BEHIND)


def _add_body(bird: _Puppet, is_spotted: bool) -> None:
    """The outline of the body first, then the regions on it."""
    bird.add(_smooth(OUTLINES["body"]), "back")
    for material in ("belly", "breast", "throat"):
        bird.add(_smooth(OUTLINES[material]), material)
    tone, width = (INK, 0.034) if is_spotted else (DARK, 0.014)
    for x, y in _points("18,2 27,0 35,3 22,10 31,10 25,18 17,17"):
        bird.add(_blade((x, y - 0.02), (x - 0.015, y + 0.025), width, 1.2, 0.5), "breast", tone)


def _add_head(bird: _Puppet, face: str) -> None:
    bird.add(_smooth(OUTLINES[face]), "face")
    bird.add(_smooth(OUTLINES["cap"]), "crown")
    for start, end in _points("35,-45.5 25,-48 23,-46.5 13,-43.5 25,-43 16,-41").reshape(3, 2, 2):
        bird.add(_blade(start, end, 0.016, 1.2), "crown", DARK)
    bird.add(_disc(0.315, -0.335, 0.103), "eye_ring")
    bird.add(_disc(0.315, -0.335, 0.056), "eye")
    bird.add(_disc(0.334, -0.355, 0.019), "eye", LIGHT)


def _add_wing(bird: _Puppet) -> None:
    """Two rows of long feathers, the wing bar, and the shoulder with a few scales."""

    def add_row(count: int, ends: str, width: float, material: str, *tones: int) -> None:
        corners = _points(ends)  # where the first and the last feather start, then where they end
        for i, t in enumerate(np.linspace(0, 1, count)):
            start, end = (1 - t) * corners[::2] + t * corners[1::2]
            bird.add(_blade(start, end, width, 0.65, 0.15), material, tones[i % len(tones)], "wing", IN_FRONT)

    add_row(6, "-5,-2 7,6 -60,20 -18,25", 0.10, "wing", DARK, INK)
    bird.add(_smooth(OUTLINES["mantle"]), "wing", BASE, "wing", IN_FRONT)
    add_row(5, "0,-10 10,2 -44,10 -7,20", 0.11, "wing", BASE, DARK)
    add_row(5, "-2,-7 10,3 -25.5,3 6,20", 0.10, "wing_bar", BASE)
    add_row(5, "0,-9 13,2 -15.5,-2.5 10,11.5", 0.10, "wing", DARK)
    bird.add(_smooth(OUTLINES["coverts"]), "wing", LIGHT, "wing", IN_FRONT)
    for x, y in _points("-6,-7 1,-9 8,-8 -1,-2 6,-2 5,4 12,0"):
        bird.add(_blade((x - 0.022, y - 0.012), (x + 0.012, y + 0.022), 0.014, 1.2), "wing", DARK, "wing", IN_FRONT)


# --- The scene --------------------------------------------------------------------------------------------------------


def _rotation(degrees: float) -> np.ndarray:
    """The matrix m for which points (n, 2) @ m are turned clockwise on the screen."""
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

    EXTENT = _points("-93,58 -97,35 75,-30 6,-70 20,56")  # corners of the largest bird

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

    def bird(self, puppet: _Puppet, without: Collection[str]) -> None:
        """The bird, in a random pose. Where a part is left out, whatever lies under it shows."""
        rng = self.rng
        angles = {"head": rng.uniform(-11, 9), "tail": rng.uniform(-12, 12), "wing": rng.uniform(-4, 7)}
        body, cutout = Image.new("L", self.labels.size), Image.new("L", self.labels.size)
        previous = BEHIND
        for points, label, layer in zip(puppet.posed(angles), puppet.labels, puppet.layers, strict=True):
            outline, material = self.locate(points), MATERIALS[label // 4 - 1]
            if layer == ON and previous == BEHIND:  # the first polygon on the body is its outline
                self.paint(outline, 255, cutout)
                if material in without:
                    label = _label("belly")  # the bird needs a body
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
    """The colour of every label, uint8 (256, 3). Colours vary a little from bird to bird; parts of the same colour keep
    the same colour."""
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
    """
    Draw one bird of a species.

    The seed alone decides everything but the species: pose, place, mirroring, light, background, and what is in front
    of the bird. So two look-alikes drawn with the same seed differ only in the parts that tell them apart.

    Args:
        species: From `make_species`, or your own.
        seed: Random seed, 0 or more.
        size: Side of the square picture in pixels, 32 or more.
        without: Those of `PARTS` to leave out, so that whatever lies under them shows. The body stays: without its
            back, it has the colour of the belly.

    Returns:
        The RGB picture (size, size), and for each of `PARTS` a bool mask (size, size) of the pixels whose centre shows
        it. Masks do not overlap. A part behind a leaf may have an empty mask. A missing mark, such as a wing bar in the
        colour of the wing, has its mask all the same: it is the place to look at.

    Raises:
        ValueError: If the size is too small, or `without` has a name that is not in `PARTS`.
    """
    if unknown := set(without) - set(PARTS):
        raise ValueError(f"without={min(unknown)!r}: expected parts, which are {', '.join(PARTS)}.")
    check_size(size)
    rng = np.random.default_rng(seed)
    theme = [np.array(tuple(bytes.fromhex(code)), float) for code in THEMES[rng.integers(len(THEMES))].split()]
    backdrop = _backdrop(rng, theme, size)
    sheet = _Sheet(rng, size)
    sheet.perch()
    sheet.bird(_puppet(*(species.shapes[part] for part in ("beak", "tail", "crown", "face", "breast"))), without)
    if rng.random() < 0.35:
        sheet.twig()

    # From labels to colours: each pixel is the mean of the supersampled ones
    labels = sheet.labels
    covered = np.asarray(labels.point([0] * 4 + [255] * 252).reduce(SUPERSAMPLING), np.float32)[..., None] / 255
    labels.putpalette(_palette(rng, species, theme).tobytes())
    painted = np.asarray(labels.convert("RGB").reduce(SUPERSAMPLING), np.float32)
    picture = painted + (1 - covered) * np.asarray(backdrop)
    # From labels to masks: each pixel shows the part at its centre
    centre = slice(SUPERSAMPLING // 2, None, SUPERSAMPLING)
    shown = np.asarray(sheet.labels)[centre, centre].astype(int) // 4 - 1
    masks = {part: shown == i for i, part in enumerate(PARTS)}
    is_bird = (shown >= 0) & (shown < len(PARTS))
    return Image.fromarray(_lit(picture, is_bird, sheet)), masks


def _lit(picture: np.ndarray, is_bird: np.ndarray, sheet: _Sheet) -> np.ndarray:
    """The picture (size, size, 3) lit from above, which makes the bird look round, and tinted by warm or cold light."""
    rng, size = sheet.rng, len(picture)
    down = (np.linalg.inv(sheet.turn) @ (sheet.mirror * rng.uniform(-0.35, 0.35), 1)).astype(np.float32) / 0.45
    x, y = (np.arange(size, dtype=np.float32) + 0.5) / size - sheet.place.astype(np.float32)[:, None]
    depth = np.clip(x * down[0] + y[:, None] * down[1], -1, 1)
    shade = np.where(is_bird, 1.02 - 0.14 * depth, 1)
    warmth = rng.normal(0, 0.025)
    light = rng.uniform(0.9, 1.04) * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    return np.clip(picture * shade[..., None] * light.astype(np.float32), 0, 255).astype(np.uint8)


def check_size(size: int) -> None:
    """
    Refuse a picture that is too small to draw.

    Raises:
        ValueError: If it has fewer than 32 pixels on a side.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size={size}: expected {MIN_SIZE} pixels or more.")


def mask_image(masks: dict[str, np.ndarray]) -> Image.Image:
    """All masks of a picture in one palette image of the same size: a pixel's value is 1 + the index of its part in
    `PARTS`, or 0 where there is none. The palette gives each part a colour of its own."""
    values = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for value, part in enumerate(PARTS, start=1):
        values[masks[part]] = value
    image = Image.fromarray(values).convert("P")
    image.putpalette(b"\0\0\0" + b"".join(bytes(COLOURS[name]) for name in list(COLOURS)[: len(PARTS)]))
    return image
