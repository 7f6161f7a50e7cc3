"""What the page of `promptcam demo` shows: the demo's test pictures, what the model makes of them, and examples.

No example is picked by hand. Each is the first test picture on which there is something to see.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..evaluation.explainers import TOP_MAPS
from ..evaluation.prediction import Predictions
from ..evaluation.trait_data import TraitData
from ..evaluation.trait_metrics import part_region
from ..modeling import PromptCamPipeline
from ..modeling.images_promptcam import load_photograph
from .dataset import scene_seed
from .drawing import draw_bird, mask_image
from .species import Species, make_species

SHOWN_MISTAKES = 6
CLEARLY_VISIBLE = 0.5  # of the number of pixels that a part has in the median picture


@dataclass(frozen=True)
class Trait:
    """
    A trait map, and what is at its peak.

    Args:
        head: The attention head, from 0.
        heatmap: The map drawn over its picture.
        peak: Centre of the patch with the largest value: x and y in percent of width and height.
        part: The part of the bird in that patch, or None if there is none.
        role: What the part says about the species: its "mark", "distinguishing" (from some look-alikes), "shared" (by
            the whole family), or "background" if there is no part.
    """

    head: int
    heatmap: Image.Image
    peak: tuple[float, float]
    part: str | None
    role: str


@dataclass(frozen=True)
class View:
    """A picture explained as one species, right or wrong. The most important trait is first; `explanation` is what the
    pipeline returned."""

    picture: Image.Image
    species: Species
    probability: float
    traits: list[Trait]
    explanation: dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """
    A scene, perhaps with one change, and how it is classified.

    Args:
        picture: The scene.
        predicted: The most probable species.
        probability: Its probability.
        probabilities: Of the true species, then of a look-alike.
        without: The part that is left out, if any.
        given: The parts that the bird has from the look-alike, if any.
    """

    picture: Image.Image
    predicted: Species
    probability: float
    probabilities: list[tuple[Species, float]]
    without: str | None = None
    given: Collection[str] = ()


@dataclass(frozen=True)
class Member:
    """A species: the number of its test pictures, how many are classified correctly, and one of these, if any."""

    species: Species
    images: int
    correct: int
    view: View | None


@dataclass(frozen=True)
class Mistake:
    """A misclassified test picture, explained as its true and as the predicted species."""

    true: View
    predicted: View
    hides_mark: bool


class Album:
    """
    The test pictures and the examples among them.

    Args:
        pipe: The model.
        birds: The test pictures, as `write_image_folder` writes them.
        predictions: The model's predictions for them.
        seed: The seed they were drawn with.
    """

    def __init__(self, pipe: PromptCamPipeline, birds: TraitData, predictions: Predictions, seed: int):
        assert birds.table is not None
        self.pipe, self.birds, self.table, self.predictions, self.seed = pipe, birds, birds.table, predictions, seed
        by_name = {species.name: species for species in make_species(len(birds.names))}
        self.species = [by_name[name] for name in birds.names]  # in the order of the labels
        self.families = list(dict.fromkeys(species.family for species in by_name.values()))
        self.predicted = predictions.top_classes[:, 0].tolist()
        bins = len(self.table.names) + 1  # the background comes first
        self.pixels = torch.stack([self._mask(i).flatten().long().bincount(minlength=bins) for i in range(len(birds))])
        self.is_clear = [self._is_clear(index) for index in range(len(birds))]

    # --- One picture

    def view(self, index: int, label: int | None = None, count: int = TOP_MAPS) -> View:
        """A test picture explained by its `count` most important traits, as its own species or as another one."""
        label = self.birds.labels[index] if label is None else label
        return self._explain(self.birds.photographs.photograph(index), self._mask(index), label, count)

    def _explain(self, picture: Image.Image, mask: torch.Tensor, label: int, count: int = TOP_MAPS) -> View:
        explanation = self.pipe(picture, classes=[label], top_traits=count)[0]
        species = self.species[label]
        traits = [self._trait(trait, mask, species) for trait in explanation["traits"]]
        return View(picture, species, explanation["score"], traits, explanation)

    def _trait(self, trait: dict[str, Any], mask: torch.Tensor, species: Species) -> Trait:
        (height, width), (rows, columns) = mask.shape, trait["map"].shape
        row, column = divmod(int(trait["map"].argmax()), columns)
        patch = mask[
            row * height // rows : math.ceil((row + 1) * height / rows),
            column * width // columns : math.ceil((column + 1) * width / columns),
        ]
        part, role = self._part_in(patch, species)
        peak = 100 * (column + 0.5) / columns, 100 * (row + 0.5) / rows
        return Trait(trait["head"], trait["heatmap"], peak, part, role)

    def _part_in(self, patch: torch.Tensor, species: Species) -> tuple[str | None, str]:
        """The part in a patch of a mask, and its role. As for the metric "pointing", even a pixel of a mark counts."""
        size = {part: int(part_region(patch, self.table, [part]).sum()) for part in self.table.names}
        marks, distinguishing = self.table.marks(species.name), self.table.distinguishing(species.name)
        for role, parts in (("mark", marks), ("distinguishing", distinguishing), ("shared", self.table.names)):
            part = max(sorted(parts), key=lambda part: size[part], default=None)
            if part is not None and size[part]:
                return part, role
        return None, "background"

    def _mask(self, index: int) -> torch.Tensor:
        mask = self.birds[index].mask
        assert mask is not None
        return mask

    def _is_clear(self, index: int) -> bool:
        """Whether a picture shows the mark of its species or, for a species without one, every place where a look-alike
        has one."""
        name = self.birds.names[self.birds.labels[index]]
        return all(self._shows(index, part) for part in self.table.marks(name) or self.table.distinguishing(name))

    def _shows(self, index: int, part: str) -> bool:
        pixels = self.pixels[:, self.table.names.index(part) + 1]
        return int(pixels[index]) > CLEARLY_VISIBLE * int(pixels.median())

    def _classify(self, picture: Image.Image) -> tuple[int, float]:
        """The most probable class of a picture, and its probability."""
        best = self.pipe(picture, top_k=1, heatmaps=False)[0]
        return self.birds.names.index(best["label"]), best["score"]

    # --- Examples

    def correct(self, first_family: int = 0) -> list[int]:
        """The correctly classified test pictures: the clear ones first, ordered by family, from `first_family` on."""
        found = [index for index, label in enumerate(self.birds.labels) if self.predicted[index] == label]
        place = {family: (i - first_family) % len(self.families) for i, family in enumerate(self.families)}
        return sorted(found, key=lambda i: (not self.is_clear[i], place[self.species[self.birds.labels[i]].family]))

    def look_alikes(self, label: int) -> list[int]:
        """The labels of a species' look-alikes. Those that have a mark, and on another part, come first."""
        name, names = self.birds.names[label], self.birds.names
        marks = {names.index(other): self.table.marks(other) for other in self.table.look_alikes(name)}
        return sorted(marks, key=lambda other: not marks[other] or not marks[other].isdisjoint(self.table.marks(name)))

    def members(self) -> dict[str, list[Member]]:
        """All species, by family."""
        by_family: dict[str, list[Member]] = {family: [] for family in self.families}
        correct = self.correct()
        for species in make_species(len(self.species)):
            label = self.species.index(species)
            own = [index for index in correct if self.birds.labels[index] == label]
            count = self.birds.labels.count(label)
            by_family[species.family].append(Member(species, count, len(own), self.view(own[0]) if own else None))
        return by_family

    def pair(self) -> tuple[View, View] | None:
        """The same scene drawn as two look-alikes, both classified correctly."""
        for index in self.correct():
            label = self.birds.labels[index]
            path, size = self.birds.paths[index], self.birds.photographs.photograph(index).width
            for pair in ((label, other) for other in self.look_alikes(label)):
                scenes = [redraw(path, self.species[kind], self.seed, len(self.species), size) for kind in pair]
                if all(self._classify(scene[0])[0] == kind for scene, kind in zip(scenes, pair, strict=True)):
                    first, second = (self._explain(*scene, kind) for scene, kind in zip(scenes, pair, strict=True))
                    return first, second
        return None

    def other_eyes(self) -> tuple[View, View] | None:
        """A test picture explained as its own species, and as a look-alike."""
        for index in self.correct(first_family=1):
            for other in self.look_alikes(self.birds.labels[index])[:1]:
                return self.view(index), self.view(index, other)
        return None

    def interventions(self) -> list[Scene]:
        """A test picture as it is, without its mark, without the largest part that the whole family shares, and with
        the parts of a look-alike; preferably one that is misclassified without its mark. Empty if there is none."""
        assert self.birds.part_folder is not None
        found: list[Scene] = []
        for index in self.correct(first_family=2):
            label, path = self.birds.labels[index], self.birds.paths[index]
            name = self.birds.names[label]
            without, swapped = self.birds.part_folder.without(path), self.birds.part_folder.swapped(path)
            marks = [part for part in self.table.marks(name) if part in without and self._shows(index, part)]
            if not marks or not swapped:
                continue
            other = next(kind for kind in self.look_alikes(label) if self.birds.names[kind] in swapped)
            scenes = [self._scene(path, label, other), self._scene(without[marks[0]], label, other, without=marks[0])]
            if shared := without.keys() - self.table.distinguishing(name):
                mask = self._mask(index)
                largest = max(sorted(shared), key=lambda part: int(part_region(mask, self.table, [part]).sum()))
                scenes.append(self._scene(without[largest], label, other, without=largest))
            given = self.table.differing(name, self.birds.names[other])
            scenes.append(self._scene(swapped[self.birds.names[other]], label, other, given=given))
            if scenes[1].predicted.name != name:
                return scenes
            found = found or scenes
        return found

    def _scene(self, file: Path, label: int, other: int, **change: Any) -> Scene:
        picture = load_photograph(file)
        scores = {row["label"]: row["score"] for row in self.pipe(picture, classes=[label, other], heatmaps=False)}
        probabilities = [(self.species[kind], scores[self.birds.names[kind]]) for kind in (label, other)]
        predicted, probability = self._classify(picture)
        return Scene(picture, self.species[predicted], probability, probabilities, **change)

    def mistakes(self) -> list[Mistake]:
        """The misclassified test pictures, the most confident mistakes first."""
        wrong = [index for index, label in enumerate(self.birds.labels) if self.predicted[index] != label]
        wrong.sort(key=lambda index: -self.predictions.confidence[index].item())
        return [
            Mistake(
                self.view(index, count=1), self.view(index, self.predicted[index], count=1), not self.is_clear[index]
            )
            for index in wrong[:SHOWN_MISTAKES]
        ]


def redraw(path: Path, species: Species, seed: int, num_classes: int, size: int) -> tuple[Image.Image, torch.Tensor]:
    """
    The scene of a test picture, drawn with a bird of any species.

    Args:
        path: The test picture, as `write_image_folder` named it.
        species: The species to draw.
        seed, num_classes, size: What the picture was written with.

    Returns:
        The picture, and the mask `(size, size)` of its parts, uint8.
    """
    names = [kind.name for kind in make_species(num_classes)]
    scene = scene_seed(seed, "test", names.index(path.parent.name), int(path.stem))
    picture, masks = draw_bird(species, scene, size)
    return picture, torch.from_numpy(np.array(mask_image(masks)))
