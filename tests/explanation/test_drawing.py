import numpy as np
import pytest
from PIL import Image

from promptcam_hf.explanation.drawing import Misclassified, contact_sheet, misclassified_sheet


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


def misclassified(pair: tuple[str, str], colours: list[str], size: tuple[int, int] = (60, 60)) -> Misclassified:
    """A photograph of the first colour, the true class's traits of the next two, the predicted class's of the rest."""
    true, predicted = (
        explanation(label, traits, size) for label, traits in zip(pair, (colours[1:3], colours[3:]), strict=True)
    )
    return Misclassified(Image.new("RGB", size, colours[0]), "0001.jpg", true, predicted, "3 of 30")


def test_a_row_a_misclassified_photograph_the_true_class_first():
    orioles, wrens = ("Scott_Oriole", "Hooded_Oriole"), ("House_Wren", "Marsh_Wren")
    colours = [["navy", "red", "lime", "blue", "yellow"], ["teal", "lime", "red", "yellow", "blue"]]
    first, second = (misclassified(orioles, row) for row in colours)
    sheet = misclassified_sheet([first, second, misclassified(wrens, colours[0])])
    navy, teal, red, lime, blue, yellow = (
        (0, 0, 128), (0, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
    )  # fmt: skip
    top, row, heading = 12, 200 + 44 + 12, 40
    assert colours_along(sheet, top + heading + 100) == [navy, red, lime, blue, yellow]
    # Of the same two classes, so without a heading of its own
    assert colours_along(sheet, top + heading + row + 1) == [teal, lime, red, yellow, blue]
    assert colours_along(sheet, top + heading + 2 * row + heading + 1) == [navy, red, lime, blue, yellow]
    assert sheet.height == top + 2 * heading + 3 * row


@pytest.mark.parametrize("size", [(1, 1), (4000, 400), (300, 1500)])
def test_misclassified_photographs_of_any_shape_keep_their_aspect(size):
    pair = ("a" * 500, "b" * 500)
    rows = [misclassified(pair, ["red"] * 5, (50, 80)), misclassified(pair, ["red"] * 5, size)]
    sheet = misclassified_sheet(rows)
    assert max(sheet.size) < 2000
    red = (np.asarray(sheet) == (255, 0, 0)).all(-1)[sheet.height - 256 :, : sheet.width // 5]
    height, width = (int(red.any(axis).sum()) for axis in (1, 0))
    assert red.any()
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)
