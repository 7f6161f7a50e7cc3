"""A run's folder belongs to one process, and a run goes on with what it began with."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from promptcam_hf.files import LOCK
from promptcam_hf.training import state
from promptcam_hf.training.options import TrainingOptions
from promptcam_hf.training.state import locked_folder, read_log
from promptcam_hf.training.trainer import PromptCamTrainer

from ..tiny_models import tiny_model
from .runs import resume


@pytest.fixture
def backbone(tmp_path) -> Path:
    """Of this test alone, which may change or move it."""
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.fixture
def options(bird_folder, backbone) -> TrainingOptions:
    settings = {"epochs": 2, "batch_size": 8, "num_workers": 0, "save_every": 1, "validation_share": 0.0}
    return TrainingOptions(data=bird_folder, backbone=backbone, **settings)


@pytest.fixture
def interrupted(options, run) -> Path:
    def interrupt(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PromptCamTrainer(options, run, on_step=interrupt).train()
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- One process


def test_two_trainings_do_not_share_a_folder(options, run, monkeypatch):
    monkeypatch.setattr(state, "LOCK_TIMEOUT", 0.0)
    refused = []

    def train_again(row):
        for again in (PromptCamTrainer(options, run).train, lambda: resume(run)):
            before = contents(run)
            with pytest.raises(ValueError, match=str(run)) as error:
                again()
            refused.append(str(error.value))
            assert contents(run) == before

    PromptCamTrainer(options.replace(epochs=1), run, on_step=train_again).train()
    assert len(refused) == 6
    for new, going_on in zip(refused[::2], refused[1::2], strict=True):
        assert new.startswith(f"{run} exists and is not empty")
        assert going_on == f"{run}: another run is writing to it; choose another folder, or wait."
    assert not (run / LOCK).exists()


def test_new_run_does_not_enter_a_folder_in_which_another_begins(options, run, monkeypatch):
    monkeypatch.setattr(state, "LOCK_TIMEOUT", 0.0)
    run.mkdir()
    with FileLock(run / LOCK), pytest.raises(ValueError, match=r"run: another run is writing to it; choose"):
        PromptCamTrainer(options, run).train()
    assert [path.name for path in run.iterdir()] == [LOCK]
    PromptCamTrainer(options, run).train()  # the lock of a run that was killed before it wrote anything is no obstacle


def test_run_that_began_and_ended_meanwhile_is_not_replaced(tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 1")
    with pytest.raises(ValueError, match="exists and is not empty"), locked_folder(tmp_path, is_new=True):
        pytest.fail("the folder is not new")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


# --- The same run


def change_weights(backbone: Path) -> None:
    model = tiny_model("vit").backbone
    with torch.no_grad():
        model.layernorm.weight.mul_(2)
    model.save_pretrained(backbone)


def change_heads(backbone: Path) -> None:
    config = json.loads((backbone / "config.json").read_text())
    config["num_attention_heads"] *= 2
    (backbone / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("change", [change_weights, change_heads])
def test_backbone_that_has_changed_is_noticed(interrupted, backbone, change):
    before = contents(interrupted)
    change(backbone)
    with pytest.raises(ValueError, match=r"^backbone=.*: other weights or heads than when the run began; restore them"):
        resume(interrupted)
    assert contents(interrupted) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 4), ("learning_rate", 0.1), ("seed", 1), ("epochs", 3), ("prompt_dropout", 0.5)],
)
def test_option_that_was_edited_is_noticed(interrupted, name, value):
    recipe = yaml.safe_load((interrupted / "recipe.yaml").read_text())
    began_with, recipe[name] = recipe[name], value
    (interrupted / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = contents(interrupted)
    with pytest.raises(ValueError, match=rf"recipe\.yaml: {name} is {value}, but the run began with {began_with}; re"):
        resume(interrupted)
    assert contents(interrupted) == before


def test_run_goes_on_with_a_backbone_that_has_moved_and_other_workers(interrupted, backbone):
    moved = backbone.rename(backbone.with_name("moved"))
    recipe = yaml.safe_load((interrupted / "recipe.yaml").read_text())
    recipe |= {"backbone": str(moved), "num_workers": 1}
    (interrupted / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    resume(interrupted)
    assert [row["step"] for row in read_log(interrupted) if "accuracy" not in row] == list(range(1, 7))
