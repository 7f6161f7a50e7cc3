import json
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from promptcam_hf.modeling.explanations_promptcam import trait_region
from transformers import pipeline


def test_peak_and_box_are_in_pixels_of_the_photograph():
    attention = np.zeros((4, 8))
    attention[1, 6] = 1
    assert trait_region(attention, (800, 200)) == {"peak": [650.0, 75.0], "box": [600.0, 50.0, 700.0, 100.0]}


def test_box_holds_a_fifth_of_the_attention_in_as_few_patches_as_can():
    attention = np.full((10, 10), 0.2)
    attention[2, 3], attention[4, 3], attention[2, 5] = 3, 2.5, 2  # of 26.9: 5.38 is a fifth
    region = trait_region(attention, (100, 100))
    assert region["peak"] == [35.0, 25.0]
    assert region["box"] == [30.0, 20.0, 40.0, 50.0]
    inside = attention[2:5, 3:4].sum()
    assert inside >= 0.2 * attention.sum()


@pytest.mark.parametrize("attention", [np.zeros((2, 2)), np.full((2, 2), 0.25, np.float16)])
def test_a_map_without_a_peak_has_the_first_patch(attention):
    assert trait_region(attention, (20, 20)) == {"peak": [5.0, 5.0], "box": [0.0, 0.0, 10.0, 10.0]}


@pytest.fixture(scope="module")
def answer(checkpoint, photograph):
    """A photograph that is wider than high and larger than heatmaps in JSON are."""
    wide = Image.open(photograph).resize((900, 600))
    return pipeline("prompt-cam", model=str(checkpoint))(wide, top_k=2, top_traits=2, compare_with="auto")


def test_traits_say_where_they_are(answer):
    for explanation in answer:
        for trait in explanation["traits"]:
            assert trait_region(trait["map"], (900, 600)) == {"peak": trait["peak"], "box": trait["box"]}
        for trait in explanation["comparison"]["traits"]:
            row, column = np.unravel_index(trait["map"].argmax(), trait["map"].shape)  # where it speaks most for a
            assert trait["peak"] == [(column + 0.5) * 900 / 4, (row + 0.5) * 600 / 4]


def test_json_has_the_numbers_and_what_is_asked_for(answer):
    plain = answer.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["width"], plain["height"]) == (900, 600)
    for found, explanation in zip(plain["explanations"], answer, strict=True):
        assert found.keys() == {"label", "score", "num_sufficient", "traits", "comparison"}
        assert found["comparison"].keys() == {"label", "score", "num_sufficient", "traits"}
        for trait, other in zip(found["traits"], explanation["traits"], strict=True):
            assert trait == {name: other[name] for name in ("rank", "head", "peak", "box")}
    full = answer.to_json(maps=True, images=True)
    assert json.loads(json.dumps(full, allow_nan=False)) == full
    for found, explanation in zip(full["explanations"], answer, strict=True):
        np.testing.assert_array_equal(np.array(found["traits"][0]["map"], np.float32), explanation["traits"][0]["map"])
        for holder in (found["traits"][1], found["comparison"], found["comparison"]["traits"][0]):
            picture = Image.open(BytesIO(b64decode(holder["heatmap"])))
            assert (picture.format, picture.size) == ("PNG", (512, 341))
    assert answer[0]["traits"][0]["heatmap"].size == (900, 600)  # which stays as it was
