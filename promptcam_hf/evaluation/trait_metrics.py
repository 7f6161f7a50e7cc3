"""Do the maps show traits? Metrics on test images for which it is known what distinguishes their class.

For images that are classified correctly:

- Pointing game (Zhang et al., "Top-Down Neural Attention by Excitation Backprop", IJCV 2018): is the peak of a map on a
  part that distinguishes the class from its look-alikes?
- Energy-based pointing (Wang et al., "Score-CAM", CVPR Workshops 2020): which share of the attention is on these parts,
  on the rest of the animal, and on the background?
- Interventions, as in FunnyBirds (Hesse et al., ICCV 2023): does the prediction change if such a part is removed, and
  stay if another part is removed? Do parts that matter more get more attention?

`evaluate_traits` adds the faithfulness of the maps (`faithfulness.py`), for which no parts need to be known.

Shapes: images of H x W pixels, C classes, M maps on a grid of h x w patches.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from ..data.parts import PartTable
from ..messages import check_counts, counted
from .explainers import TOP_MAPS, Explainer, explainer_logits, explainer_maps
from .faithfulness import FAITHFULNESS_IMAGES, FAITHFULNESS_STEPS, measure_faithfulness
from .keypoints import measure_keypoints
from .prediction import EVALUATION_BATCH_SIZE
from .trait_data import TraitData, TraitImage, batches_of

# The keys of `evaluate_traits`, by metric
POINTING_GAME = ("top1", "top4", "top4_sum", "chance", "chance_top4", "chance_on_animal")
PLACES = ("distinguishing", "rest_of_animal", "background")
ENERGY = tuple(f"{what}_{place}" for what in ("on", "area") for place in PLACES)
INTERVENTIONS = {
    "removed_mark": ("changed", "probability_fall"),
    "removed_other": ("changed", "probability_fall"),
    "swapped": ("taken_for_other",),
    "rank_agreement": ("attention", "attention_per_pixel"),
}


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
    Measure a classifier's maps.

    Args:
        explainer: The classifier and its maps.
        data: Test images. If their parts are not known, only faithfulness is measured.
        batch_size: Images per forward pass.
        faithfulness_images: How many images to measure faithfulness on, evenly spread over the classes.
        steps: Steps of the insertion and deletion curves.
        progress: Whether to show progress bars.

    Returns:
        `explainer` (its name), `num_images`, `faithfulness` (see `measure_faithfulness`) and, for CUB-200-2011,
        `keypoints` (see `measure_keypoints`).

        If the parts are known, also `num_correct`, the number of images that are classified correctly, and means over
        these images. Each group has the number of images that it is based on, `num_images`; a mean over no images is
        None.

        - `pointing`: `at_distinguishing` and `at_marks`, the pointing game (see `pointing_game`) for the parts that
          distinguish the class from any of its look-alikes, and from each of them (`PartTable.distinguishing`,
          `PartTable.marks`). Images that show no such part are left out.
        - `mass`: energy-based pointing for the sum of the four most important maps. The shares `on_distinguishing`,
          `on_rest_of_animal` and `on_background` sum to 1; `area_distinguishing`, ... are the shares of the pixels,
          which an even map would have.
        - `interventions`: `removed_mark` and `removed_other`, the effect of removing one visible mark, or one visible
          part that is not distinguishing (`changed` and `probability_fall` of `removal_effect`, averaged over the parts
          of an image first). `swapped`: `taken_for_other`, how often an image with a look-alike's parts is classified
          as the look-alike. `rank_agreement`: Spearman's correlation, over the parts of an image (at least three),
          between the fall of the class's log-probability without the part and the part's share of the attention
          (`attention`), or that share per pixel (`attention_per_pixel`).

    Raises:
        ValueError: If there are no images, an argument is out of range, an image or mask cannot be read, or the maps
            are not as `Explainer` says.
    """
    check_counts(images=len(data), batch_size=batch_size, faithfulness_images=faithfulness_images, steps=steps)
    results: dict[str, Any] = {"explainer": explainer.name, "num_images": len(data)}
    if data.table is not None:
        results |= _measure_parts(explainer, data, data.table, batch_size, progress)
    if data.keypoints is not None:
        results["keypoints"] = measure_keypoints(explainer, data, batch_size=batch_size, progress=progress)
    results["faithfulness"] = measure_faithfulness(
        explainer, data, batch_size=batch_size, num_images=faithfulness_images, steps=steps, progress=progress
    )
    return results


def _measure_parts(
    explainer: Explainer, data: TraitData, table: PartTable, batch_size: int, progress: bool
) -> dict[str, Any]:
    """The metrics that need parts, as `evaluate_traits` returns them."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)  # metric -> its values for each image
    for rows in batches_of(range(len(data)), batch_size, "parts", progress):
        images = [data[row] for row in rows]
        pixel_values, labels = torch.stack([x.pixel_values for x in images]), torch.tensor([x.label for x in images])
        logits = explainer_logits(explainer, pixel_values)
        correct = (logits.argmax(-1) == labels).nonzero()[:, 0]
        if not len(correct):
            continue
        maps_of_images = explainer_maps(explainer, pixel_values[correct], labels[correct])
        for index, maps in zip(correct.tolist(), maps_of_images, strict=True):
            image, row = images[index], rows[index]
            assert image.mask is not None
            name = data.names[image.label]
            after = _logits_by_name(explainer, _removals(data, row, image, table), batch_size)
            effects = {part: removal_effect(logits[index], scores, image.label) for part, scores in after.items()}
            swapped = _logits_by_name(explainer, data.swapped(row), batch_size)
            values = _location_metrics(maps, image.mask, table, name)
            values |= _removal_metrics(effects, maps, image.mask, table, name)
            if swapped:
                taken = fmean(data.names[int(scores.argmax())] == other for other, scores in swapped.items())
                values["swapped"] = {"taken_for_other": taken}
            for metric, value in values.items():
                found[metric].append(value)
    return {
        "num_correct": len(found["mass"]),
        "pointing": {metric: _means(found[metric], POINTING_GAME) for metric in ("at_distinguishing", "at_marks")},
        "mass": _means(found["mass"], ENERGY),
        "interventions": {metric: _means(found[metric], keys) for metric, keys in INTERVENTIONS.items()},
    }


def _means(records: Sequence[Mapping[str, float]], keys: Sequence[str]) -> dict[str, Any]:
    """Means over the images that have any values. A value may be missing for some of them."""
    records = [record for record in records if record]
    values = {key: [record[key] for record in records if key in record] for key in keys}
    return {"num_images": len(records), **{key: fmean(found) if found else None for key, found in values.items()}}


# --- Where the maps are -----------------------------------------------------------------------------------------------


def part_region(mask: torch.Tensor, table: PartTable, parts: Iterable[str]) -> torch.Tensor:
    """The pixels `(H, W)`, bool, that show one of the named parts, for a mask `(H, W)` as in `TraitImage`."""
    return torch.isin(mask, torch.tensor([table.names.index(part) + 1 for part in parts], dtype=mask.dtype))


def animal_region(mask: torch.Tensor, table: PartTable) -> torch.Tensor:
    """The pixels `(H, W)`, bool, that show any part of the animal, and none of its surroundings."""
    return part_region(mask, table, set(table.names) - table.surroundings)


def patches_showing(region: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """The patches `(h, w)`, bool, that contain any pixel of a region `(H, W)`, bool. `grid` is (h, w)."""
    return adaptive_max_pool2d(region[None, None].float(), list(grid))[0, 0] > 0


def pointing_game(maps: torch.Tensor, region: torch.Tensor, animal: torch.Tensor) -> dict[str, float]:
    """
    The pointing game: a map hits a region if its peak is in a patch that shows some of the region, which allows for an
    error of half a patch. Among equal patches, the first is the peak.

    Args:
        maps: `(M, h, w)`, the most important first.
        region: The pixels to point at, `(H, W)`, bool.
        animal: The pixels of the whole animal, `(H, W)`, bool.

    Returns:
        Hits, 1 or 0: `top1`, of the first map; `top4`, of at least one of the first four; `top4_sum`, of their sum. The
        probabilities of a hit by chance, in [0, 1]: `chance`, for a random patch; `chance_top4`, for at least one of
        four random patches (M, if there are fewer maps); `chance_on_animal`, for a random patch of those that show some
        of the animal. Empty if the region is empty.
    """
    if not region.any():
        return {}
    top, grid = maps[:TOP_MAPS], maps.shape[-2:]
    target = patches_showing(region, grid)
    hits = target.flatten()[top.flatten(1).argmax(-1)]
    chance = float(target.double().mean())
    return {
        "top1": float(hits[0]),
        "top4": float(hits.any()),
        "top4_sum": float(target.flatten()[top.sum(0).argmax()]),
        "chance": chance,
        "chance_top4": 1 - (1 - chance) ** len(top),
        "chance_on_animal": float(target[patches_showing(animal | region, grid)].double().mean()),
    }


def energy_based_pointing(attention: torch.Tensor, region: torch.Tensor) -> float:
    """
    The share of a map's sum that is in a region. The value of a patch is spread evenly over its pixels.

    Args:
        attention: The map `(h, w)`, values from 0 up. A map of zeros counts as an even one.
        region: `(H, W)`, bool.

    Returns:
        The share, in [0, 1].
    """
    attention = attention.double() if attention.any() else torch.ones_like(attention, dtype=torch.float64)
    height, width = attention.shape
    covered = adaptive_avg_pool2d(region[None, None].double(), (height, width))[0, 0]  # share of each patch
    return float((attention * covered).sum() / attention.sum())


def _location_metrics(
    maps: torch.Tensor, mask: torch.Tensor, table: PartTable, name: str
) -> dict[str, dict[str, float]]:
    """Pointing game and energy-based pointing for one image of the class `name`."""
    distinguishing = part_region(mask, table, table.distinguishing(name))
    animal = animal_region(mask, table) | distinguishing
    energy = {}
    for place, region in zip(PLACES, (distinguishing, animal & ~distinguishing, ~animal), strict=True):
        energy[f"on_{place}"] = energy_based_pointing(maps[:TOP_MAPS].sum(0), region)
        energy[f"area_{place}"] = float(region.double().mean())
    return {
        "at_distinguishing": pointing_game(maps, distinguishing, animal),
        "at_marks": pointing_game(maps, part_region(mask, table, table.marks(name)), animal),
        "mass": energy,
    }


# --- Interventions ----------------------------------------------------------------------------------------------------


def removal_effect(before: torch.Tensor, after: torch.Tensor, label: int) -> dict[str, float]:
    """
    The effect on a class of removing something from an image that is classified correctly.

    Args:
        before, after: Scores `(C,)` of the original and of the changed image.
        label: The class.

    Returns:
        `changed`: 1 if another class is predicted or the class's probability is at most half of what it was, else 0;
        `probability_fall`: in [-1, 1]; `log_probability_fall`: in nats.
    """
    old, new = (float(scores.double().log_softmax(-1)[label]) for scores in (before, after))
    changed = int(after.argmax()) != label or new <= old - math.log(2)
    return {
        "changed": float(changed),
        "probability_fall": math.exp(old) - math.exp(new),
        "log_probability_fall": old - new,
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, in [-1, 1], between two sequences of equal length. Equal values share the mean of
    their ranks. None if all values of a sequence are equal."""
    x = np.array([a, b], dtype=float)[:, :, None]
    ranks = (x > x.mT).sum(-1) + (x == x.mT).sum(-1) / 2
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = math.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm else None


def _removals(data: TraitData, row: int, image: TraitImage, table: PartTable) -> dict[str, torch.Tensor]:
    """Part -> the image without it, for the visible parts of the animal that the data have removed. A removal that
    changes no pixel, because the part looks like what is behind it, is left out: it would say nothing."""
    assert image.mask is not None
    return {
        part: pixel_values
        for part, pixel_values in data.without(row).items()
        if part not in table.surroundings
        and part_region(image.mask, table, [part]).any()
        and not pixel_values.equal(image.pixel_values)
    }


def _removal_metrics(
    effects: dict[str, dict[str, float]], maps: torch.Tensor, mask: torch.Tensor, table: PartTable, name: str
) -> dict[str, dict[str, float]]:
    """The metrics of removed parts for one image of the class `name`."""
    values: dict[str, dict[str, float]] = {}
    removed = {
        "removed_mark": effects.keys() & table.marks(name),
        "removed_other": effects.keys() - table.distinguishing(name),
    }
    for metric, parts in removed.items():
        if parts:
            values[metric] = {key: fmean(effects[part][key] for part in parts) for key in INTERVENTIONS[metric]}
    if len(effects) >= 3:
        regions = [part_region(mask, table, [part]) for part in effects]
        attention = [energy_based_pointing(maps[:TOP_MAPS].sum(0), region) for region in regions]
        per_pixel = [share / int(region.sum()) for share, region in zip(attention, regions, strict=True)]
        importance = [effect["log_probability_fall"] for effect in effects.values()]
        agreement = {
            "attention": spearman(importance, attention),
            "attention_per_pixel": spearman(importance, per_pixel),
        }
        values["rank_agreement"] = {key: value for key, value in agreement.items() if value is not None}
    return values


def _logits_by_name(explainer: Explainer, scenes: dict[str, torch.Tensor], batch_size: int) -> dict[str, torch.Tensor]:
    """Scores `(C,)` for named images `(3, H, W)`."""
    if not scenes:
        return {}
    batches = torch.stack([*scenes.values()]).split(batch_size)
    return dict(zip(scenes, torch.cat([explainer_logits(explainer, batch) for batch in batches]), strict=True))


# --- For people -------------------------------------------------------------------------------------------------------


def traits_summary(results: Mapping[str, Any]) -> str:
    """A short table for people.

    Args:
        results: What `evaluate_traits` returned, and `randomisation`, what `measure_randomisation` returned, if there.

    Returns:
        Several lines of text, at most 100 characters wide.
    """
    heading = f"{results['explainer']}, {counted(results['num_images'], 'photograph')}"
    lines = [heading]
    if "num_correct" in results:
        lines = [f"{heading}, {results['num_correct']} of them classified correctly"]
        lines += _location_lines(results) + _intervention_lines(results["interventions"])
    if "keypoints" in results:
        lines += _keypoint_lines(results["keypoints"])
    faithfulness = results["faithfulness"]
    return "\n".join(
        [
            *lines,
            f"faithfulness ({counted(faithfulness['num_images'], 'photograph')})",
            _line("insertion, area under the curve", f"{faithfulness['insertion']:.3f}", "higher is better"),
            _line("deletion, area under the curve", f"{faithfulness['deletion']:.3f}", "lower is better"),
            _line(
                "relative drop against the runner-up",
                f"{faithfulness['relative_drop']:.3f}",
                f"chance {faithfulness['relative_drop_chance']:.3f}",
            ),
            _line("ROAD, least minus most important removed", f"{faithfulness['road']:.3f}", "chance 0.000"),
            *_randomisation_lines(results.get("randomisation")),
        ]
    )


def _location_lines(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, what in (("at_distinguishing", "a part that differs from a look-alike"), ("at_marks", "the mark")):
        row = results["pointing"][key]
        lines += [
            f"pointing game: {what} (visible on {counted(row['num_images'], 'photograph')})",
            _line("most important map", _percent(row["top1"]), f"chance {_percent(row['chance'])}"),
            _line("one of the top four", _percent(row["top4"]), f"chance {_percent(row['chance_top4'])}"),
            _line(
                "sum of the top four",
                _percent(row["top4_sum"]),
                f"chance on the animal {_percent(row['chance_on_animal'])}",
            ),
        ]
    row = results["mass"]
    lines.append("energy-based pointing: attention of the top four")
    for place in PLACES:
        area = f"{_percent(row[f'area_{place}'])} of the pixels"
        lines.append(_line(f"on {place.replace('_', ' ')}", _percent(row[f"on_{place}"]), area))
    return lines


def _keypoint_lines(row: Mapping[str, Any]) -> list[str]:
    far = {key: "-" if row[key] is None else f"{row[key]:.2f}" for key in row if key.endswith(("distance", "sum"))}
    chance = f"chance {_percent(row['chance_hit'])}"
    return [
        f"keypoints of parts that differ from the runner-up ({counted(row['num_images'], 'photograph')})",
        _line("most important map near one", _percent(row["hit"]), chance),
        _line("sum of the top four near one", _percent(row["hit_sum"]), chance),
        _line("distance of the most important map", far["distance"], f"chance {far['chance_distance']}, box is 1 x 1"),
    ]


def _intervention_lines(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not any(row["num_images"] for row in rows.values()):
        return []
    count = {metric: counted(row["num_images"], "photograph") for metric, row in rows.items()}
    rho = {key: "-" if value is None else f"{value:.2f}" for key, value in rows["rank_agreement"].items()}
    return [
        "interventions: another class, or half the probability",
        _line("mark removed", _percent(rows["removed_mark"]["changed"]), count["removed_mark"]),
        _line("another part removed", _percent(rows["removed_other"]["changed"]), count["removed_other"]),
        _line("look-alike's parts: taken for it", _percent(rows["swapped"]["taken_for_other"]), count["swapped"]),
        _line("importance and attention, Spearman", rho["attention"], count["rank_agreement"]),
        _line("importance and attention per pixel, Spearman", rho["attention_per_pixel"]),
    ]


def _randomisation_lines(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return []
    return [
        f"similarity to the map of a partly random model, Spearman ({counted(row['num_images'], 'photograph')})",
        _line("random prompts", f"{row['prompts']:.2f}", "near 0 if the map shows what was learned"),
        _line("random last layer of the backbone", f"{row['last_layer']:.2f}"),
    ]


def _line(what: str, value: str, beside: str = "") -> str:
    return f"  {what:44}{value:>7}   {beside}".rstrip()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
