"""From photographs to a model that others open by its id: real commands in processes of their own, and a Hub on
loopback."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.share.hub import check_checkpoint

from ..hub_stand_in import HubStandIn
from ..tiny_models import tiny_model

REPO = "birders/birds"


@pytest.fixture
def promptcam(tmp_path):
    """Run `promptcam` as somebody who sees this Hub, with caches of their own."""

    def promptcam(who: str, hub: HubStandIn, *arguments: Any, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "promptcam_hf", *map(str, arguments)]
        env = hub.environ(tmp_path / who) | {"OMP_NUM_THREADS": "1"} | environment
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)

    return promptcam


@pytest.fixture
def training(bird_folder, tmp_path) -> list[Any]:
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    given = {
        "--data": bird_folder,
        "--backbone": tmp_path / "backbone",
        "--output-dir": tmp_path / "run",
        "--push-to-hub": REPO,
        "--epochs": 2,
        "--batch-size": 8,
        "--learning-rate": 0.3,
        "--num-workers": 0,
    }
    return ["train", *(part for option in given.items() for part in option)]


def metrics(folder: Path) -> dict[str, Any]:
    """What an evaluation says, without the names of model and data."""
    results = json.loads((folder / "results.json").read_text())
    return {
        name: value
        for name, value in results.items()
        if name not in ("model", "data", "split", "hub_id", "num_skipped")
    }


def error_of(done: subprocess.CompletedProcess) -> str:
    """The one line that a command failed with."""
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_what_is_trained_and_pushed_is_measured_elsewhere_to_the_last_digit(training, bird_folder, promptcam, tmp_path):
    with HubStandIn() as hub:
        done = promptcam("author", hub, *training)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"Pushed: {hub.url}/{REPO}/commit/" in done.stdout
        elsewhere = tmp_path / "out"
        done = promptcam("reader", hub, "evaluate", "--model", REPO, "--data", bird_folder, "--output-dir", elsewhere)
        assert done.returncode == 0, done.stderr[-3000:]
        pushed = hub.files(REPO)

    run = tmp_path / "run"
    here = metrics(run / "evaluation")
    assert here["num_images"] == 12
    assert metrics(elsewhere) == here
    for name in ("per_class.csv", "confusions.csv"):
        assert (elsewhere / name).read_bytes() == (run / "evaluation" / name).read_bytes()

    assert pushed["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert torch.isfinite(load(pushed["model.safetensors"])["class_prompts"]).all()
    assert not [name for name in pushed if name.startswith(("states", "best"))]
    recipe = yaml.safe_load(pushed["recipe.yaml"])
    assert recipe["learning_rate"] == 0.3
    assert yaml.safe_load((run / "recipe.yaml").read_text())["backbone"] == str(tmp_path / "backbone")
    assert json.loads(pushed["config.json"]).get("backbone") is None
    assert not [name for name, content in pushed.items() if str(tmp_path).encode() in content]
    assert not [name for name, content in pushed.items() if str(bird_folder.parent).encode() in content]
    card = ModelCard(pushed["README.md"].decode())
    (result,) = card.data.eval_results[:1]
    assert result.metric_value == pytest.approx(here["accuracy"], abs=5e-5)
    assert REPO in card.text


def test_push_that_fails_at_the_end_leaves_a_checkpoint_that_can_be_pushed(training, promptcam, tmp_path):
    run = tmp_path / "run"
    with HubStandIn() as hub:
        hub.fail_next(1, status=403)
        error = error_of(promptcam("author", hub, *training))
        assert f"but could not be pushed: The token has no write access to {REPO}" in error
        assert error.endswith(f"promptcam push {run} {REPO}")
        assert hub.files(REPO) == {}
        check_checkpoint(run)
        assert (run / "evaluation" / "results.json").is_file()
        assert (run / "README.md").is_file()
        done = promptcam("author", hub, "push", run, REPO)
        assert done.returncode == 0, done.stderr[-3000:]
        assert hub.files(REPO)["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_token_that_is_missing_or_may_only_read_is_told_before_training(training, promptcam, tmp_path):
    with HubStandIn() as hub:
        hub.token_role = "read"
        error = error_of(promptcam("author", hub, *training))
    assert error.startswith(f"The token has read access only, so it cannot push to {REPO}")
    assert not (tmp_path / "run").exists()


def test_prompts_alone_are_not_shared_without_a_backbone_that_others_have(tmp_path):
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    model = PromptCamForImageClassification.from_backbone(tmp_path / "backbone", num_labels=3)
    save_checkpoint(model, new_image_processor(32), tmp_path / "run", prompts_only=True)
    with pytest.raises(
        ValueError,
        match=r"run holds only the prompts, and others do not have the folder of their backbone, '.*backbone'",
    ):
        check_checkpoint(tmp_path / "run")
    model.config.backbone = "facebook/dino-vitb16"
    save_checkpoint(model, new_image_processor(32), tmp_path / "run")
    check_checkpoint(tmp_path / "run")
