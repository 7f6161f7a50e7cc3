import numpy as np
import pytest
from PIL import Image
from promptcam_hf.modeling.images_promptcam import draw_heatmap

from promptcam_hf.explanation.drawing import Misclassified, contact_sheet, is_sheet, misclassified_sheet, write_sheet

GREY = (120, 120, 120)


def explanation(label: str, places: list[int], num_sufficient: int = 1) -> dict:
    """Traits whose maps have all of their attention in one of the four corners."""
    traits = [
        {"rank": rank, "head": rank + 3, "map": np.eye(4, dtype=np.float32)[place].reshape(2, 2), "heatmap": None}
        for rank, place in enumerate(places, start=1)
    ]
    return {"label": label, "score": 0.5, "num_sufficient": num_sufficient, "traits": traits}


def pictures_along(sheet: Image.Image, top: int, height: int) -> list[int | str]:
    """Which pictures are in a row of a sheet: the photograph, or heatmaps, by the place of their attention."""
    heatmaps = [
        draw_heatmap(Image.new("RGB", (height, height), GREY), np.eye(4)[place].reshape(2, 2)) for place in range(4)
    ]
    known = {picture.tobytes(): place for place, picture in enumerate(heatmaps)}
    known[Image.new("RGB", (height, height), GREY).tobytes()] = "photograph"
    boxes = ((x, top, x + height, top + height) for x in range(sheet.width - height))
    return [known[crop] for crop in (sheet.crop(box).tobytes() for box in boxes) if crop in known]


def test_a_row_a_class_the_photograph_first_then_its_traits():
    rows = [explanation("Scott_Oriole", [3, 0]), explanation("Hooded_Oriole", [1])]
    sheet = contact_sheet(Image.new("RGB", (60, 60), GREY), rows, cell_height=40)
    assert pictures_along(sheet, 12, 40) == ["photograph", 3, 0]
    assert pictures_along(sheet, 12 + 40 + 44 + 12, 40) == ["photograph", 1]


def test_a_trait_is_called_by_its_name():
    photograph, row = Image.new("RGB", (60, 60), GREY), explanation("Scott_Oriole", [3, 0])
    by_rank = contact_sheet(photograph, [row])
    row["traits"][0]["trait"] = "trait 1"  # as the first is called without names
    row["traits"][1]["trait"] = None
    named = contact_sheet(photograph, [row])
    left, top = 12 + 2 * 272, 12 + 260  # of what is below the second heatmap: its name and its head, or only its head
    lines = [(left, top + first, named.width, top + first + 20) for first in (2, 22)]
    assert [np.asarray(by_rank.crop(line)).min() < 200 for line in lines] == [True, True]
    assert [np.asarray(named.crop(line)).min() < 200 for line in lines] == [True, False]
    first_half = (0, 0, left, named.height)
    assert named.crop(first_half).tobytes() == by_rank.crop(first_half).tobytes()


@pytest.mark.parametrize("size", [(1, 1), (4000, 1000), (300, 1500), (50, 80)])
def test_photographs_of_any_shape_keep_their_aspect(size):
    sheet = contact_sheet(Image.new("RGB", size, "red"), [explanation("a", [0])], title="x" * 500)
    pixels = np.asarray(sheet)
    assert max(sheet.size) < 2000
    red = (pixels == (255, 0, 0)).all(-1)[:, : sheet.width // 2]
    height, width = (int(red.any(axis).sum()) for axis in (1, 0))
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)
    assert red.any()


def misclassified(
    pair: tuple[str, str], places: list[int], size: tuple[int, int] = (60, 60), colour: object = GREY
) -> Misclassified:
    """The first two places are those of the true class's traits, the others those of the predicted class's."""
    true, predicted = (explanation(label, traits) for label, traits in zip(pair, (places[:2], places[2:]), strict=True))
    return Misclassified(Image.new("RGB", size, colour), "0001.jpg", true, predicted, "3 of 30")


def test_a_row_a_misclassified_photograph_the_true_class_first():
    orioles, wrens = ("Scott_Oriole", "Hooded_Oriole"), ("House_Wren", "Marsh_Wren")
    places = [[0, 1, 2, 3], [3, 2, 1, 0]]
    first, second = (misclassified(orioles, row) for row in places)
    sheet = misclassified_sheet([first, second, misclassified(wrens, places[0])], cell_height=40)
    top, row, heading = 12, 40 + 44 + 12, 40
    assert pictures_along(sheet, top + heading, 40) == ["photograph", 0, 1, 2, 3]
    # Of the same two classes, so without a heading of its own
    assert pictures_along(sheet, top + heading + row, 40) == ["photograph", 3, 2, 1, 0]
    assert pictures_along(sheet, top + heading + 2 * row + heading, 40) == ["photograph", 0, 1, 2, 3]
    assert sheet.height == top + 2 * heading + 3 * row


@pytest.mark.parametrize("size", [(1, 1), (4000, 400), (300, 1500)])
def test_misclassified_photographs_of_any_shape_keep_their_aspect(size):
    pair = ("a" * 500, "b" * 500)
    rows = [misclassified(pair, [0] * 4, shape, "red") for shape in ((50, 80), size)]
    sheet = misclassified_sheet(rows)
    assert max(sheet.size) < 2000
    red = (np.asarray(sheet) == (255, 0, 0)).all(-1)[sheet.height - 256 :, : sheet.width // 5]
    height, width = (int(red.any(axis).sum()) for axis in (1, 0))
    assert red.any()
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)


def test_contact_sheet_is_known_whatever_its_name(tmp_path):
    sheet = contact_sheet(Image.new("RGB", (60, 60)), [explanation("a", [0])])
    (tmp_path / "bird.png").write_bytes(write_sheet(sheet))
    Image.new("RGB", (60, 60)).save(tmp_path / "photograph.png")
    (tmp_path / "broken.png").write_bytes(write_sheet(sheet)[:20])
    assert [is_sheet(tmp_path / f"{name}.png") for name in ("bird", "photograph", "broken", "missing")] == [
        True, False, False, False
    ]  # fmt: skip


def test_long_label_does_not_push_its_percentage_off_the_sheet():
    def caption(label: str, score: float) -> np.ndarray:
        sheet = contact_sheet(Image.new("RGB", (60, 60), GREY), [explanation(label, []) | {"score": score}])
        return np.asarray(sheet)[12 + 260 :]

    for label in ("wren " * 40, "x" * 4000, "\n\t" * 2000 + "y" * 2000):
        assert (caption(label, 0.123) != caption(label, 0.987)).any()
        assert (caption(label, 0.123)[:, -8:] == 255).all()  # and stays within the margin
