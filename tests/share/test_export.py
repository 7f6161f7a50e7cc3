"""ONNX files: the numbers of the model, and an example that explains photographs with them where there is no torch."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from promptcam_hf.modeling.images_promptcam import load_photograph
from torch import nn
from transformers import ViTImageProcessorPil, pipeline

from promptcam_hf.checkpoint import new_image_processor, open_pipeline, save_checkpoint
from promptcam_hf.share import export

from ..command_line import promptcam
from ..tiny_models import IMAGE_SIZE, assert_close, images, tiny_model

onnx = pytest.importorskip("onnx", reason="needs pip install '.[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install '.[onnx]'")
EXAMPLE = Path(__file__).parents[2] / "examples" / "explain_without_torch.py"
# Few layers and heads, since torch takes seconds for each: (class_prompt_layer, number of layers)
MODELS = {"vit": (2, 2), "dinov2": (1, 2), "dinov3_vit": (1, 1)}
NAMES = {0: "Baltimore_Oriole", 1: "Hooded_Oriole", 2: "Orchard_Oriole", 3: "Scott_Oriole", 4: "Waxwing_Grünfink"}


def refused(*arguments, said: str) -> None:
    result = promptcam("export", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of a family, the model, its checkpoint, and the file that the command makes of it."""
    folder = tmp_path_factory.mktemp("export")

    @cache
    def make(family: str):
        layer, num_layers = MODELS[family]
        shape = {"num_hidden_layers": num_layers, "num_attention_heads": 2}
        model = tiny_model(family, layer, backbone=shape, id2label=NAMES, temperature=0.7)
        processor = new_image_processor(IMAGE_SIZE, keep_aspect=family == "dinov2")
        processor.image_mean, processor.image_std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.2]
        save_checkpoint(model, processor, folder / family)
        file = folder / "new" / f"{family}.onnx"
        result = promptcam("export", folder / family, "--format", "onnx", "--output", file)
        assert result.exit_code == 0, result.output
        assert str(file) in result.stdout
        return model, folder / family, file

    return make


def run(file: Path, pixel_values: torch.Tensor, classes: list[int]) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixel_values": pixel_values.numpy(), "classes": np.array(classes)})
    return {output.name: torch.from_numpy(value) for output, value in zip(session.get_outputs(), found, strict=True)}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("classes", [[-1], [0, 3, 1]], ids=["predicted", "given"])
def test_onnx_runtime_ranks_heads_as_the_model_does(exported, family, classes):
    model, _, file = exported(family)
    pixel_values = images(len(classes), seed=5)
    expected = model.rank_heads(pixel_values, None if classes == [-1] else torch.tensor(classes))
    found = run(file, pixel_values, classes)
    assert set(found) == set(export.OUTPUTS)
    for name, value in found.items():
        of_model = expected["classes" if name == "explained" else name]
        of_model = of_model[:, 0] if classes == [-1] and name != "logits" else of_model
        assert value.dtype == of_model.dtype
        if value.is_floating_point():
            assert_close(value, of_model, tolerance=1e-4)
        else:
            assert value.tolist() == of_model.tolist()


def test_metadata_say_how_to_use_the_file(exported, monkeypatch):
    model, folder, file = exported("vit")
    given = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    about = json.loads(given["promptcam"])
    assert about["classes"] == list(NAMES.values())
    assert about["temperature"] == model.config.temperature
    assert about["model"] == folder.name
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    assert {name: about["preprocessing"][name] for name in saved} == saved
    monkeypatch.chdir(folder)
    assert export._about(open_pipeline("."), ".", None)["model"] == folder.name


def test_8_bit_weights_make_the_file_smaller_and_change_little(exported, tmp_path):
    model, _, file = exported("vit")
    export._write(onnx.load(file), "{}", "int8", tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.8 * file.stat().st_size  # the graph itself is most of it
    pixel_values = images(4)
    expected = model(pixel_values).logits
    error = run(tmp_path / "int8.onnx", pixel_values, [-1] * 4)["logits"] - expected
    assert 0 < error.std() < 0.2 * expected.std()


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_the_example_explains_like_the_pipeline_without_torch(exported, photograph, tmp_path, family):
    _, folder, file = exported(family)
    wide = Image.open(photograph).resize((120, 40))
    wide.putalpha(Image.linear_gradient("L").resize(wide.size))
    photograph = tmp_path / "wide.png"
    wide.save(photograph)
    without = "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-c", without, EXAMPLE, file, photograph, tmp_path / "overlay.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40

    (explanation,) = pipeline("prompt-cam", model=str(folder))(str(photograph), top_traits=2)
    said = r"(\S+) (\S+)\nheads, most important first: (.+)\nheads that suffice: (\d+)\n"
    label, probability, heads, sufficient = re.fullmatch(said, done.stdout).groups()
    assert label == explanation["label"]
    assert float(probability) == pytest.approx(explanation["score"], rel=1e-3)
    assert heads == " ".join(str(trait["head"]) for trait in explanation["traits"])
    assert int(sufficient) == explanation["num_sufficient"]

    # The brighter, compared with the photograph, the more the first trait attends to a place
    light = [np.asarray(load_photograph(path), float).sum(-1) for path in (tmp_path / "overlay.png", photograph)]
    trait_map = np.asarray(Image.fromarray(explanation["traits"][0]["map"]).resize(light[0].shape[::-1]))
    assert np.corrcoef(light[0].ravel() / light[1].ravel(), trait_map.ravel())[0, 1] > 0.9


def test_what_cannot_be_exported_is_refused_in_one_line_and_leaves_nothing(exported, tmp_path, monkeypatch):
    model, folder, file = exported("vit")
    before = file.read_bytes()
    refused(folder, "--output", file, said=f"{file} exists; choose another name, or overwrite it (--overwrite).")
    assert file.read_bytes() == before
    refused(folder, "--output", tmp_path, said="is a folder")
    refused(folder, "--output", file / "new" / "a.onnx", said=f"{file} is a file; expected a folder.")
    refused(tmp_path / "nothing", "--output", tmp_path / "a.onnx", said="no such folder")
    save_checkpoint(model, ViTImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}), tmp_path / "sizes")
    refused(tmp_path / "sizes", "--output", tmp_path / "a.onnx", said="expected a fixed height and width")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(folder, "--output", tmp_path / "a.onnx", said="pip install 'promptcam-hf[onnx]'")
    assert {path.name for path in tmp_path.iterdir()} == {"sizes"}


class OfAnotherKind(nn.Module):
    def forward(self, pixel_values, classes):
        return pixel_values if pixel_values.sum() > 0 else classes


def test_a_model_that_torch_cannot_export_is_named():
    with pytest.raises(ValueError, match=r"^model=birds, a ViT: torch [\d.+a-z]+ cannot export it to ONNX \(.+\)\.$"):
        export._to_onnx(OfAnotherKind(), images(2), "model=birds, a ViT")
