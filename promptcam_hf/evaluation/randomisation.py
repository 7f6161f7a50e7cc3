"""Do maps show what was learned? The test of randomised parameters (MPRT; Adebayo et al., "Sanity Checks for Saliency
Maps", NeurIPS 2018).

A part of the model is replaced by random numbers. A map that stays the same does not show what that part has learned.
For Prompt-CAM the parts are the prompts, which are all that training changes besides the score head, and the last layer
of the backbone, in which the class prompts look at the patches.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch

from ..modeling import PromptCamForImageClassification
from ..modeling.backbone_promptcam import LAYERS, find
from .explainers import TOP_MAPS, PromptCamExplainer, explainer_logits, explainer_maps
from .faithfulness import FAITHFULNESS_IMAGES
from .prediction import EVALUATION_BATCH_SIZE
from .trait_data import TraitData, batches_of, evenly_over_classes
from .trait_metrics import spearman


def measure_randomisation(
    explainer: PromptCamExplainer,
    data: TraitData,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    num_images: int = FAITHFULNESS_IMAGES,
    progress: bool = True,
) -> dict[str, Any]:
    """
    How similar maps are to those of the same model after a part of it is replaced by random numbers. The model must not
    be in its `cached_prompts` context. It is left as it was.

    Args:
        explainer: The model and its maps.
        data: Test images.
        batch_size: Images per forward pass.
        num_images: How many images to measure, evenly spread over the classes.
        progress: Whether to show a progress bar.

    Returns:
        `num_images`, and for each part (`prompts` and `last_layer`) the mean of Spearman's correlation, in [-1, 1],
        between the patches of both maps: the sums of the four most important ones for the class that the model predicts
        as it is. The nearer to 0, the more the map depends on what was learned. A map with the same value everywhere
        counts as 0.

    Raises:
        ValueError: If an image cannot be read.
    """
    rows = evenly_over_classes(data, num_images)
    classes: list[torch.Tensor] = []

    def maps(title: str) -> torch.Tensor:  # (n, h, w)
        found = []
        for number, batch in enumerate(batches_of(rows, batch_size, title, progress)):
            pixel_values = torch.stack([data.photographs[row]["pixel_values"] for row in batch])
            if len(classes) == number:
                classes.append(explainer_logits(explainer, pixel_values).argmax(-1))
            found.append(explainer_maps(explainer, pixel_values, classes[number])[:, :TOP_MAPS].sum(1))
        return torch.cat(found)

    before, similarity = maps("maps"), {}
    for name, parameters in learned_parts(explainer.model).items():
        with randomised(parameters):
            after = maps(f"maps with random {name.replace('_', ' ')}")
        pairs = zip(before.flatten(1).tolist(), after.flatten(1).tolist(), strict=True)
        similarity[name] = fmean(spearman(a, b) or 0.0 for a, b in pairs)
    return {"num_images": len(rows), **similarity}


def learned_parts(model: PromptCamForImageClassification) -> dict[str, list[torch.Tensor]]:
    """The parameters of all prompts (`prompts`), and of the last layer of the backbone (`last_layer`)."""
    prompts = [prompts for prompts in (model.class_prompts, model.agnostic_prompts) if prompts is not None]
    last_layer = find(model.backbone, LAYERS)[model.num_layers - 1]
    return {"prompts": prompts, "last_layer": list(last_layer.parameters())}


@contextmanager
@torch.no_grad()
def randomised(parameters: Iterable[torch.Tensor], seed: int = 0) -> Iterator[None]:
    """Within this context, the parameters are random numbers, normally distributed with the mean and the standard
    deviation that each tensor has."""
    generator = torch.Generator().manual_seed(seed)
    kept = [(parameter, parameter.clone()) for parameter in parameters]
    try:
        for parameter, values in kept:
            drawn = torch.randn(values.shape, generator=generator).to(values)
            parameter.copy_(values.mean() + values.std(unbiased=False) * drawn)
        yield
    finally:
        for parameter, values in kept:
            parameter.copy_(values)
