"""Do the maps show traits? Figures on test images of which it is known what tells their class from its look-alikes.

Any classifier that can say where it looks is an `Explainer`. Its maps are asked, of correctly classified images:

- Pointing: does their peak lie on a part that tells the class from others?
- Mass: how much of them lies there, how much on the rest of the animal, how much beside it?
- Interventions (as in FunnyBirds; Hesse et al., ICCV 2023): does it matter to the class if such a part is removed, and
  does it not if another one is? Is a part that matters more also looked at more?

and of any image, without knowing its parts:

- Faithfulness (RISE; Petsiuk et al., BMVC 2018; Table 1 of Prompt-CAM's paper): does the class's probability fall fast
  where the pixels that are looked at go first, and rise fast where they come first?

Shapes: B images of H x W pixels, C classes, M maps on a grid of h x w patches.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, conv2d, interpolate, pad
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from .data import EvaluationTransform, Photographs, load_splits
from .evaluation import with_labels_of
from .modeling import PromptCamForImageClassification
from .options import EVALUATION_BATCH_SIZE
from .parts import PARTS_FILE, PartTable, read_mask

TOP_MAPS = 4  # the maps that are taken together
FAITHFULNESS_IMAGES, FAITHFULNESS_STEPS = 200, 20

# --- Explainers -------------------------------------------------------------------------------------------------------


class Explainer(Protocol):
    """A classifier, and a way of saying where it looks. Images come from the CPU; results may be on any device."""

    name: str

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Scores `(B, C)` of images `(B, 3, H, W)`."""
        ...

    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """For images `(B, 3, H, W)`, each seen as a class of `(B,)`, maps `(B, M, h, w)`, 0 or more, the most important
        first. M is 1 for a method that has one map."""
        ...


class PromptCamExplainer:
    """The heads of a Prompt-CAM, the most important first, as `rank_heads` has them; the model is put in evaluation
    mode."""

    name = "Prompt-CAM"

    def __init__(self, model: PromptCamForImageClassification):
        self.model = model.eval()
        size = model.config.backbone_config.image_size
        self.native_size = (size, size) if isinstance(size, int) else tuple(size)

    @torch.no_grad()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values.to(self.model.device), **self._any_size(pixel_values)).logits

    @torch.no_grad()
    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        device = self.model.device
        ranking = self.model.rank_heads(pixel_values.to(device), classes.to(device), **self._any_size(pixel_values))
        maps, order = ranking.trait_maps, ranking.order  # (B, heads, h, w), (B, heads)
        return maps.gather(1, order[..., None, None].expand_as(maps))

    def _any_size(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        other_size = tuple(pixel_values.shape[-2:]) != self.native_size  # as in the pipeline
        return {"interpolate_pos_encoding": other_size or None}


# --- Data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TraitImage:
    """
    A test image and what is known of it.

    Args:
        pixel_values: `(3, H, W)` float32, as the image processor gives it.
        label: Its class, as the model counts.
        mask: `(H, W)` uint8: the part that a pixel shows, 0 for none; or None where the data have no masks.
    """

    pixel_values: torch.Tensor
    label: int
    mask: torch.Tensor | None


class TraitData(Sequence):
    """
    Test images, with masks of their parts and the same scenes drawn otherwise, where the data have them.

    Args:
        photographs: Rows of `pixel_values` and `labels`, labels as the model counts.
        names: The model's classes, in the order of its labels.
        folder: A folder as `promptcam_hf.parts` describes it, whose `test/` the photographs are. Default: no parts.

    Raises:
        ValueError: If the folder lacks masks of the photographs, or its `parts.json` does not know their classes.
    """

    def __init__(self, photographs: Photographs, names: Sequence[str], folder: str | os.PathLike | None = None):
        self.photographs = photographs
        self.names = list(names)
        self.labels: list[int] = list(photographs.split["label"])
        self.folder = None if folder is None else Path(folder)
        self.table = None if folder is None else PartTable.load(folder)
        if self.folder is not None and self.table is not None:
            self._scenes = [_scene(image["path"]) for image in photographs.split["image"]]
            self._without = _versions(self.folder / "test_without", self.table.names, "part")
            self._swapped = _versions(self.folder / "test_swapped", tuple(self.table.looks), "class")
            self._check(self.table)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> TraitImage:
        photograph, label = self.photographs.example(index)
        pixel_values = self.photographs.transform(photograph)
        mask = None if self.table is None else self._mask(index, photograph, pixel_values, self.table)
        return TraitImage(pixel_values, label, mask)

    def without(self, index: int) -> dict[str, torch.Tensor]:
        """Part -> `pixel_values` of the scene without it, for each part that the folder has it for."""
        return self._read(self._without, index) if self.table is not None else {}

    def swapped(self, index: int) -> dict[int, torch.Tensor]:
        """Another class of the model's -> `pixel_values` of the scene with the parts that differ drawn as there."""
        found = self._read(self._swapped, index) if self.table is not None else {}
        return {self.names.index(name): pixels for name, pixels in found.items() if name in self.names}

    def _read(self, versions: Mapping[str, Path], index: int) -> dict[str, torch.Tensor]:
        files = {name: folder / self._scenes[index] for name, folder in versions.items()}
        return {
            name: self.photographs.transform(Image.open(file).convert("RGB"))
            for name, file in files.items()
            if file.exists()
        }

    def _mask(self, index: int, photograph: Image.Image, pixel_values: torch.Tensor, table: PartTable) -> torch.Tensor:
        file = self.folder / "test_parts" / self._scenes[index]  # type: ignore[operator]
        values = read_mask(file)
        if values.shape[::-1] != photograph.size:
            given, expected = (f"{width} x {height}" for width, height in (values.shape[::-1], photograph.size))
            raise ValueError(f"{file}: a mask of {given} pixels; expected {expected}, the size of its image.")
        if values.max(initial=0) > len(table.names):
            raise ValueError(f"{file}: it has the value {values.max()}; {PARTS_FILE} names {len(table.names)} parts.")
        height, width = pixel_values.shape[-2:]  # the image processor ignores the aspect, and so do we
        return torch.from_numpy(np.array(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)))

    def _check(self, table: PartTable) -> None:
        folder = self.folder / "test_parts"  # type: ignore[operator]
        if missing := [scene for scene in self._scenes if not (folder / scene).is_file()]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{folder / missing[0]}{more}: no such mask; expected one for every test image.")
        if unknown := sorted({self.names[label] for label in self.labels} - table.looks.keys()):
            raise ValueError(
                f"{self.folder / PARTS_FILE} has no class {unknown[0]!r}; expected all of the test images."
            )


def load_trait_data(folder: str | os.PathLike, names: Sequence[str], image_processor: BaseImageProcessor) -> TraitData:
    """
    The test images of a data set and, if it is a folder with `parts.json`, what is known of their parts.

    Args:
        folder: The data, as for `promptcam evaluate`.
        names: The model's classes, in the order of its labels.
        image_processor: The model's.

    Raises:
        ValueError: If the data cannot be read, have a class that the model lacks, or masks are missing.
    """
    splits = load_splits(folder, training=False)
    split = with_labels_of(names, splits.evaluation, splits.names, folder)
    photographs = Photographs(split, EvaluationTransform(image_processor))
    return TraitData(photographs, names, folder if has_parts(folder) else None)


def has_parts(folder: str | os.PathLike) -> bool:
    """Whether data are a folder whose parts are known."""
    return (Path(folder) / PARTS_FILE).is_file()


def _scene(path: str) -> Path:
    """What the other files of a test image are called in their folders."""
    return Path(*Path(path).parts[-2:]).with_suffix(".png")


def _versions(folder: Path, names: Sequence[str], what: str) -> dict[str, Path]:
    found = {path.name: path for path in sorted(folder.glob("*")) if path.is_dir()}
    if unknown := sorted(found.keys() - set(names)):
        raise ValueError(f"{found[unknown[0]]}: {PARTS_FILE} has no {what} of this name.")
    return found


# --- Where maps lie ---------------------------------------------------------------------------------------------------


def where(mask: torch.Tensor, table: PartTable, parts: Iterable[str]) -> torch.Tensor:
    """The pixels `(H, W)`, bool, of a mask `(H, W)` that show one of these parts."""
    return torch.isin(mask, torch.tensor([table.names.index(part) + 1 for part in parts], dtype=mask.dtype))


def grown(region: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    At the centres of which patches `(h, w)`, bool, a region `(H, W)`, bool, grown by half a patch to all sides, lies:
    which is to say, which patches show some of it.
    """
    return adaptive_max_pool2d(region[None, None].float(), grid)[0, 0] > 0


def share(region: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Which share `(h, w)`, in [0, 1], of each patch's pixels a region `(H, W)`, bool, takes."""
    return adaptive_avg_pool2d(region[None, None].double(), grid)[0, 0]


def mass(attention: torch.Tensor, region: torch.Tensor) -> float:
    """
    Which share, in [0, 1], of a map `(h, w)`, 0 or more, lies in a region `(H, W)`, bool: a patch's value is spread
    evenly over its pixels. A map of zeros is taken for one that looks everywhere alike.
    """
    attention = attention.double() if attention.sum() > 0 else torch.ones_like(attention, dtype=torch.float64)
    return float((attention / attention.sum() * share(region, tuple(attention.shape))).sum())  # type: ignore[arg-type]


POINTING = ("top1", "top4", "top4_sum", "chance", "chance_top4", "chance_on_animal")


def pointing(maps: torch.Tensor, region: torch.Tensor, animal: torch.Tensor) -> dict[str, float]:
    """
    Whether maps peak in a region, grown by half a patch.

    Args:
        maps: `(M, h, w)`, the most important first.
        region: `(H, W)`, bool.
        animal: `(H, W)`, bool: all of the animal.

    Returns:
        1 or 0: `top1`, whether the first map does; `top4`, whether one of the first four does; `top4_sum`, whether
        their sum does. Beside them, in [0, 1], how often chance would: `chance`, a patch drawn from all; `chance_top4`,
        one of four such draws (of M, if there are fewer maps); `chance_on_animal`, a patch drawn from those that show
        some of the animal. Empty if no pixel is of the region.
    """
    if not region.any():
        return {}
    top = maps[:TOP_MAPS]
    hit = grown(region, tuple(maps.shape[-2:]))  # type: ignore[arg-type]
    hits = hit.flatten()[top.flatten(1).argmax(-1)]
    chance = float(hit.double().mean())
    on_animal = hit & grown(animal, tuple(maps.shape[-2:]))  # type: ignore[arg-type]
    return {
        "top1": float(hits[0]),
        "top4": float(hits.any()),
        "top4_sum": float(hit.flatten()[top.sum(0).argmax()]),
        "chance": chance,
        "chance_top4": 1 - (1 - chance) ** len(top),
        "chance_on_animal": float(on_animal.sum() / grown(animal, tuple(maps.shape[-2:])).sum()),  # type: ignore
    }


# --- What matters -----------------------------------------------------------------------------------------------------


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation, in [-1, 1], of two sequences of equal length; of equal values each has the mean of their ranks.
    None if all values of one are equal."""
    ranks = [np.array([sum(y < x for y in row) + sum(y == x for y in row) / 2 for x in row]) for row in (a, b)]
    centred = [rank - rank.mean() for rank in ranks] if len(a) else []
    norm = math.sqrt(math.prod(float(rank @ rank) for rank in centred))
    return float(centred[0] @ centred[1]) / norm if len(a) and norm else None


REMOVAL = ("changed", "probability_fall")


def removal_effects(before: torch.Tensor, after: torch.Tensor, label: int) -> dict[str, torch.Tensor]:
    """
    What becomes of a class when something is removed from an image.

    Args:
        before: Scores `(C,)` of the image as it is, which is classified correctly.
        after: Scores `(n, C)` of n changed ones.
        label: The class.

    Returns:
        Of each changed one, `(n,)` float64: `changed`, 1 where another class is predicted or the class's probability is
        at most half of what it was, else 0; `probability_fall`, in [-1, 1]; `log_probability_fall`.
    """
    old, new = before.double().log_softmax(-1)[label], after.double().log_softmax(-1)[:, label]
    changed = (after.argmax(-1) != label) | (new <= old - math.log(2))
    return {
        "changed": changed.double(),
        "probability_fall": old.exp() - new.exp(),
        "log_probability_fall": old - new,
    }


# --- Faithfulness -----------------------------------------------------------------------------------------------------


def blurred(pixel_values: torch.Tensor) -> torch.Tensor:
    """Images `(B, 3, H, W)` with all detail gone: Gaussian blur, its standard deviation a twentieth of the shorter
    side."""
    sigma = min(pixel_values.shape[-2:]) / 20
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(pixel_values.shape[1], 1, 1, -1).to(pixel_values)
    rows = conv2d(pad(pixel_values, (reach, reach, 0, 0), "reflect"), kernel, groups=len(kernel))
    return conv2d(pad(rows, (0, 0, reach, reach), "reflect"), kernel.mT, groups=len(kernel))


def replacement_curve(
    logits: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    end: torch.Tensor,
    maps: torch.Tensor,
    classes: torch.Tensor,
    steps: int = FAITHFULNESS_STEPS,
) -> torch.Tensor:
    """
    How a class's probability goes as the pixels of one image take the place of another's, in the order of a map.

    Args:
        logits: Images `(B, 3, H, W)` -> scores `(B, C)`.
        start, end: Images `(B, 3, H, W)`.
        maps: `(B, h, w)`, brought to H x W bilinearly. The largest value goes first, of equals the first pixel.
        classes: `(B,)`.
        steps: In how many equal steps.

    Returns:
        Probabilities `(B, steps + 1)`, float64: first all of `start`, last all of `end`.
    """
    smooth = interpolate(maps[:, None].double(), start.shape[-2:], mode="bilinear")[:, 0]
    place = smooth.flatten(1).argsort(descending=True, stable=True).argsort().view_as(smooth)[:, None]
    num_pixels = place[0].numel()
    curve = []
    for step in range(steps + 1):
        mixed = torch.where(place < round(num_pixels * step / steps), end, start)
        curve.append(logits(mixed).cpu().double().softmax(-1).gather(1, classes[:, None])[:, 0])
    return torch.stack(curve, dim=1)


def deletion_curve(logits, pixel_values, maps, classes, steps: int = FAITHFULNESS_STEPS) -> torch.Tensor:
    """`replacement_curve` from the image to zeros, the mean colour: the lower, the better the map."""
    return replacement_curve(logits, pixel_values, torch.zeros_like(pixel_values), maps, classes, steps)


def insertion_curve(logits, pixel_values, maps, classes, steps: int = FAITHFULNESS_STEPS) -> torch.Tensor:
    """`replacement_curve` from the blurred image to the image: the higher, the better the map."""
    return replacement_curve(logits, blurred(pixel_values), pixel_values, maps, classes, steps)


def area_under(curve: torch.Tensor) -> torch.Tensor:
    """Area `(...)`, in [0, 1], under curves `(..., steps + 1)` over the unit interval."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


# --- All of it --------------------------------------------------------------------------------------------------------


def evaluate_traits(
    explainer: Explainer,
    data: TraitData,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    faithfulness_images: int = FAITHFULNESS_IMAGES,
    steps: int = FAITHFULNESS_STEPS,
    progress: bool = True,
) -> dict[str, Any]:
    """
    All figures of a classifier's maps, as JSON holds them. A figure that no image has is None.

    Args:
        explainer: The classifier and its maps.
        data: Test images. Where their parts are not known, there is `faithfulness` only.
        batch_size: Images to a forward pass.
        faithfulness_images: On how many images, evenly spread over the classes, to measure faithfulness; all, if there
            are fewer.
        steps: Of the insertion and deletion curves.
        progress: Whether to show a bar.

    Returns:
        `explainer`, `num_images`, and `faithfulness`: `num_images`, areas `insertion` and `deletion` and their mean
        curves, of the predicted class whether or not it is right. Where parts are known, of all correctly classified
        images (`num_correct`; each figure with the `num_images` that it is of), also:

        `pointing`: as in `pointing`, `at_distinguishing` parts (`PartTable.distinguishing`) and `at_marks`
        (`PartTable.marks`); images where none of them is visible are left out. `mass` of the sum of the first four
        maps: shares `on_distinguishing` parts, `on_rest_of_animal` and `on_background`, and the same shares of the
        image's pixels (`area_...`), which are what chance would have. `interventions`, in the parts of the animal that
        are visible, an image being the mean of its parts: as in `removal_effects`, for `removed_mark`, and
        `removed_other`, parts that do not tell the class from any look-alike; `swapped`: `taken_for_other`, how often
        the class is predicted whose parts were put in; `rank_agreement`: Spearman's correlation of the fall of the
        class's log-probability, as a part is removed, with that part's share of the attention, and with that share per
        pixel, over the parts of an image, where there are three or more.
    """
    if not len(data):
        raise ValueError("No images to evaluate; expected 1 or more.")
    results: dict[str, Any] = {"explainer": explainer.name, "num_images": len(data)}
    if data.table is not None:
        results |= _figures_of_parts(explainer, data, data.table, batch_size, progress)
    results["faithfulness"] = _faithfulness(explainer, data, batch_size, faithfulness_images, steps, progress)
    return results


def _figures_of_parts(
    explainer: Explainer, data: TraitData, table: PartTable, batch_size: int, progress: bool
) -> dict[str, Any]:
    found: dict[str, list[Mapping[str, float]]] = defaultdict(list)  # figures -> their values for each image
    for rows in _batches(range(len(data)), batch_size, "where it looks", progress):
        images = [data[row] for row in rows]
        pixel_values, labels = torch.stack([x.pixel_values for x in images]), torch.tensor([x.label for x in images])
        logits = _logits(explainer, pixel_values)
        right = (logits.argmax(-1) == labels).nonzero()[:, 0]
        if not len(right):
            continue
        all_maps = _maps(explainer, pixel_values[right], labels[right])
        for at, maps in zip(right.tolist(), all_maps, strict=True):
            mask: Any = images[at].mask
            for name, figures in _looks(maps, mask, table, data.names[images[at].label]).items():
                found[name].append(figures)
            others = _interventions(explainer, data, table, rows[at], images[at], logits[at], maps, batch_size)
            for name, figures in others.items():
                found[name].append(figures)
    return {
        "num_correct": len(found["mass"]),
        "pointing": {f"at_{kind}": _means(found[f"at_{kind}"], POINTING) for kind in ("distinguishing", "marks")},
        "mass": _means(found["mass"], MASS),
        "interventions": {
            "removed_mark": _means(found["removed_mark"], REMOVAL),
            "removed_other": _means(found["removed_other"], REMOVAL),
            "swapped": _means(found["swapped"], ("taken_for_other",)),
            "rank_agreement": _means(found["rank_agreement"], ("attention", "attention_per_pixel")),
        },
    }


_PLACES = ("distinguishing", "rest_of_animal", "background")
MASS = (*(f"on_{place}" for place in _PLACES), *(f"area_{place}" for place in _PLACES))


def _looks(maps: torch.Tensor, mask: torch.Tensor, table: PartTable, name: str) -> dict[str, dict[str, float]]:
    """Pointing and mass of one image of a class."""
    animal = where(mask, table, set(table.names) - table.surroundings)
    distinguishing = where(mask, table, table.distinguishing(name))
    places = dict(zip(_PLACES, (distinguishing, animal & ~distinguishing, ~(animal | distinguishing)), strict=True))
    attention = maps[:TOP_MAPS].sum(0)
    return {
        "at_distinguishing": pointing(maps, distinguishing, animal),
        "at_marks": pointing(maps, where(mask, table, table.marks(name)), animal),
        "mass": {f"on_{place}": mass(attention, region) for place, region in places.items()}
        | {f"area_{place}": float(region.double().mean()) for place, region in places.items()},
    }


def _interventions(
    explainer: Explainer,
    data: TraitData,
    table: PartTable,
    row: int,
    image: TraitImage,
    before: torch.Tensor,
    maps: torch.Tensor,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """What changes if parts of one image do."""
    name, mask = data.names[image.label], image.mask
    assert mask is not None
    regions = {part: where(mask, table, [part]) for part in table.names if part not in table.surroundings}
    without = {part: pixels for part, pixels in data.without(row).items() if part in regions and regions[part].any()}
    swapped = data.swapped(row)
    figures: dict[str, dict[str, float]] = {}
    if without:
        effects = removal_effects(before, _logits(explainer, torch.stack([*without.values()]), batch_size), image.label)
        marks, distinguishing = table.marks(name), table.distinguishing(name)
        kinds = {"removed_mark": lambda part: part in marks, "removed_other": lambda part: part not in distinguishing}
        for kind, is_such in kinds.items():
            chosen = [index for index, part in enumerate(without) if is_such(part)]
            figures[kind] = {key: float(effects[key][chosen].mean()) for key in REMOVAL} if chosen else {}
        attention = [mass(maps[:TOP_MAPS].sum(0), regions[part]) for part in without]
        per_pixel = [share / int(regions[part].sum()) for share, part in zip(attention, without, strict=True)]
        importance = effects["log_probability_fall"].tolist()
        agreement = {
            "attention": spearman(importance, attention),
            "attention_per_pixel": spearman(importance, per_pixel),
        }
        if len(without) >= 3:
            figures["rank_agreement"] = {key: value for key, value in agreement.items() if value is not None}
    if swapped:
        predicted = _logits(explainer, torch.stack([*swapped.values()]), batch_size).argmax(-1)
        hits = [float(found == other) for found, other in zip(predicted.tolist(), swapped, strict=True)]
        figures["swapped"] = {"taken_for_other": fmean(hits)}
    return figures


def _faithfulness(
    explainer: Explainer, data: TraitData, batch_size: int, num_images: int, steps: int, progress: bool
) -> dict[str, Any]:
    by_class = sorted(range(len(data)), key=lambda row: data.labels[row])
    count = min(num_images, len(data))
    chosen = [by_class[index * len(data) // count] for index in range(count)]
    curves: dict[str, list[torch.Tensor]] = {"insertion": [], "deletion": []}
    for rows in _batches(chosen, batch_size, "faithfulness", progress):
        pixel_values = torch.stack([data[row].pixel_values for row in rows])
        classes = _logits(explainer, pixel_values).argmax(-1)
        maps = _maps(explainer, pixel_values, classes)[:, :TOP_MAPS].sum(1)
        for name, curve in (("insertion", insertion_curve), ("deletion", deletion_curve)):
            curves[name].append(curve(lambda x: _logits(explainer, x), pixel_values, maps, classes, steps))
    means = {name: torch.cat(parts).mean(0) for name, parts in curves.items()}
    return {
        "num_images": count,
        **{name: float(area_under(mean)) for name, mean in means.items()},
        **{f"{name}_curve": mean.tolist() for name, mean in means.items()},
    }


def _batches(rows: Sequence[int], batch_size: int, what: str, progress: bool) -> Iterable[Sequence[int]]:
    with tqdm(total=len(rows), desc=what, unit="photo", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]
            bar.update(len(rows[start : start + batch_size]))


@torch.no_grad()
def _logits(explainer: Explainer, pixel_values: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
    parts = pixel_values.split(batch_size or len(pixel_values))
    return torch.cat([explainer.logits(part).float().cpu() for part in parts])


def _maps(explainer: Explainer, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    maps = explainer.maps(pixel_values, classes).detach().float().cpu()
    if maps.dim() != 4 or len(maps) != len(pixel_values) or not (maps >= 0).all():
        raise ValueError(
            f"{explainer.name}: maps of shape {tuple(maps.shape)} with values from {maps.min():.3g}; expected (images, "
            "maps, height, width) with values of 0 or more."
        )
    return maps


def _means(records: Sequence[Mapping[str, float]], keys: Sequence[str]) -> dict[str, Any]:
    """Mean over the images that have the figures."""
    records = [record for record in records if record]
    means = {key: [record[key] for record in records if key in record] for key in keys}
    return {"num_images": len(records), **{key: fmean(found) if found else None for key, found in means.items()}}


def traits_summary(results: Mapping[str, Any]) -> str:
    """A compact table for people of what `evaluate_traits` returns."""
    lines = [f"{results['explainer']}: where it looks, {results['num_images']} photographs"]

    def line(what: str, value: float | None, beside: str = "", form: str = "7.1%") -> None:
        lines.append(f"  {what:46} {'      -' if value is None else format(value, form)}   {beside}".rstrip())

    if "pointing" in results:
        lines[0] += f", {results['num_correct']} of them classified correctly"
        for kind, words in (("at_distinguishing", "a part that tells it from a look-alike"), ("at_marks", "its mark")):
            row = results["pointing"][kind]
            chance = {key: "-" if row[key] is None else f"{row[key]:.1%}" for key in POINTING}
            lines.append(f"pointing at {words}, {row['num_images']} photographs")
            line(
                "most important map",
                row["top1"],
                f"chance {chance['chance']}, on the animal {chance['chance_on_animal']}",
            )
            line("one of the four most important", row["top4"], f"chance {chance['chance_top4']}")
            line("their sum", row["top4_sum"], f"chance {chance['chance']}")
        lines.append("attention of the four most important maps")
        for place in _PLACES:
            row = results["mass"]
            area = row[f"area_{place}"]
            line(f"on {place.replace('_', ' ')}", row[f"on_{place}"], "" if area is None else f"area {area:.1%}")
        rows = results["interventions"]
        if any(row["num_images"] for row in rows.values()):
            lines.append("prediction changes, or its probability halves")
            line(
                "its mark is removed",
                rows["removed_mark"]["changed"],
                f"{rows['removed_mark']['num_images']} photographs",
            )
            line(
                "another part is removed",
                rows["removed_other"]["changed"],
                f"{rows['removed_other']['num_images']} photographs",
            )
            line(
                "taken for the look-alike whose parts it gets",
                rows["swapped"]["taken_for_other"],
                f"{rows['swapped']['num_images']} photographs",
            )
            line("rank agreement, importance and attention", rows["rank_agreement"]["attention"], form="7.2f")
            line("... and attention per pixel", rows["rank_agreement"]["attention_per_pixel"], form="7.2f")
    row = results["faithfulness"]
    lines.append(f"faithfulness, {row['num_images']} photographs")
    line("insertion, area under the curve", row["insertion"], "higher is better", "7.3f")
    line("deletion, area under the curve", row["deletion"], "lower is better", "7.3f")
    return "\n".join(lines)
