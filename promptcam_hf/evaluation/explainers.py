"""Classifiers that can show where they look, which `faithfulness.py` and `trait_metrics.py` measure.

Shapes: B images of H x W pixels, C classes, M maps on a grid of h x w patches.
"""

from typing import Protocol

import torch

from ..modeling import PromptCamForImageClassification
from .prediction import logits_of

TOP_MAPS = 4  # of the maps for a class, how many are considered together


class Explainer(Protocol):
    """A classifier with a method that maps where it looks. Images are on the CPU; results may be on any device."""

    name: str

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Scores `(B, C)` for images `(B, 3, H, W)`."""
        ...

    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """For images `(B, 3, H, W)` and one class per image `(B,)`: maps `(B, M, h, w)` of values from 0 up, the most
        important map first. M is 1 for a method with a single map."""
        ...


class PromptCamExplainer:
    """
    The maps of a Prompt-CAM: one per head, in the order of `rank_heads`.

    Args:
        model: The model, on any device. It is put in evaluation mode.
    """

    name = "Prompt-CAM"

    def __init__(self, model: PromptCamForImageClassification):
        self.model = model.eval()

    @torch.no_grad()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Scores `(B, C)` of images `(B, 3, H, W)`."""
        return logits_of(self.model, pixel_values.to(self.model.device))

    @torch.no_grad()
    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """The trait maps of a class per image `(B, heads, grid_height, grid_width)`, the most important head first."""
        device = self.model.device
        ranking = self.model.rank_heads(pixel_values.to(device), classes.to(device))
        maps, order = ranking.trait_maps, ranking.order  # (B, heads, h, w), (B, heads)
        return maps.gather(1, order[..., None, None].expand_as(maps))


class ComparisonExplainer(PromptCamExplainer):
    """
    What speaks for a class and against the runner-up on the image: one map, the sum over all heads of
    `PromptCamForImageClassification.compare`, with 0 where the runner-up is spoken for.
    """

    name = "Prompt-CAM, comparison with the runner-up"

    @torch.no_grad()
    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """One map of a class per image `(B, 1, grid_height, grid_width)`, 0 or more, in units of the logit."""
        device = self.model.device
        comparison = self.model.compare(pixel_values.to(device), classes.to(device))
        return comparison.maps.sum(1, keepdim=True).clamp_min(0)  # (B, heads, h, w) -> (B, 1, h, w)


@torch.no_grad()
def explainer_logits(explainer: Explainer, pixel_values: torch.Tensor) -> torch.Tensor:
    """An explainer's scores `(B, C)` for images `(B, 3, H, W)`: float32, on the CPU."""
    return explainer.logits(pixel_values).float().cpu()


def explainer_maps(explainer: Explainer, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """
    An explainer's maps for images `(B, 3, H, W)` and classes `(B,)`.

    Returns:
        Maps `(B, M, h, w)`: float32, on the CPU.

    Raises:
        ValueError: If the maps have another shape, or values that are negative or not a number.
    """
    maps = explainer.maps(pixel_values, classes).detach().float().cpu()
    if maps.dim() != 4 or len(maps) != len(pixel_values) or not (maps >= 0).all():
        raise ValueError(
            f"{explainer.name}: maps of shape {tuple(maps.shape)} with the lowest value {maps.min():.3g}; expected "
            f"({len(pixel_values)}, maps, height, width) and no value below 0."
        )
    return maps
