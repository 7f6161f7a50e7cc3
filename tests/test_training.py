import json
import math
import os

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from promptcam_hf import PromptCamForImageClassification, training
from promptcam_hf.training import TrainingOptions, learning_rates, train

from .tiny_models import tiny_model


@pytest.fixture(autouse=True)
def no_accelerator_before() -> None:
    """Accelerate keeps one state for the process, which another test's precision must not decide."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    tiny_model("vit").backbone.save_pretrained(folder)
    return folder


@pytest.fixture
def options(bird_folder, backbone, tmp_path) -> TrainingOptions:
    return TrainingOptions(
        data=bird_folder, backbone=backbone, output_dir=tmp_path / "run", epochs=2, batch_size=8, num_workers=0
    )


@pytest.fixture
def colours(tmp_path):
    """Three classes that any backbone can tell apart: noisy pictures of a colour each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for name, colour in (("blue", (20, 40, 220)), ("green", (30, 200, 60)), ("red", (220, 30, 40))):
            folder = tmp_path / "colours" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + generator.normal(0, 30, (40, 40, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "colours"


def test_training_learns_and_leaves_a_checkpoint_that_agrees_with_it(options, colours):
    options.data, options.epochs, options.learning_rate = colours, 10, 0.05
    result = train(options)
    log = [json.loads(line) for line in (options.output_dir / "training_log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == list(range(1, 11))
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert result["accuracy"] == log[-1]["accuracy"] == 1.0

    traits = pipeline("prompt-cam", model=str(options.output_dir))
    scores = []
    for path in sorted(colours.glob("test/*/*.png")):
        (explanation,) = traits(path, heatmaps=False)
        assert explanation["label"] == path.parent.name
        scores.append(explanation["score"])
    assert -sum(map(math.log, scores)) / len(scores) == pytest.approx(result["loss"], abs=1e-4)


def test_backbone_stays_as_it_was(options, backbone):
    train(options)
    saved = load_file(options.output_dir / "model.safetensors")
    for name, weight in load_file(backbone / "model.safetensors").items():
        assert torch.equal(saved[f"backbone.{name}"], weight)
    assert {name for name in saved if not name.startswith("backbone.")} == {
        "agnostic_prompts",
        "class_prompts",
        "score_head.weight",
        "score_head.bias",
    }


def test_optimiser_holds_prompts_and_head_alone(options, monkeypatch):
    made = []

    class Spy(torch.optim.SGD):
        def __init__(self, parameters, **settings):
            made.append((list(parameters), settings))
            super().__init__(made[-1][0], **settings)

    monkeypatch.setattr(torch.optim, "SGD", Spy)
    train(options)
    ((parameters, settings),) = made
    assert sum(parameter.numel() for parameter in parameters) == 2 * 4 * 32 + 4 * 32 + 33
    assert settings == {"lr": 0.005, "momentum": 0.9, "weight_decay": 0.001}


def test_the_same_seed_gives_the_same_weights(options, tmp_path):
    weights = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        options.output_dir, options.seed = tmp_path / run, seed
        train(options)
        weights.append(load_file(options.output_dir / "model.safetensors")["class_prompts"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_defaults_are_the_recipe_of_the_family(options, tmp_path):
    for family, rate in (("vit", 0.1), ("dinov2", 0.0)):
        options.backbone = tmp_path / family
        tiny_model(family).backbone.save_pretrained(options.backbone)
        options.output_dir, options.epochs, options.image_size = tmp_path / f"run-{family}", 1, 40
        train(options)
        config = PromptCamForImageClassification.from_pretrained(options.output_dir).config
        assert (config.prompt_dropout, config.drop_path_rate) == (rate, rate)
        assert config.num_agnostic_prompts == config.num_labels == 4
        assert config.backbone_config.image_size == 40
        (row,) = (options.output_dir / "training_log.jsonl").read_text().splitlines()
        assert json.loads(row)["learning_rate"] == (0.005 if family == "vit" else 0.001)


def test_learning_rate_rises_then_falls_on_a_cosine():
    rates = list(learning_rates(100, 0.005))
    assert rates[:20] == pytest.approx([0.005 * epoch / 20 for epoch in range(1, 21)])
    assert rates[50] == pytest.approx(1e-6 + (0.005 - 1e-6) / 2)
    assert rates[99] == pytest.approx(1e-6 + (0.005 - 1e-6) * (1 + math.cos(math.pi * 0.99)) / 2)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert next(learning_rates(1, 0.3)) == 0.3
    assert list(learning_rates(4, 1.0, warmup_epochs=2))[:2] == [0.5, 1.0]


def test_loss_that_is_not_finite_stops_the_run(options):
    options.learning_rate = 1e30
    with pytest.raises(
        FloatingPointError, match=r"The loss is (nan|inf) in epoch \d; try a lower learning rate than 1e\+30"
    ):
        train(options)


def test_what_is_in_the_output_folder_is_not_touched(options):
    options.output_dir.mkdir()
    (options.output_dir / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"run exists and is not empty; expected a new folder"):
        train(options)
    assert os.listdir(options.output_dir) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs=0: expected 1 or more"),
        ("batch_size", 25, "batch_size=25 is more than the 24 training images"),
        ("class_prompt_layer", 4, "class_prompt_layer=4 contradicts num_hidden_layers=3"),
        ("prompt_dropout", 1.0, r"prompt_dropout=1.0: expected a rate in \[0, 1\)"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(options, name, value, message):
    setattr(options, name, value)
    with pytest.raises(ValueError, match=message):
        train(options)
    assert not options.output_dir.exists()


def test_every_evaluation_image_counts_once(options, monkeypatch):
    """12 test images in batches of 8: the second batch is not full."""
    counts = []
    gather = training.Accelerator.gather_for_metrics

    def spy(self, values, **kwargs):
        gathered = gather(self, values, **kwargs)
        counts.append(len(gathered[1]))
        return gathered

    monkeypatch.setattr(training.Accelerator, "gather_for_metrics", spy)
    options.epochs = 1
    train(options)
    assert counts == [8, 4]
