import itertools

import pytest
import torch

from promptcam_hf.evaluation.explainers import ComparisonExplainer, PromptCamExplainer

from ..tiny_models import images, tiny_model
from .cases import PATCH, SIZE


@pytest.mark.parametrize("size", [SIZE, 48])
def test_maps_of_a_prompt_cam_are_its_heads_by_importance(size):
    model = tiny_model("vit").train()
    explainer, pixel_values, classes = PromptCamExplainer(model), images(3, size=size), torch.tensor([4, 0, 2])
    assert not model.training
    torch.testing.assert_close(explainer.logits(pixel_values), model(pixel_values).logits)
    maps, ranking = explainer.maps(pixel_values, classes), model.rank_heads(pixel_values, classes)
    assert maps.shape == (3, 4, size // PATCH, size // PATCH)
    assert not maps.requires_grad
    for image, rank in itertools.product(range(3), range(4)):
        assert maps[image, rank].equal(ranking.trait_maps[image, ranking.order[image, rank]])
    assert len({tuple(order) for order in ranking.order.tolist()}) > 1


def test_the_map_of_a_comparison_is_what_speaks_for_the_class_and_against_its_runner_up():
    model, pixel_values, classes = tiny_model("vit"), images(3), torch.tensor([4, 0, 2])
    maps = ComparisonExplainer(model).maps(pixel_values, classes)
    whole = model.compare(pixel_values, classes).maps.sum(1)
    assert maps.shape == (3, 1, 4, 4)
    assert whole.min() < 0 < whole.max()
    torch.testing.assert_close(maps[:, 0], whole.clamp_min(0))
