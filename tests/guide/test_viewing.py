import pytest
import torch
from promptcam_hf.modeling.images_promptcam import over_photographs

from promptcam_hf.guide.viewing import look

from ..tiny_models import CASES, images, tiny_model


@pytest.mark.parametrize(("family", "layer"), CASES)
def test_features_are_the_patches_that_enter_the_last_layer(family, layer):
    model = tiny_model(family, layer, num_labels=40)  # more prompts than the 16 patches
    pixel_values, labels = images(3), torch.tensor([0, 7, 39])
    expected = model.rank_heads(pixel_values, labels)
    with torch.no_grad():
        entering = model(pixel_values, output_hidden_states=True).hidden_states[model.num_layers - 1]
        patches = model.layer_parts(model.num_layers).norm1(entering)[:, -16:].unflatten(1, (4, 4))
    with model.cached_prompts():
        for _ in range(2):  # the second time, the prompts are not normed again
            ranking, features = look(model, pixel_values, labels, torch.ones(len(labels), 2))
            assert ranking.order.equal(expected.order)
            torch.testing.assert_close(ranking.trait_maps, expected.trait_maps)
            torch.testing.assert_close(features[:, 1, 2], patches[:, 0:3, 1:4].mean((1, 2)))
            torch.testing.assert_close(features[:, 0, 3], patches[:, 0:2, 2:4].mean((1, 2)))  # in a corner
        shares = torch.tensor([[1, 0.4], [1, 1], [0.6, 1]])  # padded photographs
        laid, over = look(model, pixel_values, labels, shares)
        assert laid.trait_maps.equal(over_photographs(ranking.trait_maps, shares))
        assert over.movedim(-1, 1).equal(over_photographs(features.movedim(-1, 1), shares))
    assert not model.layer_parts(model.num_layers).norm1._forward_hooks


def test_broken_weights_are_told():
    model = tiny_model()
    with torch.no_grad():
        model.score_head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="scores are not finite"):
        look(model, images(1), torch.tensor([0]), torch.ones(1, 2))
