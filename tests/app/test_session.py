"""What the application says about a photograph is what the model and the pipeline say."""

import numpy as np
import pytest
import torch
from promptcam_hf.modeling.images_promptcam import load_photograph

from promptcam_hf.app.session import DISPLAY_SIZE, Look
from promptcam_hf.checkpoint import new_image_processor, open_pipeline
from promptcam_hf.explanation.predictor import PromptCamPredictor

A, B = "Scott_Oriole", "Indigo_Bunting"


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return open_pipeline(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def look(pipe, photograph) -> Look:
    return Look.at(PromptCamPredictor(pipe, maps=4), load_photograph(photograph).resize((900, 700)))


@pytest.fixture(scope="module")
def ranking(pipe, look, photograph):
    """The model's own ranking of the heads of A, on the same pixels."""
    given = load_photograph(photograph).resize((900, 700))
    pixel_values = pipe.image_processor(images=given, return_tensors="pt")["pixel_values"]
    return pipe.model.rank_heads(pixel_values, torch.tensor([pipe.model.config.label2id[A]]))


def test_ranking_is_of_all_classes_and_the_photograph_is_kept_small(pipe, look, ranking):
    scores = ranking.logits[0].softmax(-1)
    expected = {pipe.model.config.id2label[label]: scores[label].item() for label in range(len(scores))}
    assert dict(look.ranking()) == pytest.approx(expected, rel=1e-4)
    assert [score for _, score in look.ranking()] == sorted((score for _, score in look.ranking()), reverse=True)
    assert max(look.photograph.size) == DISPLAY_SIZE


def test_heads_blurred_by_hand_give_the_probabilities_of_greedy_blurring(look, ranking):
    assert dict(look.blurred(A, [])) == pytest.approx(dict(look.ranking()), rel=1e-5)
    order = ranking.order[0].tolist()
    for count in range(1, len(order) + 1):
        after = dict(look.blurred(A, order[-count:]))
        assert after[A] == pytest.approx(ranking.blurred_probability[0, count - 1].item(), rel=1e-4)
        others = {name: score / (1 - after[A]) for name, score in after.items() if name != A}
        before = dict(look.ranking())
        assert others == pytest.approx({n: s / (1 - before[A]) for n, s in before.items() if n != A}, rel=1e-4)


def test_explanations_are_those_of_the_pipeline(pipe, look, photograph):
    given = load_photograph(photograph).resize((900, 700))
    (expected,) = pipe(given, classes=[A], compare_with=B, top_traits=99, heatmaps=False)
    found = look.explained(A, B)
    assert [trait["head"] for trait in found["traits"]] == [trait["head"] for trait in expected["traits"]]
    assert found["num_sufficient"] == expected["num_sufficient"]
    for name in ("map", "own", "other", "shared"):
        np.testing.assert_allclose(found["comparison"][name], expected["comparison"][name], rtol=1e-3, atol=1e-6)
    assert "comparison" not in look.explained(A)


def test_a_place_belongs_to_the_patch_it_lies_in(look, ranking):
    maps = ranking.trait_maps[0]  # (H, rows, columns)
    rows, columns = maps.shape[-2:]
    for x, y, column, row in ((0.0, 0.0, 0, 0), (1.0, 1.0, columns - 1, rows - 1), (0.99, 0.01, columns - 1, 0)):
        shares = maps[:, row, column] / maps.sum((-2, -1))
        found = look.looking_at(A, x, y)
        assert dict(found) == pytest.approx(dict(enumerate(shares.tolist())), rel=1e-4)
        assert [share for _, share in found] == sorted((share for _, share in found), reverse=True)


def test_maps_lie_over_a_wide_photograph_where_the_aspect_ratio_is_kept(checkpoint, photograph):
    pipe, wide = open_pipeline(checkpoint, device="cpu"), load_photograph(photograph).resize((1280, 640))
    pipe.image_processor = new_image_processor(32, keep_aspect=True)
    explanation = Look.at(PromptCamPredictor(pipe, maps=4), wide).explained(A)
    (expected,) = pipe(wide, classes=[A])
    for trait, other in zip(explanation["traits"], expected["traits"], strict=True):
        np.testing.assert_allclose(trait["map"], other["map"], rtol=1e-5)
