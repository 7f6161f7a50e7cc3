import copy
import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from promptcam_hf.modeling.pipeline_promptcam import load_photograph
from transformers import pipeline

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.data.photographs import EvaluationTransform, Photographs, load_splits
from promptcam_hf.evaluation.evaluation import (
    Predictions,
    class_names,
    evaluate,
    metrics,
    predict,
    summary,
    write_report,
)
from promptcam_hf.explanation.drawing import contact_sheet

from ..tiny_models import tiny_model

NAMES = ["wren", "robin", "heron", "crane", "swift", "egret"]


@pytest.fixture(autouse=True)
def no_accelerator_before() -> None:
    """Accelerate keeps one state for the process, which another test's precision must not decide."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def model(bird_folder) -> PromptCamForImageClassification:
    """It knows the drawn birds and one more, in another order than the folders', and was taught some of them wrong."""
    names = [*sorted((path.name for path in (bird_folder / "test").iterdir()), reverse=True), "Dodo"]
    model = tiny_model("vit", id2label=dict(enumerate(names)), prompt_dropout=0.0)
    transform = EvaluationTransform(new_image_processor(32))
    paths = sorted(bird_folder.glob("test/*/*.jpg"))
    pixel_values = torch.stack([transform(load_photograph(path)) for path in paths])
    labels = torch.tensor([names.index(path.parent.name) for path in paths])
    labels[[2, 4, 5, 8]] = torch.tensor([0, 4, 4, 1])
    optimizer = torch.optim.Adam([model.class_prompts, model.agnostic_prompts, model.score_head.weight], lr=0.03)
    for _ in range(60):
        model(pixel_values, labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(model(pixel_values).logits.argmax(-1).unique()) > 2
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "birds"
    save_checkpoint(model, new_image_processor(32), folder)
    return folder


@pytest.fixture
def photographs(bird_folder) -> Photographs:
    """12 of them, 3 a class."""
    return Photographs(load_splits(bird_folder).evaluation, EvaluationTransform(new_image_processor(32)))


def predicted(labels: list[int], top_classes: list[list[int]], confidence: list[float]) -> Predictions:
    losses = torch.arange(1, len(labels) + 1, dtype=torch.float64)
    return Predictions(
        torch.tensor(labels), losses, torch.tensor(top_classes), torch.tensor(confidence, dtype=torch.float64)
    )


def equal(a: Predictions, b: Predictions) -> bool:
    return all(torch.equal(vars(a)[name], vars(b)[name]) for name in vars(a))


def table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    predictions = predicted(
        labels=[0, 0, 0, 1, 5],
        top_classes=[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4]],
        confidence=[0.91, 0.99, 0.97, 0.5, 0.49],
    )
    figures = metrics(predictions)
    assert figures["loss"] == 3.0
    assert figures["accuracy"] == 3 / 5
    assert figures["top5_accuracy"] == 4 / 5
    # Classes 2, 3 and 4 do not occur
    assert figures["macro_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    # Bins of a fifteenth: 0.91 | 0.97, 0.99 | 0.49, 0.5
    gaps = [abs(1 - 0.91), abs(1 - 0.97 - 0.99), abs(1 - 0.49 - 0.5)]
    assert figures["calibration_error"] == pytest.approx(sum(gaps) / 5)


def test_certain_and_right_is_calibrated_and_a_bin_holds_its_upper_edge():
    assert metrics(predicted([0, 1], [[0, 1], [1, 0]], [1.0, 1.0]))["calibration_error"] == 0
    # 0.6 closes the ninth bin, so that it cancels against a wrong 0.56 there, and not against a wrong 0.61
    edge, below, above = 9 / 15, 0.56, 0.61
    assert metrics(predicted([0, 1], [[0, 1], [0, 1]], [edge, below]))["calibration_error"] == pytest.approx(
        abs(1 - edge - below) / 2
    )
    assert metrics(predicted([0, 1], [[0, 1], [0, 1]], [edge, above]))["calibration_error"] == pytest.approx(
        (1 - edge + above) / 2
    )


def test_of_two_classes_the_right_one_is_always_among_the_top_five():
    figures = metrics(predicted([0, 1, 1], [[1, 0], [0, 1], [1, 0]], [0.6, 0.7, 0.8]))
    assert (figures["accuracy"], figures["top5_accuracy"], figures["macro_accuracy"]) == (1 / 3, 1.0, 1 / 4)


def test_figures_do_not_depend_on_the_order_of_the_photographs():
    generator = torch.Generator().manual_seed(0)
    count = 5000
    predictions = Predictions(
        torch.randint(7, (count,), generator=generator),
        torch.rand(count, generator=generator, dtype=torch.float64),
        torch.rand(count, 7, generator=generator).topk(5).indices,
        torch.rand(count, generator=generator, dtype=torch.float64),
    )
    shuffled = torch.randperm(count, generator=generator)
    again = Predictions(*(column[shuffled] for column in vars(predictions).values()))
    assert metrics(predictions) == metrics(again)


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="No photographs to evaluate; expected 1 or more"):
        metrics(Predictions(*(torch.empty(0) for _ in range(2)), torch.empty(0, 5), torch.empty(0)))


def test_summary_names_the_worst_classes_first():
    predictions = predicted(
        [0, 0, 1, 1, 2],
        [[1, 0, 2, 3, 4], [2, 0, 1, 3, 4], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4], [2, 0, 1, 3, 4]],
        [0.5] * 5,
    )
    lines = summary(predictions, NAMES).splitlines()
    assert lines[0] == "5 photographs of 3 of the model's 6 classes"
    assert lines[1].split() == ["accuracy", "40.00%"]
    # Taken for a heron and for a robin once each: the first by name
    assert [" ".join(line.split()) for line in lines[-2:]] == [
        "wren 0.0% of 2 most often taken for heron",
        "robin 50.0% of 2 most often taken for wren",
    ]
    assert "lowest accuracy" not in summary(predicted([2], [[2, 0, 1, 3, 4]], [0.5]), NAMES)


# --- Prediction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 48])
def test_predictions_are_those_of_the_pipeline(model, bird_folder, size):
    """Also where the image processor's size is not the backbone's."""
    processor = new_image_processor(size)
    split = load_splits(bird_folder).evaluation
    predictions = predict(
        model,
        Photographs(split, EvaluationTransform(processor)),
        batch_size=5,
        accelerator=Accelerator(),
        progress=False,
    )
    traits = pipeline("prompt-cam", model=model, image_processor=processor, top_k=5, heatmaps=False)
    assert predictions.labels.tolist() == list(split["label"])
    for row, image in enumerate(split["image"]):
        explanations = traits(image["path"])
        labels = [model.config.label2id[explanation["label"]] for explanation in explanations]
        assert predictions.top_classes[row].tolist() == labels
        assert predictions.confidence[row].item() == pytest.approx(explanations[0]["score"], rel=1e-5)
        score_of_true = explanations[labels.index(predictions.labels[row].item())]["score"]
        assert predictions.losses[row].item() == pytest.approx(-math.log(score_of_true), rel=1e-4)


def test_mixed_precision_of_the_training_does_not_reach_it(model, photographs):
    options = {"batch_size": 4, "progress": False}
    plain = predict(model, photographs, accelerator=Accelerator(), **options)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16")
    prepared = accelerator.prepare(copy.deepcopy(model))
    pixel_values = torch.stack([photographs[row]["pixel_values"] for row in range(4)])
    with torch.no_grad():
        assert not torch.equal(prepared(pixel_values).logits, model(pixel_values).logits)  # it is on
    assert equal(predict(prepared, photographs, accelerator=accelerator, **options), plain)
    with accelerator.autocast():
        assert equal(predict(prepared, photographs, accelerator=accelerator, **options), plain)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_leaves_no_trace_in_the_training(bird_folder, photographs, num_workers):
    model = tiny_model("vit", num_labels=4, prompt_dropout=0.5).train()
    options = {"batch_size": 4, "accelerator": Accelerator(), "progress": False}
    state = torch.get_rng_state()
    first = predict(model, photographs, num_workers=num_workers, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.backbone.training
    assert equal(first, predict(model.eval(), photographs, **options))  # so dropout was off
    assert not model.training


def test_ties_always_break_alike(photographs):
    model = tiny_model("vit", num_labels=6)
    torch.nn.init.zeros_(model.score_head.weight)
    options = {"accelerator": Accelerator(), "progress": False}
    predictions = predict(model, photographs, batch_size=5, **options)
    assert predictions.losses.tolist() == pytest.approx([math.log(6)] * 12)
    assert predictions.confidence.tolist() == pytest.approx([1 / 6] * 12)
    assert len(predictions.top_classes.unique(dim=0)) == 1
    assert equal(predict(model, photographs, batch_size=12, **options), predictions)


def test_scores_that_are_not_finite_are_refused(photographs):
    model = tiny_model("vit", num_labels=4)
    torch.nn.init.constant_(model.score_head.bias, math.nan)
    with pytest.raises(FloatingPointError, match="scores of 12 of 12 photographs are not finite"):
        predict(model, photographs, batch_size=12, accelerator=Accelerator(), progress=False)


TWO_PROCESSES = """
import sys
import torch
from accelerate import Accelerator
from promptcam_hf.data.photographs import EvaluationTransform, Photographs, load_splits
from promptcam_hf.explanation.drawing import contact_sheet
from promptcam_hf.evaluation.evaluation import evaluate, predict
from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor

checkpoint, data, out, count = *sys.argv[1:4], int(sys.argv[4])
accelerator = Accelerator()
assert accelerator.num_processes == 2
split = load_splits(data).evaluation.select(range(count))
photographs = Photographs(split, EvaluationTransform(new_image_processor(32)))
model = PromptCamForImageClassification.from_pretrained(checkpoint)
predictions = predict(model, photographs, batch_size=2, accelerator=accelerator, progress=False)
torch.save(vars(predictions), f"{out}/{accelerator.process_index}.pt")
result = evaluate(checkpoint, data, f"{out}/report", num_workers=0)
torch.save(result, f"{out}/result{accelerator.process_index}.pt")
"""


@pytest.mark.parametrize("count", [11, 1])
def test_two_processes_see_every_photograph_once(checkpoint, bird_folder, photographs, tmp_path, count):
    """An odd number of photographs; and one, so that the second process has none."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, script, checkpoint, bird_folder, tmp_path, str(count)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    model = PromptCamForImageClassification.from_pretrained(checkpoint)
    photographs.split = photographs.split.select(range(count))
    alone = predict(model, photographs, batch_size=2, accelerator=Accelerator(), progress=False)
    first, second = (Predictions(**torch.load(tmp_path / f"{process}.pt")) for process in range(2))
    assert equal(first, second)
    assert len(first.labels) == count
    assert torch.equal(first.labels, alone.labels)
    assert torch.equal(first.top_classes, alone.top_classes)
    assert torch.allclose(first.losses, alone.losses, atol=1e-6)
    assert torch.allclose(first.confidence, alone.confidence, atol=1e-6)
    # The report is written and printed by one of the two
    reported = json.loads((tmp_path / "report" / "results.json").read_text())
    assert torch.load(tmp_path / "result0.pt") == torch.load(tmp_path / "result1.pt") == reported
    assert result.stdout.count("calibration error") == 1


# --- Report -----------------------------------------------------------------------------------------------------------


def test_report_of_a_checkpoint(model, checkpoint, bird_folder, tmp_path, capsys):
    out = tmp_path / "report"
    result = evaluate(checkpoint, bird_folder, out, batch_size=5, num_workers=0)
    names = ["confusions.csv", "confusions.png", "per_class.csv", "results.json", "traits.png"]
    assert sorted(os.listdir(out)) == names
    assert json.loads((out / "results.json").read_text()) == result
    assert list(result)[:3] == ["model", "data", "split"]
    assert (result["model"], result["data"], result["split"]) == ("birds", "photos", "test")
    assert (result["num_images"], result["num_classes"]) == (12, 5)
    assert f"{result['accuracy']:.2%}" in capsys.readouterr().out

    # The same, counted with the pipeline, which knows names and no labels
    traits = pipeline("prompt-cam", model=str(checkpoint), heatmaps=False)
    paths = sorted(bird_folder.glob("test/*/*.jpg"))
    pairs = [(path.parent.name, explained[0]["label"]) for path, explained in zip(paths, traits(paths), strict=True)]
    assert result["accuracy"] == sum(true == predicted for true, predicted in pairs) / 12
    header, *rows = table(out / "confusions.csv")
    assert header == ["true", "predicted", "count"]
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    assert {(true, predicted, int(count)) for true, predicted, count in rows} == {
        (*pair, wrong.count(pair)) for pair in wrong
    }
    assert rows == sorted(rows, key=lambda row: (-int(row[2]), row[0], row[1]))
    header, *rows = table(out / "per_class.csv")
    assert header == ["class", "images", "correct", "accuracy", "most_confused_with"]
    assert {row[0] for row in rows} == set(class_names(model)) - {"Dodo"}
    for name, images, correct, accuracy, _ in rows:
        assert (int(images), int(correct)) == (3, pairs.count((name, name)))
        assert float(accuracy) == pytest.approx(int(correct) / 3, abs=1e-6)
    assert rows == sorted(rows, key=lambda row: (float(row[3]), row[0]))


def test_most_confused_with_breaks_ties_by_name(model, photographs, tmp_path):
    names = class_names(model)
    by_name = sorted(range(4), key=lambda label: names[label])
    true, *others = by_name
    top_classes = torch.tensor([[others[2]], [others[1]], [others[0]]]).repeat(4, 5)
    predictions = predicted([true] * 12, top_classes.tolist(), [0.5] * 12)
    write_report(predictions, photographs, model, new_image_processor(32), tmp_path, {"model": "m"})
    assert table(tmp_path / "confusions.csv")[1:] == [[names[true], names[other], "4"] for other in others]
    assert table(tmp_path / "per_class.csv")[1:] == [[names[true], "12", "0", "0.0", names[others[0]]]]


def test_the_picture_shows_the_surest_of_the_most_frequent_confusions(model, photographs, tmp_path):
    """12 photographs that are red, one after the other brighter; those to be drawn must be found in the picture."""
    rows = [{"path": None, "bytes": None} for _ in range(12)]
    for row, image in enumerate(rows):
        image["path"] = str(tmp_path / f"{row}.png")
        Image.new("RGB", (40, 40), (100 + 10 * row, 0, 0)).save(image["path"])
    photographs.split = [{"image": image, "label": 0} for image in rows]
    confidence = [0.3, 0.9, 0.4, 0.8] + [0.5] * 8
    top_classes = [[1, 0, 2, 3, 4]] * 4 + [[0, 1, 2, 3, 4]] * 8
    predictions = predicted([0] * 12, top_classes, confidence)
    write_report(predictions, photographs, model.train(), new_image_processor(32), tmp_path / "out", {})
    assert model.training
    sheet = Image.open(tmp_path / "out" / "confusions.png")
    colours = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert {row for row in range(12) if (100 + 10 * row, 0, 0) in colours} == {1, 3}


def test_without_confusions_no_picture_not_even_an_old_one(model, photographs, tmp_path):
    (tmp_path / "confusions.png").write_bytes(b"of an earlier evaluation")
    (tmp_path / "notes.txt").write_text("mine")
    labels = [row["label"] for row in photographs.split]
    predictions = predicted(labels, [[label, 4] for label in labels], [0.5] * 12)
    write_report(predictions, photographs, model, new_image_processor(32), tmp_path, {})
    names = ["confusions.csv", "notes.txt", "per_class.csv", "results.json", "traits.png"]
    assert sorted(os.listdir(tmp_path)) == names
    assert table(tmp_path / "confusions.csv") == [["true", "predicted", "count"]]
    assert {row[4] for row in table(tmp_path / "per_class.csv")[1:]} == {""}


def test_traits_are_shown_of_classes_that_are_recognised(model, photographs, tmp_path):
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
    shutil.rmtree(data)  # so that nothing can be drawn
    with pytest.raises(ValueError, match="no such file"):
        write_report(predictions, photographs, model, new_image_processor(32), out, {})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_earlier_report_is_replaced_and_nothing_else(checkpoint, bird_folder, tmp_path):
    out = tmp_path / "out"
    evaluate(checkpoint, bird_folder, out, num_workers=0)
    before = (out / "results.json").read_text()
    (out / "results.json").write_text(before.replace("accuracy", "old", 1))
    (out / "notes.txt").write_text("mine")
    evaluate(checkpoint, bird_folder, out, num_workers=0)
    assert (out / "results.json").read_text() == before
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["{}", "[1]", "half a", "3"])
def test_a_folder_with_other_things_is_refused(checkpoint, bird_folder, tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match="exists and holds no earlier evaluation; expected a new folder"):
        evaluate(checkpoint, bird_folder, tmp_path)
    with pytest.raises(ValueError, match="exists and holds no earlier evaluation"):
        evaluate(checkpoint, bird_folder, tmp_path / "results.json")
    assert (tmp_path / "results.json").read_text() == content


def test_classes_that_the_model_lacks_are_named(checkpoint, bird_folder, tmp_path):
    data = tmp_path / "photos"
    shutil.copytree(bird_folder, data)
    name = sorted(path.name for path in (data / "test").iterdir())[0]
    for split in ("train", "test"):
        (data / split / name).rename(data / split / f"{name}s")
    with pytest.raises(ValueError, match=f"knows no class '{name}s' \\(near: '{name}'\\); expected names of its 5"):
        evaluate(checkpoint, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arguments_that_do_not_fit_are_refused(checkpoint, bird_folder, tmp_path):
    with pytest.raises(ValueError, match="batch_size=0: expected 1 or more"):
        evaluate(checkpoint, bird_folder, tmp_path / "out", batch_size=0)
    with pytest.raises(ValueError, match="nowhere: cannot be opened"):
        evaluate(tmp_path / "nowhere", bird_folder, tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        evaluate(checkpoint, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
