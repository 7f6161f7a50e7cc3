"""The examples that train, run as a user would run them: on drawn birds, with a tiny backbone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from examples import train_with_trainer
from promptcam_hf import demo
from promptcam_hf.data.photographs import EvaluationTransform, Photographs
from promptcam_hf.data.splits import load_splits
from promptcam_hf.evaluation.prediction import metrics, predict

from ..tiny_models import images, tiny_model

EXAMPLES = Path(train_with_trainer.__file__).parent


def run(script: str, *arguments) -> str:
    """The output of a script."""
    command = [sys.executable, EXAMPLES / script, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_model("vit").backbone.save_pretrained(folder)
    return folder


# --- train_with_trainer.py


def train(bird_folder: Path, backbone: Path, output_dir: Path, *options) -> str:
    """Three epochs of three steps."""
    ours = ("--data", bird_folder, "--backbone", backbone, "--output-dir", output_dir, "--dataloader-num-workers", "0")
    size = ("--num-train-epochs", "3", "--per-device-train-batch-size", "8", "--learning-rate", "0.1")
    return run("train_with_trainer.py", *ours, *size, "--save-total-limit", "3", *options)


@pytest.fixture(scope="module")
def trained(bird_folder, backbone, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trainer") / "run"
    return folder, train(bird_folder, backbone, folder)


def test_what_trainer_saves_is_a_model_as_accurate_as_it_says(trained, bird_folder, photograph):
    folder, said = trained
    traits = pipeline("prompt-cam", model=str(folder))
    photographs = Photographs(load_splits(bird_folder).evaluation, EvaluationTransform(traits.image_processor))
    predictions = predict(traits.model, photographs, batch_size=5, accelerator=Accelerator(), progress=False)
    assert f"Accuracy {metrics(predictions)['accuracy']:.2%} after 3 epochs." in said
    (explanation,) = traits(str(photograph))
    assert explanation["label"] in {path.name for path in (bird_folder / "train").iterdir()}
    assert explanation["traits"][0]["heatmap"].size == Image.open(photograph).size


def test_trainer_trains_prompts_and_score_head_alone(trained, backbone):
    folder, _ = trained
    first, last = (load_file(folder / name / "model.safetensors") for name in ("checkpoint-3", "checkpoint-9"))
    frozen = {name: weight for name, weight in last.items() if name.startswith("backbone.")}
    expected = load_file(backbone / "model.safetensors")
    assert all(torch.equal(weight, expected[name.removeprefix("backbone.")]) for name, weight in frozen.items())
    trainable = last.keys() - frozen.keys()
    assert all(not torch.equal(first[name], last[name]) for name in trainable - {"score_head.bias"})  # shifts all alike

    optimizer = torch.load(folder / "checkpoint-9" / "optimizer.pt", weights_only=True)
    momenta = sorted(tuple(state["exp_avg"].shape) for state in optimizer["state"].values())
    assert momenta == sorted(tuple(last[name].shape) for name in trainable)


def test_trainer_resumes_and_can_end_with_the_best(trained, bird_folder, backbone, tmp_path):
    folder, _ = trained
    run = tmp_path / "run"
    shutil.copytree(folder / "checkpoint-3", run / "checkpoint-3")
    # The highest loss, since that is not the last one
    best = ("--load-best-model-at-end", "true", "--metric-for-best-model", "eval_loss", "--greater-is-better", "true")
    train(bird_folder, backbone, run, "--resume-from-checkpoint", run / "checkpoint-3", *best)
    whole, again = (load_file(of / "checkpoint-9" / "model.safetensors") for of in (folder, run))
    for name, weight in whole.items():
        torch.testing.assert_close(again[name], weight, msg=name)

    log = json.loads((run / "checkpoint-9" / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    assert losses[6] > losses[9]  # otherwise what follows would show nothing
    chosen, final = (load_file(of / "model.safetensors") for of in (run / "checkpoint-6", run))
    assert all(torch.equal(weight, chosen[name]) for name, weight in final.items())


def test_trainer_does_not_write_over_another_run(trained, bird_folder, backbone, monkeypatch):
    folder, _ = trained
    arguments = ["--data", str(bird_folder), "--backbone", str(backbone), "--output-dir", str(folder)]
    monkeypatch.setattr(sys, "argv", ["train_with_trainer.py", *arguments])
    with pytest.raises(SystemExit, match="is not empty; expected a new or empty folder, or --resume-from"):
        train_with_trainer.main()


# --- from_scratch.py


def test_the_whole_way_without_pretrained_weights(bird_folder, tmp_path):
    size = ("--pretrain-epochs", "1", "--epochs", "1", "--image-size", "32", "--explain", "2")
    run("from_scratch.py", bird_folder, tmp_path / "run", *size)
    assert len(list((tmp_path / "run" / "explained").glob("*.png"))) == 2


# --- pretrain_demo_backbone.py


@pytest.fixture
def pretraining(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    import pretrain_demo_backbone

    monkeypatch.setattr(pretrain_demo_backbone, "BATCH_SIZE", 4)
    monkeypatch.setattr(pretrain_demo_backbone, "SAVE_EVERY", 2)
    return pretrain_demo_backbone


def test_interrupted_pretraining_continues_to_the_same_weights(pretraining, tmp_path, monkeypatch):
    settings = {"num_images": 8, "epochs": 3, "seed": 0}
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    pretraining.pretrain(whole, **settings)

    interrupted.mkdir()
    shutil.copy(whole / "birds-8.npz", interrupted)
    batches = pretraining.batches

    def three_batches(*arguments):
        for number, batch in enumerate(batches(*arguments)):
            if number == 3:  # after the state of step 2
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pretraining, "batches", three_batches)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(interrupted, **settings)
    assert not (interrupted / "backbone").exists()
    monkeypatch.setattr(pretraining, "batches", batches)
    pretraining.pretrain(interrupted, **settings)

    first, second = (load_file(folder / "backbone" / "model.safetensors") for folder in (whole, interrupted))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    torch.manual_seed(0)
    name = "embeddings.patch_embeddings.projection.weight"
    assert not torch.equal(first[name], pretraining.tiny_vit().state_dict()[name])
    with pytest.raises(ValueError, match="remove it first"):
        pretraining.pretrain(interrupted, **settings | {"seed": 1})


def test_fresh_prompts_learn_the_looks_that_they_are_for(pretraining):
    torch.manual_seed(0)
    prompted = tiny_model("vit", num_prompted_layers=1)
    num_looks = [5, 1, 2]  # the second part looks the same on all birds
    fresh = pretraining.FreshPrompts(prompted.config.backbone_config.hidden_size, num_looks, torch.device("cpu"))
    assert set(fresh.parts.tolist()) == {0, 2}
    looks = torch.stack([torch.arange(8) % 5, torch.zeros(8).long(), torch.arange(8) % 2], dim=1)
    looks[0, 0] = looks[1, 2] = pretraining.HIDDEN
    features = prompted.frozen_features(images(8))
    first = fresh.loss(prompted, features, looks).item()
    assert 0.6 < first < 1.4  # guessing one of two looks gives log 2, one of four log 4
    for _ in range(60):
        fresh.loss(prompted, features, looks).backward()
        fresh.step()
    assert fresh.loss(prompted, features, looks).item() < 0.5 * first
    assert prompted.class_prompts.grad is None  # the fresh prompts took their place

    hidden = torch.full_like(looks, pretraining.HIDDEN)
    hidden[0] = looks[5]
    alone = fresh.loss(prompted, features[:1], hidden[:1])
    torch.testing.assert_close(fresh.loss(prompted, features, hidden), alone)  # the other birds are ignored


# --- make_demo_weights.py


def test_best_start_is_chosen_and_finished_steps_are_not_repeated(pretraining, tmp_path, monkeypatch):
    import make_demo_weights as making

    small = {"NUM_CLASSES": 4, "TRAIN_PER_CLASS": 4, "TEST_PER_CLASS": 2, "INTERVENTIONS": 1}
    for name, value in (small | {"STARTS": 2, "CHOICE_PER_CLASS": 2}).items():
        monkeypatch.setattr(making, name, value)
    monkeypatch.setattr(making, "OPTIONS", making.OPTIONS | {"epochs": 1})
    arguments = ["make_demo_weights.py", str(tmp_path), "--images", "8", "--pretrain-epochs", "1", "--no-install"]
    monkeypatch.setattr(sys, "argv", arguments)
    shipped = {file: file.read_bytes() for file in demo.MODEL.parent.rglob("*.safetensors")}
    making.main()
    results = json.loads((tmp_path / "metrics.json").read_text())
    starts = [json.loads((tmp_path / f"promptcam-{seed}" / "choice.json").read_text()) for seed in range(2)]
    assert results["starts"] == starts
    assert results["num_images"] == 8
    weights = [load_file(tmp_path / f"promptcam-{seed}" / "model.safetensors") for seed in range(2)]
    assert not torch.equal(weights[0]["class_prompts"], weights[1]["class_prompts"])
    taken = load_file(tmp_path / "promptcam-half" / "model.safetensors")["class_prompts"]
    assert torch.equal(taken, weights[results["chosen"]]["class_prompts"].half())
    assert shipped == {file: file.read_bytes() for file in shipped}

    other = 1 - results["chosen"]
    better = {"seed": other, "accuracy": 1.0, "pointing": 1.0}
    (tmp_path / f"promptcam-{other}" / "choice.json").write_text(json.dumps(better))
    making.main()  # as after an interruption: both starts are finished, and now the other one is better
    taken = load_file(tmp_path / "promptcam-half" / "model.safetensors")["class_prompts"]
    assert torch.equal(taken, weights[other]["class_prompts"].half())
