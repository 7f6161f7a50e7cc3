"""`promptcam compare`, as a function and as a command, and its sheet."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from promptcam_hf.modeling.images_promptcam import TWO_COLOURS, draw_comparison
from transformers import pipeline

from promptcam_hf.explanation.compare import compare
from promptcam_hf.explanation.comparison_sheet import ConfusedPair, comparison_sheet, confused_pairs_sheet, whole_cells
from promptcam_hf.explanation.drawing import is_sheet

from ..command_line import promptcam

GREY = Image.new("RGB", (60, 60), (120, 120, 120))


def compared(a: str = "Scott_Oriole", b: str = "Hooded_Oriole") -> dict:
    """A class that is spoken for in the upper left corner, and its runner-up, in the lower right."""
    own, other = np.float32([[2, 0], [0, 0]]), np.float32([[1.5, 0], [0, 1]])
    traits = [{"rank": 1, "head": 3, "map": (other - own) / 4, "heatmap": None}]
    comparison = {"label": b, "score": 0.2, "num_sufficient": 2, "map": own - other, "traits": traits}
    return {"label": a, "score": 0.7, "comparison": comparison | {"own": own, "other": other, "shared": own * 0}}


def is_in(picture: Image.Image, sheet: Image.Image) -> bool:
    """Whether a picture lies somewhere on the left edge grid of a sheet, pixel by pixel."""
    wanted, (width, height) = picture.tobytes(), picture.size
    boxes = ((x, y) for y in range(sheet.height - height + 1) for x in range(sheet.width - width + 1))
    first = picture.getpixel((0, 0))
    return any(
        sheet.getpixel((x, y)) == first and sheet.crop((x, y, x + width, y + height)).tobytes() == wanted
        for x, y in boxes
    )


def test_a_sheet_shows_both_classes_on_one_scale_and_their_difference_on_its_own():
    explanation = compared()
    sheet = comparison_sheet(GREY, [explanation], cell_height=30)
    small, comparison = GREY.resize((30, 30)), explanation["comparison"]
    for signed, scale in (
        (comparison["own"], 2.0),
        (-comparison["other"], 2.0),
        (comparison["map"], 1.0),
        (comparison["traits"][0]["map"], 0.25),
    ):
        assert is_in(draw_comparison(small, signed, scale), sheet)
    assert is_in(small, sheet)


@pytest.mark.parametrize(
    ("factor", "scores", "said"),
    [
        (1, (0.7, 0.2), "both together, on its own scale"),
        (-1, (0.7, 0.2), "in sum for the class that scores lower"),
        (-1, (0.2, 0.7), "both together, on its own scale"),
        (1, (0.2, 0.7), "in sum for the class that scores lower"),
    ],
)
def test_a_map_that_speaks_for_the_class_that_scores_lower_says_so(factor, scores, said):
    explanation = compared()
    comparison = explanation["comparison"] | {"map": factor * np.float32([[1, 0], [0, -0.5]]), "score": scores[1]}
    cells = whole_cells(GREY, explanation | {"score": scores[0], "comparison": comparison})
    assert cells[-1][-1] == said


def test_the_colours_of_the_two_classes_are_told_apart_by_blue_and_by_lightness():
    positive, negative = (np.asarray(draw_comparison(GREY, np.float32([[sign]])), int)[30, 30] for sign in (1.0, -1.0))
    assert positive[2] < positive[0]
    assert negative[2] > negative[0]
    neutral = np.asarray(draw_comparison(GREY, np.float32([[0.0]])), int)[30, 30]
    assert neutral.sum() < min(positive.sum(), negative.sum()) - 100
    lightness = TWO_COLOURS.astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness[:128]) <= 0.5).all()
    assert (np.diff(lightness[128:]) >= -0.5).all()


def test_a_map_of_zeros_can_be_drawn():
    assert draw_comparison(GREY, np.zeros((2, 2))).size == GREY.size


@pytest.mark.parametrize("size", [(1, 1), (4000, 1000), (300, 1500)])
def test_photographs_of_any_shape_and_names_of_any_length(size):
    photograph, explanation = Image.new("RGB", size, "red"), compared("x" * 300, "å" * 300)
    assert comparison_sheet(photograph, [explanation, explanation], title="y" * 500).height > 1000
    assert confused_pairs_sheet([ConfusedPair([(photograph, explanation)], "1 of 3")]).width > 300


def test_sheets_and_record_are_those_of_the_pipeline(checkpoint, bird_folder, tmp_path):
    paths = sorted(bird_folder.glob("test/*/*.jpg"))[:3]
    (tmp_path / "bad.jpg").write_text("not an image")
    result = compare([*paths, tmp_path / "bad.jpg"], checkpoint, tmp_path / "out", device="cpu", progress=False)
    assert (result.num_written, list(result.errors)) == (3, [str(tmp_path / "bad.jpg")])
    rows = [json.loads(line) for line in result.record.read_text().splitlines()]
    assert result.compared_with == Counter(row["explanations"][0]["comparison"]["label"] for row in rows[:3])
    pipe = pipeline("prompt-cam", model=str(checkpoint), device="cpu", compare_with="auto")
    for path, row in zip(paths, rows, strict=False):
        (explanation,), (expected,) = row["explanations"], pipe(str(path))
        assert explanation["comparison"]["label"] == expected["comparison"]["label"]
        for name in ("map", "own", "other", "shared"):
            np.testing.assert_allclose(explanation["comparison"][name], expected["comparison"][name], atol=1e-5)
        assert "heatmap" not in explanation["comparison"]
        assert is_sheet(tmp_path / "out" / row["sheet"])


def test_the_command_compares_the_classes_it_is_given(checkpoint, photograph, tmp_path):
    given = ["--model", checkpoint, "--output-dir", f"{tmp_path / 'out'}/", "--device", "cpu"]
    result = promptcam("compare", photograph, *given, "--a", "Scott_Oriole", "--b", "Indigo_Bunting")
    assert result.exit_code == 0, result.output
    assert "comparing: " in result.stderr
    assert result.stdout.splitlines()[-1] == f"1 contact sheet and explanations.jsonl in {tmp_path / 'out'}"
    (explanation,) = json.loads((tmp_path / "out" / "explanations.jsonl").read_text())["explanations"]
    assert (explanation["label"], explanation["comparison"]["label"]) == ("Scott_Oriole", "Indigo_Bunting")
    given[3] = tmp_path / "itself"
    itself = promptcam("compare", photograph, *given, "--a", "Scott_Oriole", "--b", "Scott_Oriole")
    said = f"{tmp_path / 'itself'}; on 1 of these, A is Scott_Oriole itself, so B is the runner-up"
    assert itself.stdout.splitlines()[-1].endswith(f" in {said}")
    given[3] = tmp_path / "out"
    before = {path: path.read_bytes() for path in Path(tmp_path / "out").iterdir()}
    again = promptcam("compare", photograph, *given)
    assert again.exit_code == 1
    assert "exists; choose another folder" in again.stderr
    assert {path: path.read_bytes() for path in Path(tmp_path / "out").iterdir()} == before


def test_the_command_tells_an_unknown_class_in_a_line(checkpoint, photograph, tmp_path):
    given = ["--model", checkpoint, "--output-dir", tmp_path / "out", "--b", "Scot_Oriole"]
    result = promptcam("compare", photograph, *given)
    assert result.exit_code == 1
    message = "error: The model knows no class 'Scot_Oriole'; expected 'Scott_Oriole' or "
    assert result.stderr.splitlines()[-1].startswith(message)
    assert not (tmp_path / "out").exists()
