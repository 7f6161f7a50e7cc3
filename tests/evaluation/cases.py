"""Predictions, images and explainers for which the right answer is known."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.parts import PartTable
from promptcam_hf.evaluation.prediction import Predictions
from promptcam_hf.evaluation.trait_data import load_trait_data

from ..tiny_models import IMAGE_SIZE

# Images of 32 x 32 pixels on a grid of 4 x 4 patches. Classes differ only in the colour of the crown.
SIZE, GRID, PATCH = IMAGE_SIZE, 4, 8
CLASSES, NAMES = ("red", "blue"), ("red", "blue", "neither")  # of the images and of the models
COLOURS = {"red": (250, 0, 0), "blue": (0, 0, 250)}
BOXES = {
    "crown": (8, 0, 16, 8),
    "wing": (8, 8, 16, 16),
    "tail": (0, 8, 8, 16),
    "legs": (8, 24, 24, 32),
    "leaf": (24, 24, 32, 32),
}
GREY = (128, 128, 128)  # almost zero after normalisation
TABLE = PartTable(tuple(BOXES), {name: {"crown": name} for name in CLASSES}, {}, frozenset({"leaf"}))


def predicted(labels: list[int], top_classes: list[list[int]], confidence: list[float]) -> Predictions:
    losses = torch.arange(1, len(labels) + 1, dtype=torch.float64)
    confidences = torch.tensor(confidence, dtype=torch.float64)
    return Predictions(torch.tensor(labels), losses, torch.tensor(top_classes), confidences, confidences)


def equal(a: Predictions, b: Predictions) -> bool:
    return all(torch.equal(vars(a)[name], vars(b)[name]) for name in vars(a))


def table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# --- Images with parts ------------------------------------------------------------------------------------------------


def scene(crown: tuple[int, int, int], without: str | None = None) -> Image.Image:
    """Parts on grey: the crown in a colour, the others green."""
    image = Image.new("RGB", (SIZE, SIZE), GREY)
    for part, box in BOXES.items():
        if part != without:
            image.paste(crown if part == "crown" else (0, 200, 0), box)
    return image


def mask_image(hidden: str | None = None) -> Image.Image:
    mask = Image.new("L", (SIZE, SIZE))
    for value, (part, box) in enumerate(BOXES.items(), start=1):
        if part != hidden:
            mask.paste(value, box)
    return mask


def save_scene(root: Path) -> Path:
    """A folder for FunnyBirds' scores with one scene of class 0: grey, with a red beak at the place of the crown, a
    green wing, and an object in a corner."""
    folder = root / "species_00" / "scene_00_0"
    folder.mkdir(parents=True)
    boxes = {"beak": BOXES["crown"], "wing": BOXES["wing"]}
    colours = {"beak": COLOURS["red"], "wing": (0, 200, 0)}

    def draw(kept: Iterable[str], has_object: bool = True) -> Image.Image:
        image = Image.new("RGB", (SIZE, SIZE), GREY)
        for part in kept:
            image.paste(colours[part], boxes[part])
        if has_object:
            image.paste((200, 200, 200), BOXES["leaf"])
        return image

    for letters, kept in (("b", ["beak"]), ("w", ["wing"]), ("none", [])):
        draw(kept).save(folder / f"keep_{letters}.jpg", quality=95)
    draw(boxes).save(folder / "full.jpg", quality=95)
    draw(boxes, has_object=False).save(folder / "no_object_1.jpg", quality=95)
    parts, objects = Image.new("L", (SIZE, SIZE)), Image.new("L", (SIZE, SIZE))
    parts.paste(2, boxes["beak"])
    parts.paste(3, boxes["wing"])
    objects.paste(1, BOXES["leaf"])
    parts.save(folder / "parts.png")
    objects.save(folder / "objects.png")
    row = {"class": 0, "folder": "species_00/scene_00_0", "parts": {"beak": 0, "wing": 1}}
    row |= {"object_pixels": [64, 0], "target_sensitivity": None}
    (root / "scenes.jsonl").write_text(json.dumps(row) + "\n")
    return root


class Watcher:
    """An explainer that classifies an image as red, blue or neither by the colour of one patch (row, column), and whose
    first map points at a patch."""

    name = "Watcher"

    def __init__(self, looks_at: tuple[int, int] = (0, 1), decides_by: tuple[int, int] = (0, 1), num_maps: int = 4):
        self.looks_at, self.num_maps = looks_at, num_maps
        self.row, self.column = (slice(PATCH * place, PATCH * (place + 1)) for place in decides_by)
        self.explained: list[torch.Tensor] = []

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        red, _, blue = pixel_values[..., self.row, self.column].mean((-2, -1)).T
        return torch.stack([2 * red, 2 * blue, torch.ones_like(red)], dim=1)

    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        self.explained += list(pixel_values)
        maps = torch.zeros(len(pixel_values), self.num_maps, GRID, GRID)
        row, column = self.looks_at
        maps[:, 0, row, column] = 1.0
        return maps


class WideWatcher(Watcher):
    """The same for images that `widen` has changed, padded to a square: the rows of patches 1 and 2 show them."""

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().logits(pixel_values[..., PATCH:-PATCH, :].repeat_interleave(2, dim=-2))


def widen(*images: Path) -> None:
    """Make images 8 times as wide and 4 times as high."""
    for file in images:
        with Image.open(file) as image:
            image.resize((8 * image.width, 4 * image.height), Image.Resampling.NEAREST).save(file)


def trait_data(folder, names=NAMES, size=SIZE):
    return load_trait_data(folder, names, new_image_processor(size))
