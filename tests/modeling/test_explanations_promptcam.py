import numpy as np
import pytest
from promptcam_hf.modeling.explanations_promptcam import trait_region


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
