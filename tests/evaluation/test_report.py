import os
import shutil

import datasets
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import EvaluationTransform, Photographs
from promptcam_hf.data.splits import load_splits
from promptcam_hf.evaluation.evaluate import evaluate
from promptcam_hf.evaluation.prediction import class_names, predict
from promptcam_hf.evaluation.report import summary, write_report
from promptcam_hf.explanation.drawing import contact_sheet

from ..tiny_models import tiny_model
from .cases import predicted, table

NAMES = ["wren", "robin", "heron", "crane", "swift", "egret"]


def test_summary_names_the_worst_classes_first():
    predictions = predicted(
        [0, 0, 1, 1, 2],
        [[1, 0, 2, 3, 4], [2, 0, 1, 3, 4], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4], [2, 0, 1, 3, 4]],
        [0.5] * 5,
    )
    lines = summary(predictions, NAMES, "test").splitlines()
    assert lines[0] == "5 photographs in test/ of 3 of the model's 6 classes"
    # 2 of 5: (0.4 * 5 + 1.92) / (5 + 3.84), and 1.96 standard errors of it
    assert " ".join(lines[1].split()) == "accuracy 40.00% 95 % interval: 11.8% to 76.9%"
    # Taken once for a heron and once for a robin: the first by name
    assert [" ".join(line.split()) for line in lines[-2:]] == [
        "wren 0.0% of 2 most often taken for heron",
        "robin 50.0% of 2 most often taken for wren",
    ]
    one = predicted([2], [[2, 0, 1, 3, 4]], [0.5])
    assert summary(one, NAMES, "test").startswith("1 photograph in test/ of 1 of the model's 6 classes\n")
    assert "lowest accuracy" not in summary(one, NAMES, "test")
    assert "top-5" in summary(one, NAMES, "test")
    assert "top-5" not in summary(one, NAMES[:5], "test")


def test_most_confused_with_breaks_ties_by_name(model, photographs, tmp_path):
    names = class_names(model)
    by_name = sorted(range(4), key=lambda label: names[label])
    true, *others = by_name
    top_classes = torch.tensor([[others[2]], [others[1]], [others[0]]]).repeat(4, 5)
    predictions = predicted([true] * 12, top_classes.tolist(), [0.5] * 12)
    write_report(predictions, photographs, model, new_image_processor(32), tmp_path, {"model": "m"})
    assert table(tmp_path / "confusions.csv")[1:] == [[names[true], names[other], "4"] for other in others]
    assert table(tmp_path / "per_class.csv")[1:] == [[names[true], "12", "0", "0.0", names[others[0]]]]


def test_class_names_are_no_formulas(photographs, tmp_path):
    names = ['=HYPERLINK("http://x")', "+1", "-2+3", "@SUM(A1)"]
    model = tiny_model("vit", id2label=dict(enumerate(names)))
    predictions = predicted([0, 1, 2, 3] * 3, [[1, 0], [2, 0], [3, 0], [0, 1]] * 3, [0.5] * 12)
    write_report(predictions, photographs, model, new_image_processor(32), tmp_path, {})
    for file, columns in (("per_class.csv", (0, 4)), ("confusions.csv", (0, 1))):
        rows = table(tmp_path / file)[1:]
        assert {row[column] for row in rows for column in columns} == {f"'{name}" for name in names}


def test_the_picture_shows_the_most_confident_mistakes(model, photographs, tmp_path):
    """Each of 12 photographs has a shade of red of its own, by which it is found in the picture."""
    rows = [{"path": None, "bytes": None} for _ in range(12)]
    for row, image in enumerate(rows):
        image["path"] = str(tmp_path / f"{row}.png")
        Image.new("RGB", (40, 40), (100 + 10 * row, 0, 0)).save(image["path"])
    photographs.split = datasets.Dataset.from_list([{"image": image, "label": 0} for image in rows])
    confidence = [0.3, 0.9, 0.4, 0.8] + [0.5] * 8
    top_classes = [[1, 0, 2, 3, 4]] * 4 + [[0, 1, 2, 3, 4]] * 8
    predictions = predicted([0] * 12, top_classes, confidence)
    write_report(predictions, photographs, model.train(), new_image_processor(32), tmp_path / "out", {})
    assert model.training
    sheet = Image.open(tmp_path / "out" / "confusions.png")
    colours = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert {row for row in range(12) if (100 + 10 * row, 0, 0) in colours} == {1, 3}
    sheet = Image.open(tmp_path / "out" / "comparisons.png")  # where up to four are shown
    colours = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert {row for row in range(12) if (100 + 10 * row, 0, 0) in colours} == {0, 1, 2, 3}


def test_without_confusions_no_picture_not_even_an_old_one(model, photographs, tmp_path):
    for name in ("comparisons.png", "confusions.png"):
        (tmp_path / name).write_bytes(b"of an earlier report")
    (tmp_path / "notes.txt").write_text("mine")
    labels = [row["label"] for row in photographs.split]
    predictions = predicted(labels, [[label, 4] for label in labels], [0.5] * 12)
    write_report(predictions, photographs, model, new_image_processor(32), tmp_path, {})
    names = ["confusions.csv", "notes.txt", "per_class.csv", "results.json", "traits.png"]
    assert sorted(os.listdir(tmp_path)) == names
    assert table(tmp_path / "confusions.csv") == [["true", "predicted", "count"]]
    assert {row[4] for row in table(tmp_path / "per_class.csv")[1:]} == {""}


def test_traits_are_shown_for_classes_that_are_recognised(model, photographs, tmp_path):
    labels = [row["label"] for row in photographs.split]
    for recognised in ([], [0], [0, 1, 2, 3]):
        top = [[label if label in recognised else 4, 0] for label in labels]
        predictions = predicted(labels, top, [0.5] * 12)
        write_report(predictions, photographs, model, new_image_processor(32), tmp_path, {})
        if not recognised:
            assert not (tmp_path / "traits.png").exists()
            continue
        height = Image.open(tmp_path / "traits.png").height
        assert (
            height
            == len(recognised)
            * contact_sheet(
                photographs.photograph(0),
                [{"label": "", "score": 1.0, "num_sufficient": 1, "traits": []}],
                cell_height=200,
            ).height
        )


def test_a_report_that_cannot_be_finished_leaves_the_earlier_one(checkpoint, bird_folder, tmp_path):
    data, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(bird_folder, data)
    evaluate(checkpoint, data, out, num_workers=0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    split = load_splits(data).evaluation
    photographs = Photographs(split, EvaluationTransform(new_image_processor(32)))
    model = PromptCamForImageClassification.from_pretrained(checkpoint)
    predictions = predict(model, photographs, batch_size=12, accelerator=Accelerator(), progress=False)
    shutil.rmtree(data)  # no photograph can be drawn
    with pytest.raises(ValueError, match="no such file"):
        write_report(predictions, photographs, model, new_image_processor(32), out, {})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
