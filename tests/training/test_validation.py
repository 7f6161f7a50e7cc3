import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import pipeline

from promptcam_hf.evaluation import calibration
from promptcam_hf.training.options import TrainingOptions, load_run_options
from promptcam_hf.training.state import LOG, read_log
from promptcam_hf.training.trainer import PromptCamTrainer
from promptcam_hf.training.validation import choose_held_out

from .runs import evaluations, losses, resume, same, train, weights_of

LABELS = [0] * 40 + [1] * 10 + [2] * 2 + [3]


def test_each_class_gives_its_share_but_never_its_last_image():
    rows = choose_held_out(LABELS, 0.1, seed=0)
    assert Counter(LABELS[row] for row in rows) == {0: 4, 1: 1}
    assert rows == sorted(set(rows))
    assert Counter(LABELS[row] for row in choose_held_out(LABELS, 0.9, seed=0)) == {0: 36, 1: 9, 2: 1}
    assert choose_held_out(LABELS, 0.0, seed=0) == []


def test_choice_depends_on_the_seed_alone():
    assert choose_held_out(LABELS, 0.2, seed=1) == choose_held_out(LABELS, 0.2, seed=1)
    assert choose_held_out(LABELS, 0.2, seed=1) != choose_held_out(LABELS, 0.2, seed=2)


def test_a_group_is_held_out_as_a_whole_or_not_at_all():
    groups = [row // 4 for row in range(len(LABELS))]
    rows = choose_held_out(LABELS, 0.2, seed=0, groups=groups)
    assert Counter(LABELS[row] for row in rows)[0] == 8
    held_out = {groups[row] for row in rows}
    assert sorted(rows) == [row for row in range(len(LABELS)) if groups[row] in held_out]


# --- In a run


@pytest.fixture
def default_options(bird_folder, backbone, monkeypatch) -> TrainingOptions:
    """The defaults, with two of the six training images of each class held out, which count as enough to calibrate."""
    monkeypatch.setattr(calibration, "FEW_IMAGES", 0)
    return TrainingOptions(
        data=bird_folder, backbone=backbone, epochs=4, batch_size=4, num_workers=0, validation_share=0.3
    )


def test_nothing_is_chosen_by_the_photographs_that_the_result_is_measured_on(default_options, run, tmp_path):
    """The same run with other test photographs differs in its result alone."""
    other = shutil.copytree(default_options.data, tmp_path / "other")
    for path in other.glob("test/*/*"):
        Image.new("RGB", (40, 40), (200, 30, 60)).save(path)
    results = [
        train(default_options.replace(data=str(data)), folder, features_dir=tmp_path / "features")
        for data, folder in ((default_options.data, run), (other, tmp_path / "again"))
    ]
    assert results[0]["loss"] != results[1]["loss"]
    watched = [[row["loss"] for row in evaluations(folder)[:3]] for folder in (run, tmp_path / "again")]
    assert watched[0] == watched[1]
    for folder in ("", "best"):
        first, second = (Path(parent, folder) for parent in (run, tmp_path / "again"))
        assert same(weights_of(first), weights_of(second))
        temperatures = {json.loads((path / "config.json").read_text())["temperature"] for path in (first, second)}
        assert len(temperatures) == 1
        assert temperatures != {1.0}
    assert len(evaluations(run)) == 3 + 1  # on the photographs that were held out, and then on the test ones
    report = json.loads((run / "evaluation" / "results.json").read_text())
    assert (report["num_images"], report["loss"]) == (12, results[0]["loss"])
    assert report["calibration_error"] != report["raw_calibration_error"]
    states = torch.load(sorted((run / "states").iterdir())[-1], weights_only=True)
    assert states["data"][0] == 24


def test_photographs_that_are_held_out_train_in_the_final_epochs_only(default_options, run, tmp_path, capsys):
    """Other pixels of theirs change nothing in the weights before the final epochs, which choose nothing."""
    options = default_options.replace(final_epochs=2, learning_rate=0.05)
    trainer = PromptCamTrainer(options, run)
    trainer.train()
    assert [row["epoch"] for row in evaluations(run)] == [1, 2, 4]
    printed = capsys.readouterr()
    assert " held-out (until epoch 2) and " in printed.out
    assert f"Only {len(trainer.validation)} photographs held out: " in printed.out
    printed_losses = re.findall(r"epoch   (\d)  training loss \d\.\d{4}(  held-out)?", printed.out + printed.err)
    assert printed_losses == [("1", "  held-out"), ("2", "  held-out"), ("3", ""), ("4", "")]
    best, last = (json.loads((run / folder / "config.json").read_text())["temperature"] for folder in ("best", ""))
    assert trainer.best["epoch"] in (1, 2)
    assert last != 1.0
    assert best == last or trainer.best["epoch"] == 1

    other = shutil.copytree(options.data, tmp_path / "other")
    for number, image in enumerate(trainer.validation["image"]):
        path = other / Path(image["path"]).relative_to(options.data)
        Image.new("RGB", (40, 40), (200, 30, 10 * number)).save(path)  # no two alike: copies stay together
    again = tmp_path / "again"
    train(options.replace(data=str(other)), again)
    rows = [[row["train_loss"] for row in read_log(folder) if "learning_rate" in row] for folder in (run, again)]
    half = len(rows[0]) // 2
    assert rows[0][:half] == rows[1][:half]
    assert rows[0][half:] != rows[1][half:]

    rows, log, weights = read_log(run), (run / LOG).read_text(), weights_of(run)
    (run / "model.safetensors").unlink()  # killed after the last state, before the last checkpoint
    for left in (log, log[: log[:-1].rindex("\n") + 1]):  # nothing is left to do, or the last evaluation alone
        (run / LOG).write_text(left)
        result = resume(run)
        assert (result["epoch"], result["accuracy"]) == (4, rows[-1]["accuracy"])
        assert read_log(run) == rows
        assert same(weights_of(run), weights)
    assert json.loads((run / "config.json").read_text())["temperature"] == last


def test_run_interrupted_as_the_final_epochs_begin_ends_as_an_undisturbed_one(default_options, run, tmp_path):
    options = default_options.replace(epochs=3, final_epochs=1, learning_rate=0.05, cache_features=0)
    trainer = PromptCamTrainer(options, run)
    trainer.train()
    first = len(losses(run)) - trainer.steps_per_epoch + 1

    def interrupt(row: dict) -> None:
        if row["step"] == first:
            raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        train(options, again, on_step=interrupt)
    resume(again)
    for part in ("", "best"):
        assert same(weights_of(run / part), weights_of(again / part))
    assert losses(again) == losses(run)
    found, expected = ([(row["step"], row["loss"]) for row in evaluations(path)] for path in (again, run))
    assert found == expected


def test_groups_and_copies_are_held_out_as_a_whole(bird_folder, default_options, run, tmp_path):
    """Photographs 0 and 3, 1 and 4, 2 and 5 of a class show the same animal; one is a copy with a name of its own."""
    data = shutil.copytree(bird_folder, tmp_path / "birds")
    for folder in data.glob("*/*"):
        animals_of = "012" if folder.parent.name == "train" else "34"
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / f"animal{animals_of[number % len(animals_of)]}-{number}{path.suffix}")
    for folder in data.glob("train/*"):
        first = next(folder.glob("animal0-0*"))
        shutil.copy(first, folder / f"copy{first.suffix}")
    trainer = PromptCamTrainer(default_options.replace(data=str(data), group_by=r"(animal\d)", epochs=1), run)
    trainer.train()

    def animals(split: datasets.Dataset) -> set[tuple[str, str]]:
        paths = [Path(image["path"]) for image in split["image"]]
        return {(path.parent.name, path.stem.split("-")[0].replace("copy", "animal0")) for path in paths}

    assert len(trainer.validation) > 0
    assert not animals(trainer.validation) & animals(trainer.splits.train.select(trainer.kept))


def test_probabilities_of_the_pipeline_are_the_calibrated_ones(default_options, run):
    result = train(default_options, run)
    traits = pipeline("prompt-cam", model=str(run))
    paths = sorted(Path(default_options.data).glob("test/*/*.jpg"))
    scores = [traits(path, classes=[path.parent.name], heatmaps=False)[0]["score"] for path in paths]
    assert traits.model.config.temperature != 1.0
    assert -sum(map(math.log, scores)) / len(scores) == pytest.approx(result["loss"], abs=1e-4)


def test_training_stops_once_it_gets_no_better(default_options, run):
    """A learning rate so low that nothing changes, and fewer images than in a batch of the default size."""
    few = {"validation_share": 0.5, "batch_size": None}
    options = default_options.replace(epochs=20, early_stopping=3, learning_rate=0.0, **few)
    assert train(options, run)["epoch"] == 4
    assert [row["epoch"] for row in evaluations(run)] == [1, 2, 3, 4, 4]
    assert load_run_options(run).batch_size == 12
    assert resume(run)["epoch"] == 4  # there is nothing left to do


def test_best_checkpoint_may_be_that_of_the_highest_macro_accuracy(default_options, run, tmp_path):
    """Half of the images that are held out are of one class."""
    data = shutil.copytree(default_options.data, tmp_path / "unequal")
    for folder in sorted((data / "train").iterdir())[1:]:
        for path in sorted(folder.iterdir())[3:]:
            path.unlink()
    options = default_options.replace(data=str(data), best_metric="macro_accuracy", learning_rate=0.1, epochs=8)
    train(options, run)
    log = evaluations(run)[:-1]
    best = max(log, key=lambda row: (row["macro_accuracy"], -row["loss"]))
    state = torch.load(sorted((run / "states").iterdir())[-1], weights_only=True)
    assert state["best"]["epoch"] == best["epoch"]


def test_classes_too_small_to_hold_any_out_are_told(default_options, run, capsys):
    train(default_options.replace(validation_share=0.05, epochs=1), run)
    assert "No class has enough training images to hold out 5% of them: test/ decides" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["temperature"] == 1.0
