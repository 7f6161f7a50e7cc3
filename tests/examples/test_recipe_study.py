import csv
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from examples import recipe_study
from promptcam_hf.data.splits import load_splits

from ..tiny_models import tiny_model


@pytest.fixture
def study(bird_folder, tmp_path, monkeypatch):
    """Runs the script on drawn birds with a tiny backbone, and returns its table."""
    AcceleratorState._reset_state(reset_partial_state=True)
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    monkeypatch.setitem(recipe_study.SETTINGS, "last layer", {"num_prompted_layers": 1, "epochs": 2, "batch_size": 4})
    monkeypatch.setattr(recipe_study, "LORA_EPOCHS", 1)

    def run(*options: str) -> list[dict[str, str]]:
        arguments = ["--data", bird_folder, "--backbone", tmp_path / "backbone", "--output-dir", tmp_path / "study"]
        arguments += ["--num-workers", 0, *options]
        monkeypatch.setattr(sys, "argv", ["recipe_study.py", *map(str, arguments)])
        recipe_study.main()
        with open(tmp_path / "study" / recipe_study.TABLE, newline="") as file:
            return list(csv.DictReader(file))

    return run


def test_study_measures_each_setting_once_on_photographs_that_it_did_not_train_on(study):
    pytest.importorskip("peft")
    names = ["last layer", "1-NN", "linear probe", "LoRA"]
    rows = study("--seeds", "0", "--only", *names)
    assert [row["setting"] for row in rows] == names
    assert {(row["split"], row["images"]) for row in rows} == {("held-out", "8")}  # two of six in each of four classes
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    assert study("--seeds", "0", "--only", *names) == rows  # nothing is measured again
    tested = study("--seeds", "0", "--only", "1-NN", "--test")[-1]
    assert (tested["split"], tested["images"]) == ("test", "12")


def test_seeds_hold_out_other_photographs_which_are_not_trained_on(bird_folder):
    splits = load_splits(bird_folder)
    held_out = [recipe_study.held_out(splits, seed) for seed in range(recipe_study.HELD_OUT)]
    paths = [{image["path"] for image in part.evaluation["image"]} for part in held_out]
    assert set.union(*paths) == {image["path"] for image in splits.train["image"]}
    assert sum(map(len, paths)) == len(splits.train)
    for part, evaluated in zip(held_out, paths, strict=True):
        assert evaluated.isdisjoint(image["path"] for image in part.train["image"])


def test_nearest_photograph_decides(bird_folder, tmp_path):
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    splits = load_splits(bird_folder)
    options = recipe_study.TrainingOptions(backbone=tmp_path / "backbone")
    scores, labels = recipe_study.nearest(options, recipe_study.replace(splits, evaluation=splits.train))
    assert torch.equal(scores.argmax(-1), labels)  # each photograph is nearest to itself
    torch.testing.assert_close(scores.amax(-1), torch.ones(len(labels)))


def test_unknown_setting_is_refused(study, tmp_path):
    with pytest.raises(SystemExit, match="no setting 'lr 7'; expected some of default, "):
        study("--only", "lr 7")
    assert not Path(tmp_path / "study").exists()
