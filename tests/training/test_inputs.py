"""Backbones that cannot be trained on, told before anything is written; photographs divided once for a whole run."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.evaluation.evaluate import evaluate
from promptcam_hf.share.run import resume, train
from promptcam_hf.training.inputs import build_train_transform, resolve_options
from promptcam_hf.training.options import TrainingOptions
from promptcam_hf.training.trainer import PromptCamTrainer

from ..tiny_models import tiny_model

TIMM = {"architecture": "vit_base_patch16_224", "num_classes": 1000, "num_features": 768, "pretrained_cfg": {}}


@pytest.fixture
def backbone(tmp_path) -> Path:
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def error_of(backbone: Path | str, data: Path, tmp_path: Path, **options) -> str:
    given = TrainingOptions(data=data, backbone=backbone, epochs=1, batch_size=8, num_workers=0, **options)
    with pytest.raises(ValueError, match=r"^(backbone|image_size)=") as error:
        PromptCamTrainer(given, tmp_path / "run").train()
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def configured(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(content)


def with_patches_of(size: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"patch_size": size}))

    return change


def weighing(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            configured(json.dumps(TIMM)),
            "its config.json is of timm or another library; expected the fol",
        ),
        (configured('{"hidden_size": 32}'), "its config.json is of timm or another library"),
        (configured("{"), "cannot be opened (It looks like the config file at"),
        (with_patches_of(0), "patch_size=0; expected 1 pixel or more."),
        (with_patches_of([]), "patch_size=[]; expected 1 pixel or more."),
        (
            lambda folder: (folder / "config.json").unlink(),
            "has no config.json; expected the folder or Hub id of a model of transformers",
        ),
        (weighing(b""), "its weights cannot be read (Error while deserializing header"),
        (weighing(b"version https://git-lfs.github.com/spec/v1\n"), "its weights cannot be read (Error while deserial"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "its weights cannot be read (Error no file named mode",
        ),
    ],
    ids=[
        "timm",
        "no model_type",
        "damaged config",
        "empty patches",
        "no patches",
        "no config",
        "empty weights",
        "Git LFS pointer",
        "no weights",
    ],
)
def test_folder_that_is_no_backbone(bird_folder, backbone, tmp_path, change, message):
    change(backbone)
    assert message in error_of(backbone, bird_folder, tmp_path)


def test_file_is_no_backbone(bird_folder, tmp_path):
    (tmp_path / "vit.pth").write_bytes(b"PK\3\4")
    error = error_of(tmp_path / "vit.pth", bird_folder, tmp_path)
    assert "vit.pth is a file; expected the folder or Hub id of a model of transformers" in error


@pytest.mark.parametrize(("size", "nearest"), [(3, 8), (33, 32), (39, 40)])
def test_image_size_is_a_multiple_of_the_patch(bird_folder, backbone, tmp_path, size, nearest):
    error = error_of(backbone, bird_folder, tmp_path, image_size=size)
    assert error == (
        f"image_size={size}: expected a multiple of 8, the side of the backbone's patches, such as {nearest}."
    )


def test_photographs_are_divided_once_for_a_whole_run(backbone, bird_folder, tmp_path, capsys):
    """Also where --resume and evaluate read them from another place, and a photograph is damaged."""
    photos = tmp_path / "photos"
    for path in sorted(bird_folder.glob("train/*/*.jpg")):
        animal = int(path.stem) // 2
        (photos / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, photos / path.parent.name / f"animal{animal}_{path.name}")
    damaged = sorted(photos.glob("*/*.jpg"))[0]
    damaged.write_bytes(damaged.read_bytes()[:500])
    given = TrainingOptions(
        data=photos, backbone=backbone, epochs=2, batch_size=4, num_workers=0, group_by=r"(animal\d)_", test_share=0.34,
        on_bad_image="skip", save_total_limit=9,
    )  # fmt: skip
    run = tmp_path / "run"
    train(given, run)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("photos: 4 classes") for line in lines)
    assert any(line.startswith("Left out: 1 photograph that cannot be read: ") for line in lines)
    rows = list(csv.DictReader((run / "split.csv").open()))
    assert len(rows) == 24
    sides: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        sides.setdefault((row["label"], row["group"]), set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    measured = [row["image"] for row in rows if row["split"] == "test"]
    assert len(measured) == 8

    for path in sorted((run / "states").iterdir())[1:]:
        path.unlink()
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace(str(photos), str(photos.rename(tmp_path / "moved"))))
    before = (run / "split.csv").read_text()
    expected = json.loads((run / "evaluation" / "results.json").read_text())
    resume(run)
    assert (run / "split.csv").read_text() == before
    for model in (run, run / "best"):
        report = tmp_path / f"report of {model.name}"
        found = evaluate(model, tmp_path / "moved", report, on_bad_image="skip", num_workers=0)
        assert (found["split"], found["num_images"]) == ("test", expected["num_images"])
    assert found["num_images"] + found["num_skipped"] == len(measured)
    (tmp_path / "moved" / measured[-1]).unlink()
    with pytest.raises(ValueError, match=r"1 photograph of .*split\.csv missing or changed, 0 new"):
        resume(run)


@pytest.mark.parametrize(
    ("patch_size", "image_size", "crop"),
    [(14, 238, 224), (16, 240, 224), (16, 224, 208), (8, 232, 216), (16, 448, 416), (32, 224, 192), (32, 32, 32)],
)
def test_crops_are_a_fifteenth_narrower_in_whole_patches(patch_size, image_size, crop):
    model = tiny_model("vit", backbone={"patch_size": patch_size, "image_size": image_size})
    processor = new_image_processor(image_size)
    transform = build_train_transform(TrainingOptions(), model, processor)
    assert (transform.resized, transform.size) == (image_size, crop)
    paper = build_train_transform(TrainingOptions(crops="paper"), model, processor)
    assert (paper.resized, paper.size) == (round(image_size * 240 / 224), image_size)


@pytest.mark.parametrize("cache_features", [0, 1])
def test_training_on_crops_of_another_size_than_photographs_in_evaluation(cache_features, bird_folder, tmp_path):
    """Also where layers need the positions of patches."""
    tiny_model("dinov3_vit").backbone.save_pretrained(tmp_path / "backbone")
    given = TrainingOptions(
        data=bird_folder, backbone=tmp_path / "backbone", epochs=2, final_epochs=0, batch_size=8, num_workers=0,
        image_size=40, num_prompted_layers=1, cache_features=cache_features,
    )  # fmt: skip
    trainer = PromptCamTrainer(given, tmp_path / "run", features_dir=tmp_path / "features")
    trainer.train()
    assert (trainer.train_transform.size, trainer.model.config.image_size) == (32, 40)
    if cache_features:
        num_tokens = trainer.views[0, 0]["features"].shape[0]
        assert num_tokens == trainer.model.num_prefix_tokens + 16


def test_given_model_that_cannot_be_saved_as_prompts_alone_is_refused_before_training(backbone):
    model = PromptCamForImageClassification.from_backbone(backbone, num_labels=3)
    options = TrainingOptions(prompts_only=True)
    assert resolve_options(options, model).prompts_only
    model.backbone.requires_grad_()
    with pytest.raises(ValueError, match="prompts_only: the given model's backbone is trained, which would be lost"):
        resolve_options(options, model)
    with pytest.raises(ValueError, match="prompts_only: the given model does not know its backbone"):
        resolve_options(options, tiny_model("vit"))
