"""Opening backbones, and how photographs are prepared for them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from promptcam_hf.backbones import read_backbone_config, read_preprocessing
from promptcam_hf.checkpoint import new_image_processor

from .command_line import promptcam
from .modeling.test_open_clip_promptcam import write

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def written(folder: Path, name: str, content: dict) -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_own_normalisation_is_taken_and_the_crop_is_not(tmp_path, name):
    own = {"image_mean": MEAN, "image_std": STD, "resample": 3, "do_center_crop": True, "size": {"shortest_edge": 50}}
    written(tmp_path, name, own if name.startswith("pre") else {"image_processor": own})
    processor = new_image_processor(32, tmp_path)
    assert [*processor.image_mean, *processor.image_std, processor.resample] == [*MEAN, *STD, 3]
    wide = Image.new("RGB", (90, 30), (255, 0, 0))
    wide.paste((0, 0, 255), (80, 0, 90, 30))  # would be cropped
    pixels = processor(images=wide, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 32, 32)
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    for colour, column in ((red, 0), (blue, -1)):
        expected = (colour - torch.tensor(MEAN)) / torch.tensor(STD)
        torch.testing.assert_close(pixels[:, 16, column], expected, atol=0.02, rtol=0)


def test_backbone_that_says_nothing_is_normalised_as_in_the_paper(tmp_path):
    message = r"has no preprocessor_config\.json with an image_mean; .* mean 0\.5 and standard deviation 0\.5"
    with pytest.warns(UserWarning, match=message):
        processor = new_image_processor(32, tmp_path)
    assert [*processor.image_mean, *processor.image_std, processor.resample] == [0.5] * 6 + [2]
    assert list(new_image_processor(32).image_mean) == [0.5] * 3
    written(tmp_path, "preprocessor_config.json", {"do_normalize": False, "image_mean": MEAN})
    assert read_preprocessing(tmp_path) == {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def test_preprocessing_of_open_clip_models(tmp_path):
    write(tmp_path)
    assert read_preprocessing(tmp_path) == {"image_mean": MEAN, "image_std": STD, "resample": 3}
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    written(tmp_path, "open_clip_config.json", config | {"preprocess_cfg": {"mean": None, "std": None}})
    found = read_preprocessing(tmp_path)
    assert (found["image_mean"], found["image_std"]) == (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    written(tmp_path, "open_clip_config.json", config | {"preprocess_cfg": {"mean": 0.5, "std": 0.25}})
    assert read_preprocessing(tmp_path) == {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    written(tmp_path, "open_clip_config.json", config | {"preprocess_cfg": {"mean": [0.5, 0.5]}})
    with pytest.raises(ValueError, match=r"mean=\[0\.5, 0\.5\] in its preprocess_cfg; expected one number or three"):
        read_preprocessing(tmp_path)
    written(tmp_path, "open_clip_config.json", config | {"preprocess_cfg": None})
    assert read_preprocessing(tmp_path)["image_mean"] == OPENAI_CLIP_MEAN


@pytest.mark.parametrize("content", ["null", "[]", "{"])
def test_damaged_preprocessing_is_told_in_a_line(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^\S+preprocessor_config\.json (holds a|cannot be read)"):
        read_preprocessing(tmp_path)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("vit_base_patch14_dinov2.lvd142m", "facebook/dinov2-base"),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "facebook/dinov2-with-registers-small"),
        ("vit_large_patch16_dinov3.lvd1689m", "facebook/dinov3-vitl16-pretrain-lvd1689m"),
        ("vit_small_patch8_224.dino", "facebook/dino-vits8"),
        ("vit_base_patch16_clip_224.openai", "openai/clip-vit-base-patch16"),
        ("vit_base_patch16_224.mae", "facebook/vit-mae-base"),
        ("vit_base_patch16_224.augreg_in21k", "google/vit-base-patch16-224-in21k"),
        ("swin_tiny", "the folder or Hub id of a model of transformers"),
    ],
)
def test_weights_of_timm_are_refused_and_those_for_transformers_named(tmp_path, name, there):
    architecture, _, tag = name.partition(".")
    written(tmp_path, "config.json", {"architecture": architecture, "pretrained_cfg": {"tag": tag}})
    with pytest.raises(ValueError, match=rf"^backbone=\S+: cannot be opened \(its config.json is of timm .* {there}"):
        read_backbone_config(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", {"model_type": "vit", "hidden_size": "32"}, "Validation error for field 'hidden_size': .*'32'"),
        ("config.json", {"model_type": "clip", "vision_config": 3}, "Validation error for field 'vision_config': "),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"head_width": 0}}}, "integer division or modulo"),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"width": 64.0}}}, "Validation error for field 'hidden"),
    ],
)
def test_configuration_with_wrong_values_is_told_in_a_line(tmp_path, name, content, reason):
    with pytest.raises(ValueError, match=rf"^backbone=\S+: cannot be opened \({reason}.*\)$"):
        read_backbone_config(str(written(tmp_path, name, content)))


def test_files_of_the_authors_are_refused_and_those_for_transformers_named(tmp_path):
    path = tmp_path / "dino_vitbase16_pretrain.pth"
    path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"pth is a file; expected its weights for transformers, facebook/dino-vitb16\."
    ):
        read_backbone_config(str(path))


def test_model_on_an_open_clip_backbone_trains_and_explains(tmp_path, bird_folder, photograph):
    write(tmp_path / "bioclip")
    folder = tmp_path / "run"
    options = ["--epochs", "1", "--batch-size", "8", "--prompts-only", "--num-workers", "0"]
    train = ["train", "--data", bird_folder, "--backbone", tmp_path / "bioclip", "--output-dir", folder, *options]
    assert promptcam(*train).exit_code == 0
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == MEAN
    assert (
        "normalised with mean 0.1, 0.2, 0.3 and standard deviation 0.4, 0.5, 0.6" in (folder / "README.md").read_text()
    )
    explain = ["explain", photograph, "--model", folder, "--output-dir", tmp_path / "explained"]
    assert promptcam(*explain).exit_code == 0
    (row,) = (tmp_path / "explained" / "explanations.jsonl").read_text().splitlines()
    (explanation,) = json.loads(row)["explanations"]
    assert len(explanation["traits"][0]["map"]) == 4  # of 32 x 32 pixels in patches of 8
