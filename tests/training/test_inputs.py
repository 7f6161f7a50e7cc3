"""Backbones that cannot be trained on, told before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from promptcam_hf.training.options import TrainingOptions
from promptcam_hf.training.trainer import PromptCamTrainer

from ..tiny_models import tiny_model

TIMM = {"architecture": "vit_base_patch16_224", "num_classes": 1000, "num_features": 768, "pretrained_cfg": {}}


@pytest.fixture(autouse=True)
def no_accelerator_before() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


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
    ids=["timm", "no model_type", "damaged config", "no config", "empty weights", "Git LFS pointer", "no weights"],
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
