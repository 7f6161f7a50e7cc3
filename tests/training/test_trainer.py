import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.data.splits import load_splits
from promptcam_hf.training.optimization import learning_rates
from promptcam_hf.training.options import TrainingOptions, load_recipe
from promptcam_hf.training.state import read_log
from promptcam_hf.training.trainer import PromptCamTrainer

from ..tiny_models import assert_close, images, tiny_model
from .runs import PROMPTS, evaluations, losses, resume, same, train, weights_of

# --- What comes out


def test_training_learns_and_leaves_a_checkpoint_that_agrees_with_it(options, colours, run, capsys):
    result = train(options.replace(data=colours, epochs=10, learning_rate=0.05), run)
    assert "No better than chance" not in capsys.readouterr().out
    log = evaluations(run)
    assert [row["epoch"] for row in log] == list(range(1, 11))
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert result["accuracy"] == log[-1]["accuracy"] == 1.0
    assert len(losses(run)) == 30

    traits = pipeline("prompt-cam", model=str(run))
    scores = []
    for path in sorted(Path(colours).glob("test/*/*.png")):
        (explanation,) = traits(path, heatmaps=False)
        assert explanation["label"] == path.parent.name
        scores.append(explanation["score"])
    assert -sum(map(math.log, scores)) / len(scores) == pytest.approx(result["loss"], rel=1e-3)


def test_a_model_that_is_no_better_than_chance_is_told(options, colours, run, capsys):
    test = Path(colours) / "test"
    for old, new in (("blue", "other"), ("green", "blue"), ("red", "green"), ("other", "red")):
        (test / old).rename(test / new)
    train(options.replace(data=colours, epochs=10, learning_rate=0.05), run)
    said = "No better than chance, 33.3%: train for more epochs or on more photographs."
    assert said in capsys.readouterr().out


def test_loss_counts_the_blurred_class_as_one_more_wrong_answer(options, tmp_path):
    for value in (False, True):
        train(options.replace(blurred_negative=value, epochs=1), tmp_path / str(value))
    without, with_it = (losses(tmp_path / str(value)) for value in (False, True))
    assert with_it[0] > without[0]


def test_backbone_stays_as_it_was(options, backbone, run):
    train(options, run)
    saved = load_file(run / "model.safetensors")
    for name, weight in load_file(backbone / "model.safetensors").items():
        assert torch.equal(saved[f"backbone.{name}"], weight)
    assert {name for name in saved if not name.startswith("backbone.")} == PROMPTS


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimiser_holds_prompts_and_head_alone(options, run, optimizer):
    train(options.replace(optimizer=optimizer, epochs=1), run)
    state = torch.load(run / "states" / "step-00000003.pt", weights_only=True)
    count = sum(weight.numel() for weight in state["weights"].values())
    assert count == 2 * 4 * 32 + 4 * 32 + 33
    (group,) = state["optimizer"]["param_groups"]
    assert (group["weight_decay"], group.get("momentum")) == (0.001, 0.9 if optimizer == "sgd" else None)
    moments = [value for of_weight in state["optimizer"]["state"].values() for value in of_weight.values()]
    kept = sum(value.numel() for value in moments if value.dim())
    assert kept == count * (1 if optimizer == "sgd" else 2)


def test_weights_depend_on_the_seed_and_not_on_the_number_of_workers(options, tmp_path):
    """The recipe that a run leaves trains the same again."""
    train(options, tmp_path / "a")
    again = TrainingOptions(**load_recipe(tmp_path / "a" / "recipe.yaml"))
    for run, changes in (("b", {"num_workers": 2}), ("c", {"seed": 1})):
        train(again.replace(**changes), tmp_path / run)
    a, b, c = (weights_of(tmp_path / run) for run in "abc")
    assert same(a, b)
    assert not same(a, c)


def test_defaults_are_filled_in_and_recorded(bird_folder, tmp_path):
    for family, size in (("vit", 32), ("dinov2", 232)):
        backbone, run = tmp_path / family, tmp_path / f"run-{family}"
        tiny_model(family).backbone.save_pretrained(backbone)
        train(TrainingOptions(data=bird_folder, backbone=backbone, epochs=1, batch_size=4, num_workers=0), run)
        config = PromptCamForImageClassification.from_pretrained(run).config
        assert (config.prompt_dropout, config.drop_path_rate, config.patch_dropout) == (0, 0, 0)
        assert (config.num_prompted_layers, config.num_agnostic_prompts, config.num_labels) == (3, 4, 4)
        assert config.backbone_config.image_size == size
        recipe = load_recipe(run / "recipe.yaml")
        assert (recipe["learning_rate"], recipe["warmup_epochs"], recipe["cache_features"]) == (0.01, 0, 0)


def test_best_checkpoint_is_kept_besides_the_last(options, colours, run, tmp_path):
    """A learning rate so high that training gets worse after its first epochs."""
    train(options.replace(data=colours, epochs=8, learning_rate=3.0, warmup_epochs=8, batch_size=4), run)
    log = evaluations(run)
    best = max(log, key=lambda row: (row["accuracy"], -row["loss"]))
    assert best["epoch"] < 8, "the last is the best, so this test shows nothing"
    for folder, row in ((run, log[-1]), (run / "best", best)):
        traits = pipeline("prompt-cam", model=str(folder))
        paths = sorted(Path(colours).glob("test/*/*.png"))
        right = sum(traits(path, heatmaps=False)[0]["label"] == path.parent.name for path in paths)
        assert right == row["accuracy"] * len(paths)


def test_evaluations_are_as_far_apart_as_said(options, run):
    train(options.replace(epochs=5, evaluate_every=2), run)
    assert [row["epoch"] for row in evaluations(run)] == [2, 4, 5]


def test_prompts_alone_can_be_saved(options, backbone, run):
    train(options.replace(prompts_only=True, image_size=40), run)
    assert load_file(run / "model.safetensors").keys() == PROMPTS
    model = PromptCamForImageClassification.from_pretrained(run)
    assert model.config.backbone == str(backbone)
    assert model.config.backbone_config.image_size == 40
    kept = tiny_model("vit").backbone.state_dict()
    loaded = model.backbone.state_dict()
    assert all(torch.equal(loaded[name], kept[name]) for name in loaded if "position" not in name)


def test_states_are_few(options, run):
    train(options.replace(epochs=4, save_every=1, save_total_limit=3), run)
    names = [f"step-{step:08}.pt" for step in (10, 11, 12)]
    assert sorted(path.name for path in (run / "states").iterdir()) == names


# --- From Python


@pytest.fixture
def photographs(bird_folder) -> datasets.DatasetDict:
    """Photographs as many scripts have them: in memory, under other names, with a transform and further columns."""
    loaded = datasets.load_dataset("imagefolder", data_dir=str(bird_folder))
    loaded = loaded.rename_columns({"image": "photo", "label": "species"})
    loaded = loaded.map(lambda species: {"features": [0.0, 1.0]}, input_columns="species")
    return loaded.with_transform(lambda rows: {"pixel_values": rows["photo"]})


@pytest.fixture
def python_options() -> TrainingOptions:
    settings = {"optimizer": "sgd", "label_smoothing": 0.0, "validation_share": 0.0, "cache_features": 0}
    return TrainingOptions(**settings, epochs=2, batch_size=8, num_workers=0, save_every=1, learning_rate=0.1)


def built_model(photographs: datasets.DatasetDict, backbone: Path) -> PromptCamForImageClassification:
    torch.manual_seed(0)
    names = photographs["train"].features["species"].names
    return PromptCamForImageClassification.from_backbone(
        backbone, id2label=dict(enumerate(names)), num_agnostic_prompts=3, prompt_dropout=0.2
    )


def test_splits_and_model_of_ones_own_train_and_resume_to_the_same_weights(
    python_options, photographs, backbone, run, tmp_path
):
    steps = []
    whole = PromptCamTrainer(
        python_options, tmp_path / "whole", photographs, built_model(photographs, backbone), on_step=steps.append
    )
    result = whole.train()
    assert steps == [row for row in read_log(tmp_path / "whole") if "accuracy" not in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0].keys() == {"step", "epoch", "train_loss", "learning_rate"}
    assert json.loads((tmp_path / "whole" / "evaluation" / "results.json").read_text())["loss"] == result["loss"]
    config = PromptCamForImageClassification.from_pretrained(tmp_path / "whole").config
    assert (config.num_agnostic_prompts, config.prompt_dropout) == (3, 0.2)
    assert load_recipe(tmp_path / "whole" / "recipe.yaml")["prompt_dropout"] == 0.2

    def interrupt(row):
        if row["step"] == 5:
            raise KeyboardInterrupt

    model = built_model(photographs, backbone)
    with pytest.raises(KeyboardInterrupt):
        train(python_options, run, splits=photographs, model=model, on_step=interrupt)
    assert "forward" not in vars(model)  # which Accelerate had replaced
    with pytest.raises(ValueError, match=r"began with splits or a model that were passed to PromptCamTrainer; pass"):
        resume(run)
    wider = PromptCamForImageClassification.from_backbone(backbone, id2label=config.id2label, prompt_dropout=0.2)
    with pytest.raises(ValueError, match="num_agnostic_prompts=3, but the given model has 4"):
        resume(run, splits=photographs, model=wider)
    again = PromptCamTrainer(python_options, run, photographs, built_model(photographs, backbone))
    assert again.resume() == result
    finished = PromptCamTrainer(python_options, run, photographs, built_model(photographs, backbone))
    assert finished.resume() == result
    assert same(weights_of(run), weights_of(tmp_path / "whole"))
    with torch.no_grad():
        a, b = (trainer.model.cpu().eval()(images(2)).logits for trainer in (whole, again))
    torch.testing.assert_close(a, b)


def test_splits_that_were_loaded_train_as_their_folder_does(options, bird_folder, tmp_path):
    train(options, tmp_path / "folder")
    train(options.replace(data=None), tmp_path / "splits", splits=load_splits(bird_folder))
    assert same(weights_of(tmp_path / "folder"), weights_of(tmp_path / "splits"))


def test_resume_refuses_other_options_than_the_run_began_with(options, run):
    train(options.replace(epochs=1), run)
    with pytest.raises(ValueError, match=r"^epochs=2, but the run in .*run began with 1; expected the same options"):
        PromptCamTrainer(options, run).resume()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "photos"}, r"data='photos' and splits are both given; expected one of them\.$"),
        (
            {"prompt_dropout": 0.1},
            r"^prompt_dropout=0\.1, but the given model has 0\.2; set it where the model is built",
        ),
        ({"backbone": "other"}, r"^backbone='other', but the given model has '.*'; set it where"),
        ({"label_column": "photo"}, "the column 'photo' cannot be used as --label-column"),
    ],
)
def test_splits_and_model_that_do_not_fit_the_options(python_options, photographs, backbone, run, changes, message):
    model = built_model(photographs, backbone)
    with pytest.raises(ValueError, match=message):
        train(python_options.replace(**changes), run, splits=photographs, model=model)
    assert not run.exists()


def test_model_of_other_classes_is_refused(python_options, photographs, backbone, run):
    model = PromptCamForImageClassification.from_backbone(backbone, num_labels=4)
    with pytest.raises(
        ValueError, match=r"^The model's classes are LABEL_0, .* and 1 more, those of the photographs Am"
    ):
        train(python_options, run, splits=photographs, model=model)
    assert not run.exists()


# --- Ways of computing the same


def test_half_precision_backbone_trains_in_full_precision(options, run, tmp_path):
    tiny_model("vit").backbone.half().save_pretrained(tmp_path / "half")
    train(options.replace(backbone=tmp_path / "half", optimizer="adamw", epochs=1), run)
    for weight in weights_of(run).values():
        assert weight.dtype == torch.float32
        assert torch.isfinite(weight).all()


def test_batches_in_parts_follow_the_same_curve(options, tmp_path):
    options = options.replace(prompt_dropout=0.0, drop_path_rate=0.0, learning_rate=0.1)
    for parts in (1, 4):
        train(options.replace(gradient_accumulation_steps=parts), tmp_path / str(parts))
    whole, parts = losses(tmp_path / "1"), losses(tmp_path / "4")
    assert max(whole) - min(whole) > 0.01
    assert parts == pytest.approx(whole, rel=1e-4)


def test_activation_checkpointing_changes_nothing(options, tmp_path):
    for name, value in (("with", True), ("without", False)):
        train(options.replace(gradient_checkpointing=value, learning_rate=0.1), tmp_path / name)
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-4)


def test_half_precision_trains_and_is_evaluated_in_full(options, colours, run):
    options = options.replace(data=colours, epochs=6, learning_rate=0.05, mixed_precision="bf16")
    trainer = PromptCamTrainer(options, run)
    result = trainer.train()
    assert load_file(run / "model.safetensors")["class_prompts"].dtype == torch.float32
    traits = pipeline("prompt-cam", model=str(run))
    paths = sorted(Path(colours).glob("test/*/*.png"))
    scores = [traits(path, classes=[path.parent.name], heatmaps=False)[0]["score"] for path in paths]
    # To rounding in float32, so evaluation did not run in bfloat16, which would differ in the third digit
    assert -sum(map(math.log, scores)) / len(scores) == pytest.approx(result["loss"], rel=1e-4)
    pixel_values = images(2)
    with torch.no_grad():
        after, saved = (model.eval()(pixel_values).logits for model in (trainer.model, traits.model))
    assert_close(after, saved)  # the model in memory computes in float32 again


def test_compiled_model_trains_alike(options, tmp_path, monkeypatch):
    calls = []
    compile = torch.nn.Module.compile

    def spy(self):
        calls.append(type(self))
        compile(self, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", spy)
    options = options.replace(prompt_dropout=0.0, drop_path_rate=0.0, learning_rate=0.1)
    for name, value in (("with", True), ("without", False)):
        train(options.replace(compile=value), tmp_path / name)
    assert calls == [PromptCamForImageClassification]
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-4)
    assert load_file(tmp_path / "with" / "model.safetensors").keys() >= PROMPTS


def test_batch_that_does_not_fit_is_computed_in_parts(options, run, monkeypatch):
    """Memory is tried as training will use it, with activation checkpointing."""
    forward = PromptCamForImageClassification.forward
    sizes = []

    def small_device(self, pixel_values=None, labels=None, **kwargs):
        if self.training:
            assert self.gradient_checkpointing
            sizes.append(len(pixel_values))
            if len(pixel_values) > 3:
                raise RuntimeError("CUDA out of memory. Tried to allocate more than there is.")
        return forward(self, pixel_values, labels, **kwargs)

    monkeypatch.setattr(PromptCamForImageClassification, "forward", small_device)
    train(options.replace(find_batch_size=True, gradient_checkpointing=True, epochs=1), run)
    assert sizes == [8, 4, 2] + [2] * 12
    assert load_recipe(run / "recipe.yaml")["gradient_accumulation_steps"] == 4

    def tiny_device(self, pixel_values=None, labels=None, **kwargs):
        raise RuntimeError("CUDA out of memory. Tried to allocate more than there is.")

    monkeypatch.setattr(PromptCamForImageClassification, "forward", tiny_device)
    with pytest.raises(ValueError, match="Not even one image fits into memory"):
        train(options.replace(find_batch_size=True), run.with_name("other"))
    assert not run.with_name("other").exists()


def launch(*arguments: str | Path) -> None:
    """`promptcam` on two processes, over gloo. (`accelerate launch --cpu` would start one.)"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "promptcam_hf", *map(str, arguments)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        output, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.send_signal(signal.SIGABRT)  # says where it waits
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output[-8000:]


def test_two_processes_follow_the_curve_of_one(options, backbone, bird_folder, tmp_path):
    photos = shutil.copytree(bird_folder, tmp_path / "photos")
    sorted(photos.glob("test/*/*"))[0].unlink()  # 11 are left: no multiple of two
    changes = {"prompt_init": "mean_cls", "prompt_dropout": 0.0, "drop_path_rate": 0.0, "learning_rate": 0.5}
    options = options.replace(data=photos, **changes)
    options.save(tmp_path / "recipe.yaml")
    train(options, tmp_path / "one")
    parts = ("--gradient-accumulation-steps", "2")
    launch("train", "--recipe", tmp_path / "recipe.yaml", "--output-dir", tmp_path / "two", *parts)
    assert max(losses(tmp_path / "one")) - min(losses(tmp_path / "one")) > 0.01
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert two["accuracy"] == one["accuracy"]  # a multiple of 1/11
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    results = json.loads((tmp_path / "two" / "evaluation" / "results.json").read_text())
    assert results["num_images"] == 11
    state = torch.load(sorted((tmp_path / "two" / "states").iterdir())[-1], weights_only=True)
    assert len(state["random_states"]) == 2


def test_learning_rate_rises_then_falls_on_a_cosine():
    rates = list(learning_rates(100, 0.005, 20))
    assert rates[:20] == pytest.approx([0.005 * epoch / 20 for epoch in range(1, 21)])
    assert rates[50] == pytest.approx(1e-6 + (0.005 - 1e-6) / 2)
    assert rates[99] == pytest.approx(1e-6 + (0.005 - 1e-6) * (1 + math.cos(math.pi * 0.99)) / 2)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert next(learning_rates(1, 0.3, 0)) == 0.3
    assert list(learning_rates(4, 1.0, 2))[:2] == [0.5, 1.0]


# --- What stops it


def test_loss_that_is_not_finite_stops_the_run(options, run):
    with pytest.raises(FloatingPointError) as error:
        train(options.replace(learning_rate=1e30, epochs=5, save_every=1), run)
    message = str(error.value)
    assert message.startswith(("The loss is nan in step ", "The loss is inf in step "))
    assert "try a lower learning rate than 1e+30" in message
    assert message.count(".jpg") == 8
    states = [torch.load(file, weights_only=True) for file in (run / "states").iterdir()]  # of steps before
    assert states
    assert all(torch.isfinite(weight).all() for state in states for weight in state["weights"].values())


def test_what_is_in_the_output_folder_is_not_touched(options, run):
    run.mkdir()
    (run / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"run exists and is not empty; expected a new or empty folder\.$"):
        train(options, run)
    assert os.listdir(run) == ["thesis.txt"]
    (run / "recipe.yaml").write_text("epochs: 1")
    with pytest.raises(ValueError, match=r"or --resume .*run\.$"):
        train(options, run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 25}, "batch_size=25 is more than the 24 training images"),
        ({"class_prompt_layer": 4}, "class_prompt_layer=4: expected 1 to 3, as num_hidden_layers=3"),
        ({"gradient_accumulation_steps": 3}, "batch_size=8 cannot be divided among 1 device and gradient_acc"),
        ({"backbone": None}, "backbone is not given: pass --backbone, or a --recipe that sets it"),
        ({"data": None}, "data is not given"),
        ({"cache_features": 1}, "cache_features: every layer has prompts"),
        ({"report_to": "trackio"}, "report_to=trackio: the package trackio is not installed"),
        pytest.param(
            {"mixed_precision": "fp16"},
            "mixed_precision=fp16 needs a GPU, and this run is on a CPU; expected no or bf16",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(options, run, changes, message):
    with pytest.raises(ValueError, match=message):
        train(options.replace(**changes), run)
    assert not run.exists()


def test_folder_that_weights_cannot_be_read_from_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match=r"run\\udcff: its name is not UTF-8"):
        train(options, tmp_path / os.fsdecode(b"run\xff"))
    assert not [*tmp_path.iterdir()]


def test_empty_folder_of_the_user_stays_where_training_cannot_start(options, run):
    run.mkdir()
    with pytest.raises(ValueError, match="batch_size=25"):
        train(options.replace(batch_size=25), run)
    assert list(run.iterdir()) == []


def test_run_goes_on_with_the_data_that_it_began_with(options, bird_folder, run, tmp_path):
    photos = shutil.copytree(bird_folder, tmp_path / "photos")
    train(options.replace(data=photos), run)
    sorted(photos.glob("train/*/*.jpg"))[0].unlink()
    with pytest.raises(ValueError, match=r"photos has changed since the run began, with 24 training images of 4"):
        resume(run)


def test_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(ValueError, match=r"has no recipe\.yaml, so there is no run to resume"):
        resume(tmp_path)


def test_unreadable_photograph_stops_the_run_at_its_start(options, bird_folder, run, tmp_path):
    photos = shutil.copytree(bird_folder, tmp_path / "photos")
    bad = sorted(photos.glob("train/*/*.jpg"))[5]
    bad.write_bytes(bad.read_bytes()[:-400])
    with pytest.raises(ValueError, match=rf"{bad.name}: cannot be read as an image .* or pass --on-bad-image skip"):
        train(options.replace(data=photos), run)
    assert not run.exists()

    train(options.replace(data=photos, on_bad_image="skip"), run)
    skipped = json.loads((run / "skipped_images.json").read_text())
    assert [bad.name in message for message in skipped["train"].values()] == [True]
    assert skipped["evaluation"] == {}
    assert len(losses(run)) == 2 * (23 // 8)


def test_class_whose_photographs_are_all_unreadable_is_told(options, bird_folder, run, tmp_path):
    photos = shutil.copytree(bird_folder, tmp_path / "photos")
    folder = sorted((photos / "train").iterdir())[0]
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"No readable training images of {folder.name}"):
        train(options.replace(data=photos, on_bad_image="skip"), run)
