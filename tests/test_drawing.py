import numpy as np
import pytest
from PIL import Image

from promptcam_hf.drawing import contact_sheet


def explanation(label: str, colours: list[str], size: tuple[int, int], num_sufficient: int = 1) -> dict:
    traits = [
        {"rank": rank, "head": rank + 3, "map": np.zeros((2, 2)), "heatmap": Image.new("RGB", size, colour)}
        for rank, colour in enumerate(colours, start=1)
    ]
    return {"label": label, "score": 0.5, "num_sufficient": num_sufficient, "traits": traits}


def colours_along(sheet: Image.Image, y: int) -> list[tuple[int, int, int]]:
    """The colours of a row of pixels, runs folded, paper left out."""
    row = [sheet.getpixel((x, y)) for x in range(sheet.width)]
    return [c for i, c in enumerate(row) if c != (255, 255, 255) and (i == 0 or row[i - 1] != c)]


def test_a_row_a_class_the_photograph_first_then_its_traits():
    size = (60, 60)
    sheet = contact_sheet(
        Image.new("RGB", size, "navy"),
        [explanation("Scott_Oriole", ["red", "lime"], size), explanation("Hooded_Oriole", ["blue"], size)],
    )
    navy, red, lime, blue = (0, 0, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert colours_along(sheet, 12 + 130) == [navy, red, lime]
    assert colours_along(sheet, 12 + 260 + 44 + 12 + 130) == [navy, blue]


@pytest.mark.parametrize("size", [(1, 1), (4000, 1000), (300, 1500), (50, 80)])
def test_photographs_of_any_shape_keep_their_aspect(size):
    sheet = contact_sheet(Image.new("RGB", size, "red"), [explanation("a", ["red"], size)], title="x" * 500)
    pixels = np.asarray(sheet)
    assert max(sheet.size) < 2000
    red = (pixels == (255, 0, 0)).all(-1)[:, : sheet.width // 2]
    height, width = (int(red.any(axis).sum()) for axis in (1, 0))
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)
    assert red.any()
