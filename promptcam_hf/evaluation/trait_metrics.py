"""Do the maps show traits? Figures on test images of which it is known what tells their class from its look-alikes.

Any classifier that can say where it looks is an `Explainer`. Of its maps of correctly classified images is asked:

- Pointing: does their peak lie on a part that tells the class from others?
- Mass: how much of them lies there, how much on the rest of the animal, how much beside it?
- Interventions (as in FunnyBirds; Hesse et al., ICCV 2023): does it matter to the class if such a part is removed, and
  does it not if another one is? Is a part that matters more also looked at more?

and of its maps of any image, without knowing its parts:

- Faithfulness (RISE; Petsiuk et al., BMVC 2018; Table 1 of Prompt-CAM's paper): does the class's probability fall fast
  where the pixels that are looked at go first, and rise fast where they come first?

Shapes: B images of H x W pixels, C classes, M maps on a grid of h x w patches.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, conv2d, interpolate, pad
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..data.parts import PartFolder, PartTable, has_parts
from ..data.photographs import EvaluationTransform, Photographs, load_splits
from ..modeling import PromptCamForImageClassification
from ..modeling.pipeline_promptcam import load_photograph
from ..training.options import EVALUATION_BATCH_SIZE
from .evaluation import interpolates, logits_of, with_labels_of

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
        """Of images `(B, 3, H, W)`, each seen as one class, `(B,)`: maps `(B, M, h, w)`, 0 or more, the most important
        first. M is 1 for a method that has one map."""
        ...


class PromptCamExplainer:
    """The heads of a Prompt-CAM, ranked by `rank_heads`. The model is put in evaluation mode."""

    name = "Prompt-CAM"

    def __init__(self, model: PromptCamForImageClassification):
        self.model = model.eval()

    @torch.no_grad()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model, pixel_values.to(self.model.device))

    @torch.no_grad()
    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        device, interpolate_pos_encoding = self.model.device, interpolates(self.model, pixel_values)
        ranking = self.model.rank_heads(
            pixel_values.to(device), classes.to(device), interpolate_pos_encoding=interpolate_pos_encoding
        )
        maps, order = ranking.trait_maps, ranking.order  # (B, heads, h, w), (B, heads)
        return maps.gather(1, order[..., None, None].expand_as(maps))


# --- Data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TraitImage:
    """
    A test image and where its parts are.

    Args:
        pixel_values: `(3, H, W)` float32, as the image processor gives it.
        label: Its class, as the model counts.
        mask: `(H, W)` uint8: the part that a pixel shows, 0 for none; or None where the data have no masks.
    """

    pixel_values: torch.Tensor
    label: int
    mask: torch.Tensor | None


class TraitData(torch.utils.data.Dataset[TraitImage]):
    """
    Test images, with masks of their parts and the same scenes drawn otherwise, where the data have them. Its `table` is
    a `PartTable`, or None where the parts are not known.

    Args:
        split: The images, as `load_splits` has them, with the model's labels.
        names: The model's classes, in the order of its labels.
        image_processor: The model's.
        folder: A folder as `promptcam_hf.data.parts` describes, whose `test/` the images are. Default: no parts are known.

    Raises:
        ValueError: As `PartFolder` does for the folder and, when an image is read, for its mask; or if the image
            processor crops.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        names: Sequence[str],
        image_processor: BaseImageProcessor,
        folder: str | os.PathLike | None = None,
    ):
        self.photographs = Photographs(split, EvaluationTransform(image_processor))
        self.names, self.labels = list(names), list(split["label"])
        self.parts = None if folder is None else PartFolder(folder)
        self.table = None if self.parts is None else self.parts.table
        if self.parts is not None:
            self.paths = [Path(image["path"]) for image in split["image"]]
            self.parts.check(self.paths)
            if getattr(image_processor, "do_center_crop", None):
                raise ValueError("The image processor crops, so that masks do not fit; expected one that only resizes.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> TraitImage:
        photograph, label = self.photographs.example(index)
        pixel_values = self.photographs.transform(photograph)
        if self.parts is None:
            return TraitImage(pixel_values, label, mask=None)
        height, width = pixel_values.shape[-2:]  # aspect is ignored, as with the image
        mask = Image.fromarray(self.parts.mask(self.paths[index], photograph.size))
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
        return TraitImage(pixel_values, label, torch.from_numpy(np.array(mask)))

    def without(self, index: int) -> dict[str, torch.Tensor]:
        """Part -> `pixel_values` of the scene without it, for each part that the data have that of."""
        return {} if self.parts is None else self._read(self.parts.without(self.paths[index]))

    def swapped(self, index: int) -> dict[str, torch.Tensor]:
        """Other class -> `pixel_values` of the scene with that class's parts, for each that the data have that of."""
        return {} if self.parts is None else self._read(self.parts.swapped(self.paths[index]))

    def _read(self, files: dict[str, Path]) -> dict[str, torch.Tensor]:
        return {name: self.photographs.transform(load_photograph(file)) for name, file in files.items()}


def load_trait_data(folder: str | os.PathLike, names: Sequence[str], image_processor: BaseImageProcessor) -> TraitData:
    """
    The evaluation split of a data set and, if it is a folder with `parts.json`, what is known of its parts.

    Args:
        folder: The data, as for `promptcam evaluate`.
        names: The model's classes, in the order of its labels.
        image_processor: The model's.

    Raises:
        ValueError: If the data cannot be read, have a class that the model lacks, or as for `TraitData`.
    """
    splits = load_splits(folder, training=False)
    split = with_labels_of(names, splits.evaluation, splits.names, folder)
    return TraitData(split, names, image_processor, folder if has_parts(folder) else None)


# --- Where maps lie ---------------------------------------------------------------------------------------------------


def where(mask: torch.Tensor, table: PartTable, parts: Iterable[str]) -> torch.Tensor:
    """The pixels `(H, W)`, bool, of a mask `(H, W)` that show one of these parts."""
    return torch.isin(mask, torch.tensor([table.names.index(part) + 1 for part in parts], dtype=mask.dtype))


def grown(region: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """At the centres of which patches `(h, w)`, bool, a region `(H, W)`, bool, lies if it is grown by half a patch to
    every side: which is to say, which patches show some of it. `grid` is h, w."""
    return adaptive_max_pool2d(region[None, None].float(), list(grid))[0, 0] > 0


def mass(attention: torch.Tensor, region: torch.Tensor) -> float:
    """The share, in [0, 1], of a map `(h, w)`, 0 or more, that lies in a region `(H, W)`, bool: a patch's value is
    spread evenly over its pixels. A map of zeros is taken for one that looks everywhere alike."""
    attention = attention.double() if attention.any() else torch.ones_like(attention, dtype=torch.float64)
    height, width = attention.shape
    covered = adaptive_avg_pool2d(region[None, None].double(), (height, width))[0, 0]  # share of each patch
    return float((attention * covered).sum() / attention.sum())


POINTING = ("top1", "top4", "top4_sum", "chance", "chance_top4", "chance_on_animal")


def pointing(maps: torch.Tensor, region: torch.Tensor, animal: torch.Tensor) -> dict[str, float]:
    """
    Whether maps peak in a region grown by half a patch; of equal patches, the first is the peak.

    Args:
        maps: `(M, h, w)`, the most important first.
        region: `(H, W)`, bool.
        animal: `(H, W)`, bool: all of the animal.

    Returns:
        1 or 0: `top1`, whether the first map does; `top4`, whether one of the first four does; `top4_sum`, whether
        their sum does. Beside them, in [0, 1], how often chance would: `chance`, a patch drawn from all; `chance_top4`,
        one of four such draws (of M, if there are fewer maps); `chance_on_animal`, a patch drawn from those that show
        some of the animal. Nothing at all if no pixel is of the region.
    """
    if not region.any():
        return {}
    top, grid = maps[:TOP_MAPS], maps.shape[-2:]
    hit = grown(region, grid)
    hits = hit.flatten()[top.flatten(1).argmax(-1)]
    chance = float(hit.double().mean())
    return {
        "top1": float(hits[0]),
        "top4": float(hits.any()),
        "top4_sum": float(hit.flatten()[top.sum(0).argmax()]),
        "chance": chance,
        "chance_top4": 1 - (1 - chance) ** len(top),
        "chance_on_animal": float(hit[grown(animal | region, grid)].double().mean()),
    }


PLACES = ("distinguishing", "rest_of_animal", "background")
MASS = tuple(f"{what}_{place}" for what in ("on", "area") for place in PLACES)


def _where_it_looks(maps: torch.Tensor, mask: torch.Tensor, table: PartTable, name: str) -> dict[str, dict[str, float]]:
    """Pointing and mass on one image of a class, by its name."""
    distinguishing, marks = (where(mask, table, parts) for parts in (table.distinguishing(name), table.marks(name)))
    animal = where(mask, table, set(table.names) - table.surroundings) | distinguishing
    regions = zip(PLACES, (distinguishing, animal & ~distinguishing, ~animal), strict=True)
    figures = {}
    for place, region in regions:
        figures[f"on_{place}"] = mass(maps[:TOP_MAPS].sum(0), region)
        figures[f"area_{place}"] = float(region.double().mean())
    return {
        "at_distinguishing": pointing(maps, distinguishing, animal),
        "at_marks": pointing(maps, marks, animal),
        "mass": figures,
    }


# --- What matters -----------------------------------------------------------------------------------------------------


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation, in [-1, 1], of two sequences of equal length; of equal values each has the mean of their ranks.
    None if all values of one of them are equal."""
    ranks = np.array(
        [[sum(y < x for y in values) + sum(y == x for y in values) / 2 for x in values] for values in (a, b)]
    )
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = math.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm else None


REMOVAL = ("changed", "probability_fall")


def removal_effect(before: torch.Tensor, after: torch.Tensor, label: int) -> dict[str, float]:
    """
    What becomes of a class when something is removed from an image.

    Args:
        before, after: Scores `(C,)` of the image as it is, which is classified correctly, and of the changed one.
        label: The class.

    Returns:
        `changed`, 1 where another class is predicted or the class's probability is at most half of what it was, else 0;
        `probability_fall`, in [-1, 1]; `log_probability_fall`, natural logarithm.
    """
    old, new = (float(scores.double().log_softmax(-1)[label]) for scores in (before, after))
    changed = int(after.argmax()) != label or new <= old - math.log(2)
    return {
        "changed": float(changed),
        "probability_fall": math.exp(old) - math.exp(new),
        "log_probability_fall": old - new,
    }


def _what_matters(
    effects: dict[str, dict[str, float]], maps: torch.Tensor, mask: torch.Tensor, table: PartTable, name: str
) -> dict[str, dict[str, float]]:
    """Figures of one image of a class, of which some visible parts were removed: part -> its `removal_effect`."""
    marks, distinguishing = table.marks(name), table.distinguishing(name)
    figures: dict[str, dict[str, float]] = {}
    for kind, parts in (("removed_mark", effects.keys() & marks), ("removed_other", effects.keys() - distinguishing)):
        if parts:
            figures[kind] = {key: fmean(effects[part][key] for part in parts) for key in REMOVAL}
    if len(effects) >= 3:
        regions = [where(mask, table, [part]) for part in effects]
        attention = [mass(maps[:TOP_MAPS].sum(0), region) for region in regions]
        per_pixel = [share / int(region.sum()) for share, region in zip(attention, regions, strict=True)]
        importance = [effect["log_probability_fall"] for effect in effects.values()]
        agreement = {
            key: spearman(importance, values) for key, values in zip(AGREEMENT, (attention, per_pixel), strict=True)
        }
        figures["rank_agreement"] = {key: value for key, value in agreement.items() if value is not None}
    return figures


AGREEMENT = ("attention", "attention_per_pixel")

# --- Faithfulness -----------------------------------------------------------------------------------------------------


def blurred(pixel_values: torch.Tensor) -> torch.Tensor:
    """Images `(B, 3, H, W)` without their details: Gaussian blur, of which the standard deviation is a twentieth of the
    shorter side."""
    sigma = min(pixel_values.shape[-2:]) / 20
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(pixel_values.shape[1], 1, 1, -1)
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
        maps: `(B, h, w)`, brought to H x W bilinearly; the largest value goes first, of equals the first pixel.
        classes: `(B,)`.
        steps: In how many equal steps.

    Returns:
        Probabilities `(B, steps + 1)`, float64: first that of `start`, last that of `end`.
    """
    smooth = interpolate(maps[:, None].double(), start.shape[-2:], mode="bilinear")  # (B, 1, H, W)
    place = smooth.flatten(1).argsort(descending=True, stable=True).argsort().view_as(smooth)
    curve = []
    for step in range(steps + 1):
        mixed = torch.where(place < round(place[0].numel() * step / steps), end, start)
        curve.append(logits(mixed).double().softmax(-1).gather(1, classes[:, None]))
    return torch.cat(curve, dim=1)


def deletion_curve(logits, pixel_values, maps, classes, steps: int = FAITHFULNESS_STEPS) -> torch.Tensor:
    """`replacement_curve` from the image to zeros, which is the mean colour. The lower, the better the map."""
    return replacement_curve(logits, pixel_values, torch.zeros_like(pixel_values), maps, classes, steps)


def insertion_curve(logits, pixel_values, maps, classes, steps: int = FAITHFULNESS_STEPS) -> torch.Tensor:
    """`replacement_curve` from the blurred image to the image. The higher, the better the map."""
    return replacement_curve(logits, blurred(pixel_values), pixel_values, maps, classes, steps)


def area_under(curve: torch.Tensor) -> torch.Tensor:
    """Area `(...)`, in [0, 1], under curves `(..., steps + 1)` over [0, 1]."""
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
    All figures of a classifier's maps, as JSON holds them. Each is the mean over the `num_images` beside it, in [0, 1]
    but for falls and correlations, and None where there is no such image.

    Args:
        explainer: The classifier and its maps.
        data: Test images. Where their parts are not known, there is `faithfulness` only.
        batch_size: Images to a forward pass.
        faithfulness_images: On how many images, evenly spread over the classes, to measure faithfulness; on all, if
            there are fewer.
        steps: Of the insertion and deletion curves.
        progress: Whether to show a bar.

    Returns:
        `explainer` (its name), `num_images`, and `faithfulness` of the predicted class, right or wrong: the areas
        `insertion` and `deletion`, and the mean curves `insertion_curve` and `deletion_curve`.

        Where parts are known, of the `num_correct` images that are classified correctly:

        `pointing`, at `at_distinguishing` (`PartTable.distinguishing`) and `at_marks` (`PartTable.marks`): see
        `pointing`. Images where no such part is visible are left out.

        `mass` of the sum of the four most important maps: the shares `on_distinguishing`, `on_rest_of_animal` and
        `on_background` and, which an even map would have, those of the image's pixels, `area_distinguishing`, ...

        `interventions`, an image's parts or swaps averaged first: `removed_mark` and `removed_other`, of the visible
        parts of the animal, whose removal changes a pixel, those of `PartTable.marks` and those that are not
        distinguishing: see `removal_effect`.
        `swapped`: `taken_for_other`, whether the class is predicted whose parts it was given. `rank_agreement`:
        Spearman's correlation, over the parts of an image, if three or more can be removed, of the fall of the class's
        log-probability with the part's share of the four maps' sum (`attention`; `attention_per_pixel`).

    Raises:
        ValueError: If there are no images, or as `TraitData` and the explainer do.
    """
    if not len(data) or min(batch_size, faithfulness_images, steps) < 1:
        raise ValueError(
            f"{len(data)} images, batch_size={batch_size}, faithfulness_images={faithfulness_images}, steps={steps}: "
            "expected 1 or more of each."
        )
    results: dict[str, Any] = {"explainer": explainer.name, "num_images": len(data)}
    if data.table is not None:
        results |= _figures_of_parts(explainer, data, data.table, batch_size, progress)
    results["faithfulness"] = _faithfulness(explainer, data, batch_size, faithfulness_images, steps, progress)
    return results


def _figures_of_parts(
    explainer: Explainer, data: TraitData, table: PartTable, batch_size: int, progress: bool
) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = defaultdict(list)  # kind of figures -> those of each image
    for rows in _batches(range(len(data)), batch_size, "parts", progress):
        images = [data[row] for row in rows]
        pixel_values, labels = torch.stack([x.pixel_values for x in images]), torch.tensor([x.label for x in images])
        logits = _logits(explainer, pixel_values)
        right = (logits.argmax(-1) == labels).nonzero()[:, 0]
        if not len(right):
            continue
        all_maps = _maps(explainer, pixel_values[right], labels[right])
        for index, maps in zip(right.tolist(), all_maps, strict=True):
            mask, label, row = images[index].mask, images[index].label, rows[index]
            assert mask is not None
            visible = {
                part for part in table.names if part not in table.surroundings and where(mask, table, [part]).any()
            }
            # Removing a part that looks like what lies under it changes nothing, and would tell nothing
            without = {
                part: pixels
                for part, pixels in data.without(row).items()
                if part in visible and not pixels.equal(images[index].pixel_values)
            }
            effects = {
                part: removal_effect(logits[index], after, label)
                for part, after in _logits_of(explainer, without, batch_size).items()
            }
            figures = _where_it_looks(maps, mask, table, data.names[label])
            figures |= _what_matters(effects, maps, mask, table, data.names[label])
            if swapped := _logits_of(explainer, data.swapped(row), batch_size):
                taken = [data.names[int(scores.argmax())] == other for other, scores in swapped.items()]
                figures["swapped"] = {"taken_for_other": fmean(taken)}
            for kind, values in figures.items():
                found[kind].append(values)

    kinds = {
        "removed_mark": REMOVAL,
        "removed_other": REMOVAL,
        "swapped": ("taken_for_other",),
        "rank_agreement": AGREEMENT,
    }
    return {
        "num_correct": len(found["mass"]),
        "pointing": {kind: _means(found[kind], POINTING) for kind in ("at_distinguishing", "at_marks")},
        "mass": _means(found["mass"], MASS),
        "interventions": {kind: _means(found[kind], keys) for kind, keys in kinds.items()},
    }


def _faithfulness(
    explainer: Explainer, data: TraitData, batch_size: int, num_images: int, steps: int, progress: bool
) -> dict[str, Any]:
    by_class = sorted(range(len(data)), key=lambda row: data.labels[row])
    count = min(num_images, len(data))
    chosen = [by_class[index * len(data) // count] for index in range(count)]
    curves: dict[str, list[torch.Tensor]] = {"insertion": [], "deletion": []}
    for rows in _batches(chosen, batch_size, "faithfulness", progress):
        pixel_values = torch.stack([data.photographs[row]["pixel_values"] for row in rows])
        classes = _logits(explainer, pixel_values).argmax(-1)
        maps = _maps(explainer, pixel_values, classes)[:, :TOP_MAPS].sum(1)
        for name, curve in (("insertion", insertion_curve), ("deletion", deletion_curve)):
            curves[name].append(curve(lambda x: _logits(explainer, x), pixel_values, maps, classes, steps))
    means = {name: torch.cat(parts).mean(0) for name, parts in curves.items()}
    areas = {name: float(area_under(mean)) for name, mean in means.items()}
    return {"num_images": count, **areas, **{f"{name}_curve": mean.tolist() for name, mean in means.items()}}


def _batches(rows: Sequence[int], batch_size: int, what: str, progress: bool) -> Iterator[Sequence[int]]:
    with tqdm(total=len(rows), desc=what, unit="photo", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            yield batch
            bar.update(len(batch))


@torch.no_grad()
def _logits(explainer: Explainer, pixel_values: torch.Tensor) -> torch.Tensor:
    return explainer.logits(pixel_values).float().cpu()


def _logits_of(explainer: Explainer, scenes: dict[str, torch.Tensor], batch_size: int) -> dict[str, torch.Tensor]:
    if not scenes:
        return {}
    batches = torch.stack([*scenes.values()]).split(batch_size)
    return dict(zip(scenes, torch.cat([_logits(explainer, batch) for batch in batches]), strict=True))


def _maps(explainer: Explainer, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    maps = explainer.maps(pixel_values, classes).detach().float().cpu()
    if maps.dim() != 4 or len(maps) != len(pixel_values) or not (maps >= 0).all():
        raise ValueError(
            f"{explainer.name}: maps of shape {tuple(maps.shape)}, the least value {maps.min():.3g}; expected (images, "
            "maps, height, width) and values of 0 or more."
        )
    return maps


def _means(records: Sequence[Mapping[str, float]], keys: Sequence[str]) -> dict[str, Any]:
    """Means over the images that have figures."""
    records = [record for record in records if record]
    found = {key: [record[key] for record in records if key in record] for key in keys}
    return {"num_images": len(records), **{key: fmean(values) if values else None for key, values in found.items()}}


# --- For people -------------------------------------------------------------------------------------------------------


def traits_summary(results: Mapping[str, Any]) -> str:
    """A short table for people of what `evaluate_traits` returns."""

    def line(what: str, value: float | None, beside: str = "", form: str = ".1%") -> str:
        return f"  {what:44}{'-' if value is None else format(value, form):>7}   {beside}".rstrip()

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    lines = [f"{results['explainer']}, {results['num_images']} photographs"]
    if "num_correct" in results:
        lines[0] += f", {results['num_correct']} of them classified correctly"
        for kind, what in (("at_distinguishing", "a part that tells it from a look-alike"), ("at_marks", "its mark")):
            row = results["pointing"][kind]
            lines += [
                f"pointing at {what} ({row['num_images']} photographs that show one)",
                line("most important map", row["top1"], f"by chance {percent(row['chance'])}"),
                line("one of the top four", row["top4"], f"by chance {percent(row['chance_top4'])}"),
                line(
                    "sum of the top four",
                    row["top4_sum"],
                    f"by chance on the animal {percent(row['chance_on_animal'])}",
                ),
            ]
        row = results["mass"]
        lines.append("attention of the top four")
        for place in PLACES:
            beside = f"{percent(row[f'area_{place}'])} of the pixels"
            lines.append(line(f"on {place.replace('_', ' ')}", row[f"on_{place}"], beside))
        rows = results["interventions"]
        if any(row["num_images"] for row in rows.values()):
            count = {kind: f"{row['num_images']} photographs" for kind, row in rows.items()}
            agreement = rows["rank_agreement"]
            lines += [
                "the class changes, or its probability halves",
                line("its mark removed", rows["removed_mark"]["changed"], count["removed_mark"]),
                line("another part removed", rows["removed_other"]["changed"], count["removed_other"]),
                line(
                    "taken for the look-alike whose parts it got", rows["swapped"]["taken_for_other"], count["swapped"]
                ),
                line("importance ~ attention, Spearman", agreement["attention"], count["rank_agreement"], ".2f"),
                line("importance ~ attention per pixel", agreement["attention_per_pixel"], "", ".2f"),
            ]
    row = results["faithfulness"]
    lines += [
        f"faithfulness ({row['num_images']} photographs)",
        line("insertion, area under the curve", row["insertion"], "the higher, the better", ".3f"),
        line("deletion, area under the curve", row["deletion"], "the lower, the better", ".3f"),
    ]
    return "\n".join(lines)
