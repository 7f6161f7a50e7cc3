"""The scores of FunnyBirds (Hesse, Schaub-Meyer and Roth, ICCV 2023): does an explanation name the parts that matter,
on rendered birds of which parts and background objects were removed?

Everything is about the true class of a scene. The *importance* of a part or an object is the sum of the class's map
over its mask, dilated by a 5 x 5 maximum. It is *important* if that is more than t times the sum over the whole map.

| score | what |
|---|---|
| CSDC | scenes classified correctly: the largest share of a minimal sufficient set of parts that is important |
| PC | the prediction stays if only the important parts are kept |
| DC | the prediction changes if the important parts are removed |
| D | 1 - the share of the irrelevant parts and objects that are important |
| BI | 1 - the share of the objects without which the logit falls by 5 % or more |
| SD | (rho + 1) / 2, with Spearman's rho between the importance of parts and the fall of the logit without them |
| TS | two other classes each share two parts with the bird: each one's map ranks its own two above the other's |
| Com, Cor, Con | ((CSDC + PC + DC) / 3 + D) / 2; SD; TS |
| mX | the mean of Com, Cor and Con |

Something is irrelevant if, without it, the class's logit falls by less than 5 % of its size. t is the one of 80 values
from 0.01 to 0.50 that maximises (CSDC + PC + DC) / 3 + D.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np
import torch
from torch.nn.functional import max_pool2d

from .trait_metrics import spearman

THRESHOLDS = np.linspace(0.01, 0.50, 80)
RELEVANT = 0.05  # fall of the logit, as a share of its size
Importance = Mapping[str, float]  # part -> share of the sum of the map


@dataclass(frozen=True, eq=False)
class Scene:
    """
    What a classifier and its map of the true class say about a scene.

    Args:
        label: The true class.
        kept: Parts that are kept -> scores `(C,)`, for every set of parts, all objects present.
        without_object: The true class's logit without each background object in sight.
        parts: The importance of each part.
        objects: The importance of each of these objects.
        overlaps: For two other classes: the importance of the parts by that class's map, and the parts that it shares
            with the bird. None if there is no such pair.
    """

    label: int
    kept: Mapping[frozenset[str], torch.Tensor]
    without_object: Sequence[float]
    parts: Importance
    objects: Sequence[float]
    overlaps: tuple[tuple[Importance, frozenset[str]], tuple[Importance, frozenset[str]]] | None = None

    @property
    def all_parts(self) -> frozenset[str]:
        """The parts of the bird."""
        return frozenset(self.parts)

    def prediction(self, kept: frozenset[str]) -> int:
        """The class that is predicted if only these parts are there."""
        return int(self.kept[kept].argmax())

    @cached_property
    def logit(self) -> float:
        """The true class's, with all parts and objects."""
        return float(self.kept[self.all_parts][self.label])

    @cached_property
    def least_fall(self) -> float:
        """The fall of the logit from which on something is relevant."""
        return RELEVANT * abs(self.logit)

    @cached_property
    def falls(self) -> dict[str, float]:
        """Part -> the fall of the logit without it."""
        return {part: self.logit - float(self.kept[self.all_parts - {part}][self.label]) for part in self.parts}

    @cached_property
    def minimal_sufficient_sets(self) -> list[frozenset[str]]:
        """The sets of parts with which alone the prediction is that for all parts, and no part of which could be
        spared."""
        wanted = self.prediction(self.all_parts)
        sufficient = [kept for kept in self.kept if self.prediction(kept) == wanted]
        return [kept for kept in sufficient if not any(other < kept for other in sufficient)]


def importance(trait_map: torch.Tensor, mask: torch.Tensor) -> float:
    """
    The importance of a part or an object, as a share of the sum of the map.

    Args:
        trait_map: `(H, W)`, values from 0 up.
        mask: `(H, W)`, bool. It is dilated by a 5 x 5 maximum.
    """
    dilated = max_pool2d(mask[None, None].float(), 5, stride=1, padding=2)[0, 0] > 0
    total = trait_map.double().sum()
    return float((trait_map.double() * dilated).sum() / total) if total > 0 else 0.0


def funnybirds_scores(scenes: Sequence[Scene]) -> dict[str, float | None]:
    """
    All scores, in [0, 1].

    Args:
        scenes: One or more.

    Returns:
        `accuracy` on the scenes, `threshold` (t), `csdc`, `pc`, `dc`, `d`, `bi`, `sd`, `ts`, `com`, `cor`, `con` and
        `mx`. A score that no scene has, such as `bi` without objects, is None.
    """
    best = max((_at_threshold(scenes, float(t)) for t in THRESHOLDS), key=_completeness_and_distractibility)
    background = [_background_independence(scene) for scene in scenes if scene.without_object]
    scores: dict[str, float | None] = {
        "accuracy": fmean(scene.prediction(scene.all_parts) == scene.label for scene in scenes),
        **best,
        "bi": fmean(background) if background else None,
        "sd": fmean(_single_deletion(scene) for scene in scenes),
        "ts": _mean([_target_sensitivity(scene) for scene in scenes]),
    }
    scores["com"] = _completeness_and_distractibility(best) / 2
    scores["cor"], scores["con"] = scores["sd"], scores["ts"]
    scores["mx"] = _mean([scores["com"], scores["cor"], scores["con"]])
    return scores


def _at_threshold(scenes: Sequence[Scene], threshold: float) -> dict[str, float]:
    """The scores that depend on t; of those that no scene has, 0."""
    csdc, pc, dc, d = [], [], [], []
    for scene in scenes:
        important = frozenset(part for part, value in scene.parts.items() if value > threshold)
        predicted = scene.prediction(scene.all_parts)
        if predicted == scene.label:
            shares = [len(kept & important) / len(kept) if kept else 1.0 for kept in scene.minimal_sufficient_sets]
            csdc.append(max(shares))
        pc.append(scene.prediction(important) == predicted)
        dc.append(scene.prediction(scene.all_parts - important) != predicted)
        irrelevant = [scene.parts[part] for part, fall in scene.falls.items() if fall < scene.least_fall]
        pairs = zip(scene.objects, scene.without_object, strict=True)
        irrelevant += [value for value, logit in pairs if scene.logit - logit < scene.least_fall]
        if irrelevant:
            d.append(1 - fmean(value > threshold for value in irrelevant))
    means = {
        name: fmean(values) if values else 0.0 for name, values in (("csdc", csdc), ("pc", pc), ("dc", dc), ("d", d))
    }
    return {"threshold": threshold, **means}


def _completeness_and_distractibility(scores: Mapping[str, float]) -> float:
    return (scores["csdc"] + scores["pc"] + scores["dc"]) / 3 + scores["d"]


def _background_independence(scene: Scene) -> float:
    return 1 - fmean(scene.logit - logit >= scene.least_fall for logit in scene.without_object)


def _single_deletion(scene: Scene) -> float:
    rho = spearman([scene.parts[part] for part in scene.falls], list(scene.falls.values()))
    return ((rho or 0.0) + 1) / 2


def _target_sensitivity(scene: Scene) -> float | None:
    if scene.overlaps is None:
        return None
    (first, own), (second, others) = scene.overlaps
    ranks_own = sum(first[part] for part in own) > sum(first[part] for part in others)
    return float(ranks_own and sum(second[part] for part in others) > sum(second[part] for part in own))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
