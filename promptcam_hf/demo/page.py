"""The page of `promptcam demo`: where the model looks, and whether that is what tells the species apart, for people.

Examples are not picked by hand: of each kind it is the first test picture that can show what is to be seen.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from io import BytesIO
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..evaluation.explainers import TOP_MAPS
from ..evaluation.prediction import Predictions
from ..evaluation.trait_data import TraitData
from ..evaluation.trait_metrics import part_region
from ..explanation.drawing import contact_sheet, stacked
from ..files import write_atomically, write_files_atomically
from ..modeling import PromptCamPipeline
from ..modeling.pipeline_promptcam import COLOUR_MAP, load_photograph
from .synthetic_birds import COLOURS, UNMARKED, Species, draw_bird, make_species, mask_image, scene_seed

TEMPLATE = Path(__file__).with_name("page_template.html")
SHOWN_MISTAKES = 6
CLEARLY_VISIBLE = 0.5  # of what usually shows of a part


# --- What is shown ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trait:
    """
    One map and what it peaks on.

    Args:
        head: Its head, from 0.
        heatmap: The map over its picture.
        peak: Where its largest value is: x and y in percent of width and height.
        part: The part that is there, or None beside the bird.
        role: What that part is to the species through whose eyes the picture is seen: its "mark", "telling" (a
            look-alike's differs), "other", or "beside" the bird.
    """

    head: int
    heatmap: Image.Image
    peak: tuple[float, float]
    part: str | None
    role: str


@dataclass(frozen=True)
class View:
    """A picture through the eyes of a species, the most important map first; `explanation` is the pipeline's."""

    picture: Image.Image
    species: Species
    probability: float
    traits: list[Trait]
    explanation: dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A scene drawn in one of several ways, `what`; the species it is taken for and its probability, and how probable
    some species are."""

    picture: Image.Image
    what: str
    taken_for: Species
    probability: float
    probabilities: list[tuple[Species, float]]


@dataclass(frozen=True)
class Member:
    """A species on the page: how many of its test pictures are classified correctly, and one of them, if any."""

    species: Species
    images: int
    correct: int
    view: View | None


@dataclass(frozen=True)
class Mistake:
    """A test picture seen as what it is and as what it was taken for."""

    true: View
    predicted: View
    hides_mark: bool


class Album:
    """
    The test pictures of the demo's birds, what the model makes of them, and examples from among them.

    Args:
        traits: The model.
        birds: The test pictures, named and drawn as `write_image_folder` does.
        predictions: Of the model, on them.
        seed: That the birds were drawn with.
    """

    def __init__(self, traits: PromptCamPipeline, birds: TraitData, predictions: Predictions, seed: int):
        assert birds.table is not None
        self.traits, self.birds, self.table, self.seed = traits, birds, birds.table, seed
        by_name = {species.name: species for species in make_species(len(birds.names))}
        self.species = [by_name[name] for name in birds.names]  # in the order of the labels
        self.families = list(dict.fromkeys(kind.family for kind in by_name.values()))
        self.predicted = predictions.top_classes[:, 0].tolist()
        self.confidence = predictions.confidence.tolist()
        pixels = [
            self.mask(i).flatten().long().bincount(minlength=len(self.table.names) + 1) for i in range(len(birds))
        ]
        self.pixels = torch.stack(pixels)  # of each part, and of none before them, in each picture
        self.is_clear = [self._shows_what_tells(index) for index in range(len(birds))]

    # --- One picture

    def mask(self, index: int) -> torch.Tensor:
        mask = self.birds[index].mask
        assert mask is not None
        return mask

    def _shows_what_tells(self, index: int) -> bool:
        """Whether a picture shows the mark of its species or, where that has none, all the places of others' marks."""
        name = self.birds.names[self.birds.labels[index]]
        marks = self.table.marks(name)
        return all(self.visible(index, part) for part in marks or self.table.distinguishing(name))

    def visible(self, index: int, part: str) -> bool:
        """Whether a picture shows enough of a part."""
        pixels = self.pixels[:, self.table.names.index(part) + 1]
        return int(pixels[index]) > CLEARLY_VISIBLE * int(pixels.median())

    def seen(self, picture: Image.Image, mask: torch.Tensor, label: int, count: int = TOP_MAPS) -> View:
        """A picture, of which `mask` `(H, W)` shows the parts, through the eyes of a species."""
        explanation = self.traits(picture, classes=[label], top_traits=count)[0]
        species = self.species[label]
        maps = [self._trait(trait, mask, species) for trait in explanation["traits"]]
        return View(picture, species, explanation["score"], maps, explanation)

    def view(self, index: int, label: int | None = None, count: int = TOP_MAPS) -> View:
        """A test picture through the eyes of its own species, or of another."""
        label = self.birds.labels[index] if label is None else label
        return self.seen(self.birds.photographs.photograph(index), self.mask(index), label, count)

    def _trait(self, trait: dict[str, Any], mask: torch.Tensor, species: Species) -> Trait:
        (height, width), (rows, columns) = mask.shape, trait["map"].shape
        row, column = divmod(int(trait["map"].argmax()), columns)
        patch = mask[
            row * height // rows : math.ceil((row + 1) * height / rows),
            column * width // columns : math.ceil((column + 1) * width / columns),
        ]
        part, role = self._at(patch, species)
        peak = 100 * (column + 0.5) / columns, 100 * (row + 0.5) / rows
        return Trait(trait["head"], trait["heatmap"], peak, part, role)

    def _at(self, patch: torch.Tensor, species: Species) -> tuple[str | None, str]:
        """What a patch of a mask shows: as `pointing_game` counts it, a part that matters if it shows some of that."""
        size = {part: int(part_region(patch, self.table, [part]).sum()) for part in self.table.names}
        marks, telling = self.table.marks(species.name), self.table.distinguishing(species.name)
        for role, parts in (("mark", marks), ("telling", telling), ("other", self.table.names)):
            part = max(sorted(parts), key=lambda part: size[part], default=None)
            if part is not None and size[part]:
                return part, role
        return None, "beside"

    # --- Examples

    def recognised(self, first_family: int = 0) -> list[int]:
        """The test pictures that are classified correctly: first those that show what tells their species, one
        family after the other."""
        found = [index for index, label in enumerate(self.birds.labels) if self.predicted[index] == label]
        shift = {family: (i - first_family) % len(self.families) for i, family in enumerate(self.families)}
        return sorted(found, key=lambda i: (not self.is_clear[i], shift[self.species[self.birds.labels[i]].family]))

    def relatives(self, label: int) -> list[int]:
        """The labels of a species' look-alikes, of which those come first that have a mark, and on another part."""
        name, names = self.birds.names[label], self.birds.names
        others = {names.index(other): self.table.marks(other) for other in self.table.look_alikes(name)}
        return sorted(
            others, key=lambda other: not others[other] or not others[other].isdisjoint(self.table.marks(name))
        )

    def members(self) -> dict[str, list[Member]]:
        """All species, by family."""
        by_family: dict[str, list[Member]] = {family: [] for family in self.families}
        recognised = self.recognised()
        for species in make_species(len(self.species)):
            label = self.species.index(species)
            own = [index for index in recognised if self.birds.labels[index] == label]
            count = self.birds.labels.count(label)
            by_family[species.family].append(Member(species, count, len(own), self.view(own[0]) if own else None))
        return by_family

    def pair(self) -> tuple[View, View] | None:
        """The same scene drawn as either of two look-alikes, both classified correctly."""
        for index in self.recognised():
            label = self.birds.labels[index]
            for other in self.relatives(label):
                path, size = self.birds.paths[index], self.birds.photographs.photograph(index).width
                scenes = {
                    kind: drawn(path, self.species[kind], self.seed, len(self.species), size) for kind in (label, other)
                }
                if all(self._taken_for(picture)[0] == kind for kind, (picture, _) in scenes.items()):
                    first, second = (self.seen(picture, mask, kind) for kind, (picture, mask) in scenes.items())
                    return first, second
        return None

    def other_eyes(self) -> tuple[View, View] | None:
        """A test picture through the eyes of its species, and of a look-alike."""
        for index in self.recognised(first_family=1):
            for other in self.relatives(self.birds.labels[index])[:1]:
                return self.view(index), self.view(index, other)
        return None

    def intervention(self) -> list[Scene]:
        """A test picture as it is, without its mark, without the largest part that tells nothing, and with what a
        look-alike has instead. If there is one, a picture of which the class is lost with the mark; nothing at all if
        no picture was drawn like this."""
        assert self.birds.part_folder is not None
        found: list[Scene] = []
        for index in self.recognised(first_family=2):
            label = self.birds.labels[index]
            species, path = self.species[label], self.birds.paths[index]
            without, swapped = self.birds.part_folder.without(path), self.birds.part_folder.swapped(path)
            marks = [part for part in self.table.marks(species.name) if part in without and self.visible(index, part)]
            if not marks or not swapped:
                continue
            other = next(kind for kind in self.relatives(label) if self.species[kind].name in swapped)
            files = {"as it is": path, f"without its {words(marks[0])}": without[marks[0]]}
            if plain := without.keys() - self.table.distinguishing(species.name):
                mask = self.mask(index)
                largest = max(sorted(plain), key=lambda part: int(part_region(mask, self.table, [part]).sum()))
                files[f"without its {words(largest)}"] = without[largest]
            differing = self.table.differing(species.name, self.species[other].name)
            looks = [look(self.species[other], part) for part in self.table.names if part in differing]
            files[f"with {listed(looks)}"] = swapped[self.species[other].name]
            scenes = [self._scene(load_photograph(file), what, [label, other]) for what, file in files.items()]
            if scenes[1].taken_for is not species:
                return scenes
            found = found or scenes
        return found

    def _scene(self, picture: Image.Image, what: str, labels: list[int]) -> Scene:
        scores = {row["label"]: row["score"] for row in self.traits(picture, classes=labels, heatmaps=False)}
        shown = [(self.species[label], scores[self.species[label].name]) for label in labels]
        label, probability = self._taken_for(picture)
        return Scene(picture, what, self.species[label], probability, shown)

    def _taken_for(self, picture: Image.Image) -> tuple[int, float]:
        """What a picture is classified as, and how probable that is."""
        best = self.traits(picture, top_k=1, heatmaps=False)[0]
        return self.birds.names.index(best["label"]), best["score"]

    def mistakes(self) -> list[Mistake]:
        """The test pictures that are misclassified, the surest first."""
        wrong = [index for index, label in enumerate(self.birds.labels) if self.predicted[index] != label]
        wrong.sort(key=lambda index: -self.confidence[index])
        return [
            Mistake(
                self.view(index, count=1), self.view(index, self.predicted[index], count=1), not self.is_clear[index]
            )
            for index in wrong[:SHOWN_MISTAKES]
        ]


def drawn(path: Path, species: Species, seed: int, num_classes: int, size: int) -> tuple[Image.Image, torch.Tensor]:
    """The scene of a test picture that `write_image_folder` wrote, drawn as a bird of any species, and the mask `(size,
    size)` of its parts. `seed`, `num_classes` and `size` are those that it was written with."""
    names = [kind.name for kind in make_species(num_classes)]
    scene = scene_seed(seed, "test", names.index(path.parent.name), int(path.stem))
    picture, masks = draw_bird(species, scene, size)
    return picture, torch.from_numpy(np.array(mask_image(masks)))


# --- Words ------------------------------------------------------------------------------------------------------------


def species_name(species: Species) -> str:
    """Amber_crowned_Mountain_Finch -> Amber-crowned Mountain Finch."""
    title = species.name.removesuffix(f"_{species.family}")
    return f"{title.replace('_', '-')} {words(species.family)}"


def words(part: str) -> str:
    return part.replace("_", " ")


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("ch", "sh", "s")) else "s")


def look(species: Species, part: str, other: Species | None = None) -> str:
    """How a part looks, such as "amber crown", or "no wing bar" where it has the colour of what it lies on. The shape
    is told where another species has a different one."""
    colour, shape = species.colours[part], species.shapes[part]
    if part in UNMARKED and colour == species.colours[UNMARKED[part]]:
        return f"no {words(part)}"
    is_told = shape and other is not None and shape != other.shapes[part]
    return f"{colour} {words(part)}" + (f" ({shape})" if is_told else "")


def listed(phrases: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(phrases[:-1]), *phrases[-1:]]))


def percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


# --- Page -------------------------------------------------------------------------------------------------------------


def write_page(
    page: Path,
    sheets: Path,
    traits: PromptCamPipeline,
    birds: TraitData,
    predictions: Predictions,
    results: Mapping[str, Any],
) -> None:
    """
    Write the page, and contact sheets of what it shows.

    Args:
        page: File of the page. Pictures are in it, so that it needs no other file, and no network.
        sheets: Folder for `traits.png` (a picture of each species), `look_alikes.png` and `other_eyes.png`.
        traits, birds, predictions: As for `Album`.
        results: What `demo` returns, but for the times.

    Raises:
        OSError: If something cannot be written.
    """
    album = Album(traits, birds, predictions, results["options"]["seed"])
    members, pair, other_eyes = album.members(), album.pair(), album.other_eyes()
    shown = [member.view for family in members.values() for member in family if member.view is not None]

    def value(path: str) -> Any:
        """A figure of the results, by the keys that lead to it; None if it was not measured."""
        return reduce(getitem, path.split("."), results)

    def figure(path: str, form: str = "percent") -> Markup:
        number = value(path)
        shown = "not measured" if number is None else percent(number) if form == "percent" else format(number, form)
        return Markup('<data value="{}" data-figure="{}">{}</data>').format(number, path, shown)

    def tells(species: Species) -> list[tuple[str, str | None]]:
        """The marks of a species, as words and as a colour."""
        label = album.species.index(species)
        others = [album.species[other] for other in album.relatives(label)]
        found = []
        for part in album.table.names:
            if part in album.table.marks(species.name):
                other = next((kind for kind in others if kind.shapes[part] != species.shapes[part]), None)
                found.append((look(species, part, other), colour(species, part)))
        return found

    def differences(a: Species, b: Species) -> list[dict[str, Any]]:
        return [
            {"part": words(part), "looks": [(look(s, part, o), colour(s, part)) for s, o in ((a, b), (b, a))]}
            for part in album.table.names
            if part in album.table.differing(a.name, b.name)
        ]

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "name": species_name,
        "words": words,
        "percent": percent,
        "plural": plural,
        "listed": listed,
    }
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        results=results,
        figure=figure,
        value=value,
        tells=tells,
        differences=differences,
        source=data_uri,
        gradient=[f"rgb{tuple(map(int, COLOUR_MAP[step]))}" for step in range(0, 256, 15)],
        # To learn reading on, one that needs no further words
        first=next((view for view in shown if view.traits[0].role == "mark"), shown[0] if shown else None),
        families=members,
        pair=pair,
        other_eyes=other_eyes,
        scenes=album.intervention(),
        mistakes=album.mistakes(),
    )
    with write_files_atomically(sheets) as draft:
        for file, views in (("traits.png", shown), ("look_alikes.png", pair), ("other_eyes.png", other_eyes)):
            if views:
                stacked([contact_sheet(view.picture, [view.explanation]) for view in views]).save(draft / file)
    write_atomically(page, text)


def colour(species: Species, part: str) -> str | None:
    """The colour of a part, as style sheets write it; None where the species has no such mark."""
    if look(species, part).startswith("no "):
        return None
    return "#{:02x}{:02x}{:02x}".format(*COLOURS[species.colours[part]])


def data_uri(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    content = BytesIO()
    picture.save(content, "jpeg", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
