"""A checkpoint on other machines: without this package, with another release of transformers, over the Hub."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import endpoint_files, new_image_processor, open_pipeline, save_checkpoint

from .hub_stand_in import HubStandIn
from .tiny_models import assert_close, images, tiny_model

# Prints a model's logits, says where its code comes from, and draws with the pipeline.
USE = """
import json, sys
BLOCKED, source, photograph, drawing, trust = json.loads(sys.argv[1])
if BLOCKED:
    sys.modules["promptcam_hf"] = None  # any import of it fails, as where it is not installed
else:
    import promptcam_hf
import torch
from transformers import AutoModelForImageClassification, pipeline
trust = {"trust_remote_code": True} if trust else {}
model = AutoModelForImageClassification.from_pretrained(source, **trust).eval()
pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    logits = model(pixels).logits.tolist()
traits = pipeline("prompt-cam", model=source, **trust)
explanations = traits(photograph, top_k=2, top_traits=2)
explanations[0]["traits"][0]["heatmap"].save(drawing)
print(json.dumps({
    "logits": logits,
    "module": type(model).__module__,
    "pipeline": type(traits).__module__,
    "trainable": sum(parameter.requires_grad for parameter in model.backbone.parameters()),
    "labels": [explanation["label"] for explanation in explanations],
    "scores": [explanation["score"] for explanation in explanations],
    "peaks": [explanation["traits"][0]["peak"] for explanation in explanations],
}))
"""


def use(
    source: str | Path,
    photograph: Path,
    tmp_path: Path,
    *,
    blocked=False,
    trust=False,
    env=None,
    python=sys.executable,
) -> dict:
    """What a fresh process makes of a checkpoint; it runs elsewhere, so that it finds no package by accident."""
    drawing = tmp_path / "heatmap.png"
    arguments = json.dumps([blocked, str(source), str(photograph), str(drawing), trust])
    env = (env or dict(os.environ)) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    result = subprocess.run(
        [python, "-c", USE, arguments], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=240
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert drawing.stat().st_size > 0
    return json.loads(result.stdout.strip().splitlines()[-1])


def expected(checkpoint: Path, photograph: Path) -> dict:
    model = PromptCamForImageClassification.from_pretrained(checkpoint).eval()
    explanations = pipeline("prompt-cam", model=str(checkpoint))(photograph, top_k=2)
    with torch.no_grad():
        logits = model(images(2, seed=1)).logits
    return {
        "logits": logits,
        "scores": [e["score"] for e in explanations],
        "labels": [e["label"] for e in explanations],
        "peaks": [e["traits"][0]["peak"] for e in explanations],
    }


def assert_same(found: dict, wanted: dict) -> None:
    assert_close(torch.tensor(found["logits"]), wanted["logits"])
    assert found["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
    assert found["labels"] == wanted["labels"]
    assert found["trainable"] == 0


def test_checkpoint_works_where_the_package_is_installed_without_trust(checkpoint, photograph, tmp_path):
    found = use(checkpoint, photograph, tmp_path)
    assert_same(found, expected(checkpoint, photograph))
    assert found["module"] == "promptcam_hf.modeling.modeling_promptcam"
    assert found["pipeline"] == "promptcam_hf.modeling.pipeline_promptcam"


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_checkpoint_works_where_the_package_is_not_installed(family, photograph, tmp_path):
    folder = tmp_path / "checkpoint"
    keeps_aspect, wide = family == "dinov2", tmp_path / "wide.png"
    save_checkpoint(tiny_model(family, 2), new_image_processor(32, keep_aspect=keeps_aspect), folder)
    Image.open(photograph).resize((90, 30)).save(wide)
    found, wanted = use(folder, wide, tmp_path, blocked=True, trust=True), expected(folder, wide)
    assert_same(found, wanted)
    assert found["peaks"] == wanted["peaks"]
    assert found["module"].startswith("transformers_modules.")
    assert found["pipeline"].startswith("transformers_modules.")


def test_hub_gives_back_what_the_pipeline_pushed(checkpoint, photograph, tmp_path):
    push = (
        "import sys, promptcam_hf; from transformers import pipeline\n"
        "from promptcam_hf import PromptCamForImageClassification\n"
        "traits = pipeline('prompt-cam', model=sys.argv[1])\n"
        "traits.push_to_hub('org/promptcam-birds')\n"
        "PromptCamForImageClassification.from_pretrained(sys.argv[1]).push_to_hub('org/model-alone')\n"
    )
    wanted = expected(checkpoint, photograph)
    with HubStandIn() as hub:
        env = hub.environ(tmp_path / "pusher") | {"HF_TOKEN": "token"}
        result = subprocess.run(
            [sys.executable, "-c", push, str(checkpoint)], env=env, capture_output=True, text=True, timeout=240
        )
        assert result.returncode == 0, result.stderr[-3000:]
        names = {name for name in hub.files("org/promptcam-birds") if name.endswith((".py", ".json", ".safetensors"))}
        assert names == set(os.listdir(checkpoint)) - endpoint_files().keys()
        assert {"pipeline_promptcam.py", "modeling_promptcam.py"} <= set(hub.files("org/model-alone"))
        for name, blocked in (("installed", False), ("remote", True)):
            env = hub.environ(tmp_path / name)
            found = use("org/promptcam-birds", photograph, tmp_path, blocked=blocked, trust=blocked, env=env)
            assert_same(found, wanted)


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_checkpoints_move_between_releases_of_transformers(family, photograph, tmp_path):
    """Both ways, with the Python of another environment that has this package and another transformers."""
    other = os.environ.get("PROMPTCAM_OTHER_PYTHON")
    if not other:
        pytest.skip("PROMPTCAM_OTHER_PYTHON names no environment with another release of transformers")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    save_checkpoint(tiny_model(family, 2), new_image_processor(32), ours)
    wanted = expected(ours, photograph)
    assert_same(use(ours, photograph, tmp_path, python=other), wanted)
    resave = (
        "import sys, promptcam_hf; from transformers import pipeline\n"
        "pipeline('prompt-cam', model=sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    subprocess.run([other, "-c", resave, str(ours), str(theirs)], check=True, cwd=tmp_path, timeout=240)
    versions = [json.loads((folder / "config.json").read_text())["transformers_version"] for folder in (ours, theirs)]
    assert versions[0] != versions[1]
    found = expected(theirs, photograph)
    assert_close(found["logits"], wanted["logits"])
    assert found["labels"] == wanted["labels"]


def test_saving_replaces_its_own_files_and_leaves_others(checkpoint, tmp_path):
    model = tiny_model("vit", 3)
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        save_checkpoint(model, new_image_processor(32), tmp_path)
    assert set(os.listdir(tmp_path)) == {*os.listdir(checkpoint), "notes.txt"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_save_that_fails_leaves_the_checkpoint_as_it_was(tmp_path, monkeypatch):
    model, processor = tiny_model("vit", 3), new_image_processor(32)
    save_checkpoint(model, processor, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(processor), "save_pretrained", full_disk)
    with torch.no_grad():
        model.class_prompts.zero_()
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(model, processor, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- Prompts alone


def on_backbone(folder: Path | str, family: str = "vit", image_size: int | None = None, size: int = 32, **config):
    """A model on a backbone that is saved in a folder first; both with weights like no other's."""
    tiny_model(family, backbone={"image_size": size}).backbone.save_pretrained(folder)
    names = {0: "Auk", 1: "Bunting", 2: "Cuckoo"}
    model = PromptCamForImageClassification.from_backbone(folder, image_size=image_size, id2label=names, **config)
    torch.nn.init.normal_(model.score_head.weight, generator=torch.Generator().manual_seed(0))
    return model.eval()


def logits_of(model: PromptCamForImageClassification, size: int = 32) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images(2, size=size).to(model.dtype)).logits.float()


@pytest.mark.parametrize("image_size", [None, 48])
@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_prompts_alone_load_as_the_whole_model(family, image_size, tmp_path):
    model = on_backbone(tmp_path / "backbone", family, image_size, class_prompt_layer=2)
    small, size = tmp_path / "small", image_size or 32
    save_checkpoint(model, new_image_processor(size), small, prompts_only=True)
    prompts = {"class_prompts", "agnostic_prompts", "score_head.weight", "score_head.bias"}
    assert load_file(small / "model.safetensors").keys() == prompts
    assert (small / "model.safetensors").stat().st_size < 5000

    expected = logits_of(model, size)
    for loader in (PromptCamForImageClassification, AutoModelForImageClassification):
        loaded, report = loader.from_pretrained(small, output_loading_info=True)
        assert_close(logits_of(loaded, size), expected)
        assert not any(report.values())
        assert [name for name, parameter in loaded.named_parameters() if parameter.requires_grad] == [
            name for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
    rounded = PromptCamForImageClassification.from_pretrained(small, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    for name, weight in rounded.backbone.state_dict().items():
        assert torch.equal(weight, model.backbone.state_dict()[name].bfloat16())
    assert_close(logits_of(rounded, size), logits_of(model.to(torch.bfloat16), size))


def test_prompts_alone_work_where_the_package_is_not_installed(photograph, tmp_path):
    model = on_backbone(tmp_path / "backbone", "dinov2", image_size=32, size=48)
    save_checkpoint(model, new_image_processor(32), tmp_path / "whole")
    save_checkpoint(model, new_image_processor(32), tmp_path / "small", prompts_only=True)
    found = use(tmp_path / "small", photograph, tmp_path, blocked=True, trust=True)
    assert_same(found, expected(tmp_path / "whole", photograph))
    assert found["module"].startswith("transformers_modules.")


def test_model_keeps_the_form_that_it_was_saved_in(tmp_path):
    whole = on_backbone(tmp_path / "backbone")
    expected, model = logits_of(whole), whole
    forms = [(None, False), (True, True), (None, True), (False, False), (None, False), (True, True)]
    for number, (asked, small) in enumerate(forms):
        folder = tmp_path / str(number)
        given = {} if asked is None else {"prompts_only": asked}
        model.save_pretrained(folder, **given)
        assert json.loads((folder / "config.json").read_text())["prompts_only"] is small
        assert any(name.startswith("backbone.") for name in load_file(folder / "model.safetensors")) is not small
        model = PromptCamForImageClassification.from_pretrained(folder)
        assert model.config.prompts_only is small
        assert_close(logits_of(model), expected)


def test_backbone_that_would_be_lost_is_saved_with_the_rest(tmp_path):
    model = on_backbone(tmp_path / "backbone")
    model.backbone.layernorm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"would lose the backbone's trained weights, such as layernorm\.weight\.$"):
        model.save_pretrained(tmp_path / "small", prompts_only=True)
    assert not (tmp_path / "small").exists()
    model.save_pretrained(tmp_path / "whole")  # the refusal has not changed its form
    assert any(name.startswith("backbone.") for name in load_file(tmp_path / "whole" / "model.safetensors"))
    loaded = PromptCamForImageClassification.from_pretrained(tmp_path / "whole")  # frozen again
    with pytest.raises(ValueError, match="not known where the backbone came from"):
        loaded.save_pretrained(tmp_path / "small", prompts_only=True)


def test_backbone_of_unknown_origin_is_saved_with_the_rest(tmp_path):
    model = PromptCamForImageClassification.from_backbone(tiny_model().backbone, num_labels=3)
    with pytest.raises(
        ValueError, match=r"not known where the backbone came from\. Build the model with from_backbone"
    ):
        save_checkpoint(model, new_image_processor(32), tmp_path, prompts_only=True)
    assert not any(tmp_path.iterdir())
    save_checkpoint(model, new_image_processor(32), tmp_path)


def test_backbone_that_is_gone_or_another_is_told_and_can_be_given(tmp_path):
    model = on_backbone(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "small", prompts_only=True)
    moved, small = tmp_path / "moved", tmp_path / "small"
    (tmp_path / "backbone").rename(moved)
    with pytest.raises(OSError, match=r"^This checkpoint holds only prompts, and its backbone '.*backbone' cannot be"):
        PromptCamForImageClassification.from_pretrained(small)
    for backbone in (moved, str(moved)):
        found = PromptCamForImageClassification.from_pretrained(small, backbone=backbone)
        assert_close(logits_of(found), logits_of(model))
        found.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text())["backbone"] == str(moved)
    traits = pipeline("prompt-cam", model=found, image_processor=new_image_processor(32))
    assert_close(logits_of(traits.model), logits_of(model))

    others = {
        "its model_type is dinov2, expected vit": tiny_model("dinov2"),
        "its num_hidden_layers is 4, expected 3": tiny_model("vit", backbone={"num_hidden_layers": 4}),
        "it has no weights embeddings.cls_token of shape": tiny_model("vit", backbone={"hidden_size": 64}),
    }
    for message, other in others.items():
        other.backbone.save_pretrained(tmp_path / message)
        with pytest.raises(ValueError, match=f"does not fit this model: {message}"):
            PromptCamForImageClassification.from_pretrained(small, backbone=tmp_path / message)


# Trains on a backbone of the Hub, lets that move on, and loads what was trained in other ways
MOVING_ON = """
import json, sys
import torch
from huggingface_hub import HfApi
from promptcam_hf import PromptCamForImageClassification as Model
backbones, folder = sys.argv[1:]
api = HfApi()

def upload(repo_id, number):
    api.create_repo(repo_id, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=f"{backbones}/{number}").oid

def facts(model):
    with torch.no_grad():
        model.eval()
        logits = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))).logits
    return {
        "origin": [model.config.backbone, model.config.backbone_revision],
        "logits": logits.tolist(),
    }

first = upload("org/vit", 1)
model = Model.from_backbone("org/vit", num_labels=3, class_prompt_layer=2)
torch.nn.init.normal_(model.score_head.weight)
model.save_pretrained(folder, prompts_only=True)
found = {"trained": facts(model), "moved on": upload("org/vit", 2)}
found["loaded"] = facts(Model.from_pretrained(folder, cache_dir=f"{folder}/cache", token="any"))
copy = upload("org/copy", 1)
found["copy"] = facts(Model.from_pretrained(folder, backbone="org/copy"))
try:
    Model.from_pretrained(folder, backbone="org/gone")
except OSError as error:
    found["gone"] = str(error)
print(json.dumps(found | {"commits": [first, copy]}))
"""


def test_backbone_of_the_hub_is_fetched_at_the_commit_that_was_trained_on(tmp_path):
    for number in (1, 2):
        backbone = tiny_model().backbone
        with torch.no_grad():
            backbone.layernorm.weight.mul_(number)
        backbone.save_pretrained(tmp_path / "backbones" / str(number))
    with HubStandIn() as hub:
        command = [sys.executable, "-c", MOVING_ON, str(tmp_path / "backbones"), str(tmp_path / "small")]
        env = hub.environ(tmp_path / "home")
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    first, copy = found["commits"]
    assert found["trained"]["origin"] == found["loaded"]["origin"] == ["org/vit", first]
    assert found["moved on"] != first
    of_loaded, of_copy, of_trained = (torch.tensor(found[name]["logits"]) for name in ("loaded", "copy", "trained"))
    assert_close(of_loaded, of_copy)
    assert_close(of_copy, of_trained)
    assert list((tmp_path / "small" / "cache").glob(f"models--org--vit/snapshots/{first}/model.safetensors"))
    assert found["copy"]["origin"] == ["org/copy", copy]
    assert found["gone"].startswith(
        "This checkpoint holds only prompts, and its backbone 'org/gone' cannot be opened ("
    )
    assert found["gone"].endswith("If it is elsewhere, pass from_pretrained(..., backbone=<id or folder>).")
    assert "\n" not in found["gone"]


# --- Opened only if it is complete


def without(name: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights[name]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return remove


def reshaped(name: str, *shape: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors") | {name: torch.zeros(shape)}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


def written(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (written("model.safetensors", lambda content: content[:-100]), r"safetensors is damaged or incomplete \(.*not"),
        (written("model.safetensors", lambda content: content[:50]), r"model\.safetensors is damaged or incomplete"),
        (written("model.safetensors", lambda content: b""), r"model\.safetensors is damaged or incomplete"),
        (
            written("model.safetensors", lambda content: LFS_POINTER),
            r"model\.safetensors is a Git LFS pointer, not",
        ),
        (removed("model.safetensors"), r"has no model\.safetensors; expected a complete checkpoint"),
        (without("class_prompts"), r"has no weights 'class_prompts'; expected a complete checkpoint"),
        (without("agnostic_prompts"), r"has no weights 'agnostic_prompts'"),
        (without("score_head.bias"), r"has no weights 'score_head\.bias'"),
        (without("backbone.layernorm.weight"), r"has no weights backbone\.layernorm\.weight; expected a complete"),
        (reshaped("class_prompts", 7, 32), r"class_prompts has shape \(7, 32\); its config\.json says \(5, 32\)\."),
        (
            reshaped("backbone.layernorm.weight", 7),
            r"norm\.weight has shape \(7,\); its config\.json says \(32,\)\.",
        ),
        (written("config.json", lambda content: content[:-20]), r"config\.json cannot be read \("),
        (written("config.json", lambda content: b"[]"), r"config\.json is not the configuration of a Prompt-CAM model"),
        (written("config.json", lambda content: content.replace(b'"vit"', b'"bert"')), r"'bert' are not supported"),
        (removed("config.json"), r"has no config\.json; expected a checkpoint"),
        (removed("preprocessor_config.json"), r"its preprocessor_config\.json cannot be read"),
        (written("preprocessor_config.json", lambda content: b"{"), r"its preprocessor_config\.json cannot be read"),
    ],
)
def test_incomplete_checkpoint_is_not_opened(checkpoint, tmp_path, damage, message):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        open_pipeline(folder)
    assert str(folder) in str(error.value) or "supported" in message
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nope", r"^/nope: no such folder, and no Hub id such as org/name"),
        ("nowhere/at-all", r"^model=nowhere/at-all: no such folder, and not opened from the Hub \("),
        (__file__, r"is not a folder; expected a checkpoint"),
    ],
)
def test_checkpoint_that_is_nowhere_is_told(name, message, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        open_pipeline(name)


def test_complete_checkpoint_is_opened_as_by_pipeline(checkpoint, photograph):
    opened, wanted = open_pipeline(checkpoint, top_k=2), pipeline("prompt-cam", model=str(checkpoint), top_k=2)
    assert opened.model.dtype == wanted.model.dtype
    assert not opened.model.training
    for found, expected in zip(opened(photograph), wanted(photograph), strict=True):
        assert (found["label"], found["score"]) == (expected["label"], pytest.approx(expected["score"], rel=1e-6))


def test_backbone_that_has_moved_can_be_given(tmp_path):
    model = on_backbone(tmp_path / "backbone")
    small = tmp_path / "small"
    save_checkpoint(model, new_image_processor(32), small, prompts_only=True)
    moved = (tmp_path / "backbone").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"small holds only prompts, and its backbone '.*backbone' cannot be") as error:
        open_pipeline(small)
    assert str(error.value).endswith("pass where it is now, a folder or Hub id (--backbone).")
    assert_close(logits_of(open_pipeline(small, backbone=moved).model), logits_of(model))
    save_checkpoint(model, new_image_processor(32), tmp_path / "whole", prompts_only=False)
    with pytest.raises(ValueError, match=r"^backbone=.*moved: .*whole holds its own backbone; leave this option out"):
        open_pipeline(tmp_path / "whole", backbone=moved)
