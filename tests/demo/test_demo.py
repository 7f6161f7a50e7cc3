"""What works out of the box: the shipped weights, and the pipeline without a model's name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from transformers import AutoModel, ViTImageProcessorPil, pipeline

import promptcam_hf
from promptcam_hf import PromptCamForImageClassification, demo
from promptcam_hf.evaluation.explainers import PromptCamExplainer
from promptcam_hf.evaluation.prediction import class_names, metrics, predict
from promptcam_hf.evaluation.trait_data import load_trait_data
from promptcam_hf.evaluation.trait_metrics import evaluate_traits

PACKAGE = Path(promptcam_hf.__file__).parent


@pytest.fixture(scope="module")
def unseen_birds(tmp_path_factory) -> Path:
    """Test pictures of a seed that neither the shipped weights nor the demo have seen."""
    folder = tmp_path_factory.mktemp("unseen") / "birds"
    demo.write_image_folder(folder, 16, 1, 12, 192, seed=7, progress=False, interventions_per_class=3)
    return folder


@pytest.fixture(scope="module")
def model() -> PromptCamForImageClassification:
    return PromptCamForImageClassification.from_pretrained(demo.MODEL).eval()


# --- Shipped weights


def test_shipped_model_is_as_good_as_its_readme_says(model, unseen_birds):
    """On other birds, the metrics are those of `metrics.json` within a margin for chance, and above fixed bars."""
    shipped = json.loads((demo.MODEL.parent / "metrics.json").read_text())
    data = load_trait_data(unseen_birds, class_names(model), ViTImageProcessorPil.from_pretrained(demo.MODEL))
    predictions = predict(model, data.photographs, batch_size=32, accelerator=Accelerator(), progress=False)
    results = evaluate_traits(PromptCamExplainer(model), data, faithfulness_images=32, progress=False)

    def of(measured: dict) -> dict[str, float]:
        pointing, interventions = measured["pointing"]["at_distinguishing"], measured["interventions"]
        return {
            "accuracy": measured["accuracy"],
            "top map": pointing["top1"],
            "any of top 4": pointing["top4"],
            "mark removed": interventions["removed_mark"]["changed"],
            "other removed": interventions["removed_other"]["changed"],
        }

    results["accuracy"] = metrics(predictions)["accuracy"]
    now, then = of(results), of(shipped)
    for name, value in now.items():
        # Three standard errors of a rate over the images with interventions, or over all. By Agresti and Coull,
        # because rates of 0 and 1 have errors, too
        images = 36 if name.endswith("removed") else 185
        rate = (then[name] * images + 2) / (images + 4)
        margin = 3 * (rate * (1 - rate) / (images + 4)) ** 0.5
        assert abs(value - then[name]) < margin, (name, value, then[name])
    assert now["accuracy"] >= 0.95
    assert now["top map"] >= 0.85
    assert now["any of top 4"] >= 0.95
    assert now["mark removed"] >= 0.80
    assert now["other removed"] <= 0.10
    assert results["faithfulness"]["insertion"] > results["faithfulness"]["deletion"] + 0.3


def test_model_stands_on_the_shipped_backbone(model):
    backbone = AutoModel.from_pretrained(demo.BACKBONE, add_pooling_layer=False)
    weights = model.backbone.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in backbone.state_dict().items())
    config = backbone.config
    assert config.image_size // config.patch_size >= 12
    assert sum(weight.numel() for weight in backbone.parameters()) <= 3_000_000
    assert class_names(model) == sorted(species.name for species in demo.make_species(16))


def test_shipped_weights_are_small_and_load_as_float32(model):
    files = [folder / "model.safetensors" for folder in (demo.BACKBONE, demo.MODEL)]
    for file in files:
        with safe_open(file, "pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_package_is_small():
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files += (PACKAGE.parent / "modeling").glob("*.py")
    assert sum(path.stat().st_size for path in files) <= 10_000_000


# --- Out of the box


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_pipeline_without_a_model_explains_a_bird_offline(tmp_path):
    species = demo.make_species(16)[5]
    demo.draw_bird(species, 987_654, 200)[0].save(tmp_path / "bird.png")
    code = (
        "from transformers import pipeline; import promptcam_hf, sys\n"
        f"(found,) = pipeline('prompt-cam')({str(tmp_path / 'bird.png')!r})\n"
        "print(found['label'], found['traits'][0]['heatmap'].size)"
    )
    said = run(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert said.split("\n")[0] == f"{species.name} (200, 200)"


def test_pipeline_with_remote_code_allowed_is_the_same(tmp_path):
    assert pipeline("prompt-cam", trust_remote_code=True).model.config.num_labels == 16


def test_import_loads_nothing_that_transformers_would_not():
    """Of other packages only those that the transformers classes need, which this package is made of."""
    code = (
        "import sys, numpy, PIL.Image, PIL.ImageOps, PIL.ImageDraw, PIL.ImageFilter, tqdm.auto\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, Pipeline\n"
        "from transformers import PreTrainedModel, ViTConfig\n"
        "from transformers.pipelines import PIPELINE_REGISTRY\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import promptcam_hf\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)))"
    )
    assert run(code).split() == ["promptcam_hf"]
