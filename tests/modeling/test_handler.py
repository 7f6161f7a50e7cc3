"""The code for Inference Endpoints, loaded as they do: from the checkpoint's folder, without this package."""

import json
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from promptcam_hf.modeling.handler import EndpointHandler
from transformers import pipeline

from promptcam_hf.checkpoint import REQUIREMENTS, new_image_processor, save_checkpoint

from ..tiny_models import tiny_model

SERVE = """
import base64, importlib.util, json, sys
from pathlib import Path
sys.modules["promptcam_hf"] = None  # any import of it fails, as where it is not installed
folder, photograph = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
sys.path.insert(0, str(folder))
module = sys.modules["handler"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(str(folder))
text = base64.b64encode(photograph).decode()
requests = [
    {"inputs": photograph},
    {"inputs": text, "parameters": {"top_k": 2, "images": True}},
    {"inputs": ["data:image/jpeg;base64," + text, "no photograph!", photograph[:200]], "parameters": {"top_traits": 1}},
]
print(json.dumps([handler(request) for request in requests]))
"""


def test_an_endpoint_answers_what_the_pipeline_says(checkpoint, photograph, tmp_path):
    command = [sys.executable, "-c", SERVE, checkpoint, photograph]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, with_images, (short, no_text, cut_off) = json.loads(done.stdout.splitlines()[-1])
    pipe = pipeline("prompt-cam", model=str(checkpoint), device="cpu")
    expected = pipe(str(photograph), top_k=2)
    for answer, images in ((alone, False), (with_images, True)):
        wanted = expected.to_json(images=images)["explanations"]
        assert (answer["width"], answer["height"]) == expected.size
        for found, explanation in zip(answer["explanations"], wanted, strict=False):
            assert found.pop("score") == pytest.approx(explanation.pop("score"), rel=1e-4)
            assert found == explanation
    assert (len(alone["explanations"]), len(with_images["explanations"])) == (1, 2)
    assert [trait["head"] for trait in short["explanations"][0]["traits"]] == [expected[0]["traits"][0]["head"]]
    assert no_text == {"error": "inputs: not base64; expected the photograph's file in base64."}
    assert cut_off["error"].startswith("This file: ")


@pytest.fixture(scope="module")
def handler(checkpoint):
    return EndpointHandler(str(checkpoint))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"inputs": None}, "inputs: expected a photograph's file in base64"),
        ({"inputs": b""}, "inputs: expected a photograph's file"),
        ({"inputs": {"image": "bird.jpg"}}, "inputs: expected a photograph's file"),
        ({"inputs": "https://example.org/bird.jpg"}, "inputs: not base64"),
        ({"inputs": "photos/bird.jpg"}, "inputs: not base64"),
        ({"parameters": {"heads": 3}}, "parameters: 'heads' is unknown; expected top_k, classes, only"),
        ({"parameters": [3]}, "parameters: expected an object"),
        ({"parameters": {"images": "yes"}}, "images='yes': expected true or false"),
        ({"parameters": {"top_k": 0}}, "top_k=0: expected a whole number"),
        ({"parameters": {"top_k": True}}, "top_k=True: expected a whole number"),
        ({"parameters": {"classes": [True]}}, "No class has the label True; expected 0 to "),
        ({"parameters": {"only": ["Scott_Oriole"]}}, "only="),
        ({"parameters": {"compare_with": "Scot_Oriole"}}, "The model knows no class 'Scot_Oriole'"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_in_a_line(handler, photograph, request_, message):
    request_ = {"inputs": photograph.read_bytes()} | request_
    answer = handler(request_)
    assert list(answer) == ["error"]
    assert answer["error"].startswith(message)
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("request_", [[], "bird.jpg", None, 3])
def test_a_request_is_an_object(handler, request_):
    assert handler(request_)["error"].startswith('The request: expected an object, such as {"inputs":')


def test_a_path_is_never_opened(handler, photograph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bird").write_bytes(photograph.read_bytes())  # a name that is valid base64
    assert handler({"inputs": "bird"}) == {
        "error": "This file: not an image that can be read; expected JPEG, PNG, TIFF, WebP or the like."
    }


def test_a_handler_of_ones_own_stays_beside_the_checkpoint(tmp_path):
    model = tiny_model("vit")
    (tmp_path / "handler.py").write_text("# mine")
    save_checkpoint(model, new_image_processor(model.config.backbone_config.image_size), tmp_path)
    assert (tmp_path / "handler.py").read_text() == "# mine"
    assert (tmp_path / "requirements.txt").read_text() == REQUIREMENTS


def test_requirements_are_those_of_the_package():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    ours = {line.replace(" ", "") for line in setup["options"]["install_requires"].splitlines()}
    assert set(REQUIREMENTS.split()) <= ours
