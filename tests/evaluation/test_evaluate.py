import inspect
import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import pipeline

from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.cli.evaluate import evaluate as command
from promptcam_hf.data.splits import load_splits
from promptcam_hf.evaluation.evaluate import evaluate
from promptcam_hf.evaluation.explainers import ComparisonExplainer, PromptCamExplainer
from promptcam_hf.evaluation.prediction import class_names
from promptcam_hf.evaluation.randomisation import measure_randomisation
from promptcam_hf.evaluation.trait_metrics import evaluate_traits, traits_summary
from promptcam_hf.training.options import TrainingOptions

from ..command_line import promptcam
from ..tiny_models import tiny_model
from .cases import NAMES, SIZE, table, trait_data


def test_report_of_a_checkpoint(model, checkpoint, bird_folder, tmp_path, capsys):
    out = tmp_path / "report"
    result = evaluate(checkpoint, bird_folder, out, batch_size=5, num_workers=0)
    names = ["comparisons.png", "confusions.csv", "confusions.png", "per_class.csv", "results.json", "traits.png"]
    assert sorted(os.listdir(out)) == names
    assert json.loads((out / "results.json").read_text()) == result
    assert list(result)[:3] == ["model", "data", "split"]
    assert (result["model"], result["data"], result["split"]) == ("birds", "photos", "test")
    assert (result["num_images"], result["num_classes"]) == (12, 5)
    assert f"{result['accuracy']:.2%}" in capsys.readouterr().out

    # The same, counted with the pipeline, which returns names and no labels
    pipe = pipeline("prompt-cam", model=str(checkpoint), heatmaps=False)
    paths = sorted(bird_folder.glob("test/*/*.jpg"))
    pairs = [(path.parent.name, explained[0]["label"]) for path, explained in zip(paths, pipe(paths), strict=True)]
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
    with pytest.raises(ValueError, match="exists and holds no earlier report; expected a new or empty folder"):
        evaluate(checkpoint, bird_folder, tmp_path)
    with pytest.raises(ValueError, match="exists and holds no earlier report"):
        evaluate(checkpoint, bird_folder, tmp_path / "results.json")
    assert (tmp_path / "results.json").read_text() == content


def test_classes_that_the_model_does_not_know_are_refused(checkpoint, bird_folder, tmp_path):
    data = tmp_path / "photos"
    shutil.copytree(bird_folder, data)
    name = sorted(path.name for path in (data / "test").iterdir())[0]
    for split in ("train", "test"):
        (data / split / name).rename(data / split / f"{name}s")
    with pytest.raises(ValueError, match=f"knows no class '{name}s'; did you mean '{name}'\\?"):
        evaluate(checkpoint, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arguments_that_do_not_fit_are_refused(checkpoint, bird_folder, tmp_path):
    with pytest.raises(ValueError, match="batch_size=0: expected 1 or more"):
        evaluate(checkpoint, bird_folder, tmp_path / "out", batch_size=0)
    with pytest.raises(ValueError, match="faithfulness_images=0: expected 1 or more"):
        evaluate(checkpoint, bird_folder, tmp_path / "out", faithfulness_images=0)
    with pytest.raises(ValueError, match=r"device=gpu: this machine has .*; expected cpu"):
        evaluate(checkpoint, bird_folder, tmp_path / "out", device="gpu")
    with pytest.raises(ValueError, match=r"has no images in validation/; found .*test"):
        evaluate(checkpoint, bird_folder, tmp_path / "out", split="validation")
    with pytest.raises(ValueError, match="nowhere: no such folder, and no Hub id such as org/name"):
        evaluate(tmp_path / "nowhere", bird_folder, tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        evaluate(checkpoint, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_split_can_be_chosen_and_is_printed(checkpoint, bird_folder, tmp_path, capsys):
    data = Path(shutil.copytree(bird_folder, tmp_path / "photos"))
    shutil.copytree(data / "train", data / "validation")
    for split, given, count in (("validation", None, 24), ("test", "test", 12)):
        result = evaluate(checkpoint, data, tmp_path / "out", num_workers=0, split=given, device="cpu")
        assert (result["split"], result["num_images"]) == (split, count)
        assert f"{count} photographs in {split}/ of" in capsys.readouterr().out


def test_bad_photographs_stop_or_are_skipped(checkpoint, bird_folder, tmp_path):
    data = Path(shutil.copytree(bird_folder, tmp_path / "photos"))
    bad = sorted(data.glob("test/*/*.jpg"))[3]
    bad.write_text("not an image")
    arguments = ["--model", checkpoint, "--data", data, "--output-dir", tmp_path / "out"]
    for num_workers in ("0", "1"):
        result = promptcam("evaluate", *arguments, "--num-workers", num_workers)
        assert result.exit_code == 1
        error = result.output.split("error: ")[1].splitlines()
        assert error[0].startswith(f"{bad}: not an image")
        assert error[0].endswith("or pass --on-bad-image skip.")
        assert error[1:] == []
    arguments += ["--num-workers", 0]
    result = promptcam("evaluate", *arguments, "--on-bad-image", "skip")
    assert result.exit_code == 0, result.output
    assert f"skipped: {bad}: not an image" in result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["num_images"], found["num_skipped"]) == (11, 1)


# --- promptcam evaluate --traits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trait_checkpoint(tmp_path_factory) -> Path:
    """Untrained, so it predicts one class for most images."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(tiny_model("vit", id2label=dict(enumerate(NAMES))), new_image_processor(SIZE), folder)
    return folder


def test_the_command_writes_trait_metrics_beside_the_report(trait_checkpoint, birds, tmp_path):
    arguments = ["--model", trait_checkpoint, "--data", birds, "--output-dir", tmp_path / "out", "--num-workers", 0]
    result = promptcam("evaluate", "--traits", *arguments, "--faithfulness-images", 2)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    written = json.loads((tmp_path / "out" / "traits.json").read_text())
    assert written["model"] == report["model"] == "tiny"
    assert written["num_correct"] == report["accuracy"] * 7
    assert written["faithfulness"]["num_images"] == 2
    model = tiny_model("vit", id2label=dict(enumerate(NAMES)))
    expected = evaluate_traits(PromptCamExplainer(model), trait_data(birds), faithfulness_images=2, progress=False)
    assert {key: written[key] for key in ("pointing", "num_images")} == {
        key: expected[key] for key in ("pointing", "num_images")
    }
    assert written["mass"] == pytest.approx(expected["mass"])
    assert traits_summary(written) in result.stdout
    compared = evaluate_traits(ComparisonExplainer(model), trait_data(birds), faithfulness_images=2, progress=False)
    assert written["comparison"]["pointing"] == compared["pointing"]
    assert written["comparison"]["faithfulness"]["relative_drop"] == pytest.approx(
        compared["faithfulness"]["relative_drop"], abs=1e-6
    )
    assert traits_summary(written["comparison"]) in result.stdout
    for results, explainer in ((written, PromptCamExplainer), (written["comparison"], ComparisonExplainer)):
        similarity = measure_randomisation(explainer(model), trait_data(birds), num_images=2, progress=False)
        assert results["randomisation"] == pytest.approx(similarity, abs=1e-3)


def test_other_data_get_faithfulness_only_and_old_metrics_go(trait_checkpoint, birds, tmp_path, capsys):
    evaluate(trait_checkpoint, birds, tmp_path / "out", num_workers=0, traits=True, faithfulness_images=1)
    assert "num_correct" in json.loads((tmp_path / "out" / "traits.json").read_text())
    shutil.copytree(birds / "test", tmp_path / "photos" / "test")
    capsys.readouterr()
    evaluate(trait_checkpoint, tmp_path / "photos", tmp_path / "out", num_workers=0, traits=True)
    found = json.loads((tmp_path / "out" / "traits.json").read_text())
    assert (found["data"], found["faithfulness"]["num_images"]) == ("photos", 7)
    assert "pointing" not in found
    printed = capsys.readouterr().out
    assert "deletion" in printed
    assert "ROAD" in printed
    assert "similarity to the map of a partly random model" in printed
    assert "pointing" not in printed
    evaluate(trait_checkpoint, tmp_path / "photos", tmp_path / "out", num_workers=0)
    assert not (tmp_path / "out" / "traits.json").exists()


def test_missing_masks_are_reported_before_anything_is_written(trait_checkpoint, birds, tmp_path):
    shutil.copytree(birds, tmp_path / "birds", ignore=shutil.ignore_patterns("test_parts"))
    with pytest.raises(ValueError, match="is missing; expected a mask for each test image"):
        evaluate(trait_checkpoint, tmp_path / "birds", tmp_path / "out", num_workers=0, traits=True)
    assert not (tmp_path / "out").exists()
    evaluate(trait_checkpoint, tmp_path / "birds", tmp_path / "out", num_workers=0)  # without `traits` none are needed


def test_command_and_function_have_the_same_defaults():
    own, of_data = (inspect.signature(function).parameters for function in (evaluate, load_splits))
    for name, option in inspect.signature(command).parameters.items():
        default = option.default
        if name == "on_bad_image":  # of `TrainingOptions`: what is not given is left to the function
            default = TrainingOptions.model_fields[name].default
        assert default == (own if name in own else of_data)[name].default, name
    assert own.keys() - inspect.signature(command).parameters.keys() == {"progress", "data_options"}
