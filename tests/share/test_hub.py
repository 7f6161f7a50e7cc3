"""Checkpoints pushed to a Hub on loopback, by the real client over real HTTP."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import HfApi, metadata_load
from promptcam_hf.modeling.configuration_promptcam import TASK
from safetensors.torch import load_file, save_file

from promptcam_hf import PromptCamForImageClassification, modeling
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.share.hub import check_can_push, check_checkpoint, push
from promptcam_hf.share.model_card import write_model_card

from ..hub_stand_in import HubStandIn
from ..tiny_models import assert_close, images, tiny_model

REPO = "birders/orioles"
CODE = {path.name for path in Path(modeling.__file__).parent.glob("*_promptcam.py")}
ENDPOINT = {"handler.py", "requirements.txt"}
CHECKPOINT = {"config.json", "model.safetensors", "preprocessor_config.json", *CODE, *ENDPOINT}
PUSH_BY_TRANSFORMERS = """
import json, sys
from pathlib import Path
from transformers import pipeline
from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor

folder, refusals = Path(sys.argv[1]), {}
model = PromptCamForImageClassification.from_backbone(folder / "secret", num_labels=3)
pipe = pipeline("prompt-cam", model=model, image_processor=new_image_processor(32))
ways = {
    "configuration": lambda repo: model.config.push_to_hub(repo),
    "model": lambda repo: model.push_to_hub(repo),
    "save_pretrained": lambda repo: model.save_pretrained(folder / "saved", push_to_hub=True, repo_id=repo),
    "pipeline": lambda repo: pipe.push_to_hub(repo),
}
for way, push in ways.items():
    push(f"birders/{way}")
model.save_pretrained(folder / "small", prompts_only=True)
for way, push in ways.items():
    try:
        push(f"birders/{way}-refused")
    except ValueError as error:
        refusals[way] = str(error)
model.config.backbone, model.config.backbone_revision = "facebook/dino-vitb16", "a" * 40
for way, push in ways.items():
    push(f"birders/{way}-small")
print(json.dumps(refusals))
"""
LOAD = """
import json, sys, torch
import promptcam_hf
from transformers import pipeline
classifier = pipeline("prompt-cam", model=sys.argv[1])
pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    logits = classifier.model(pixels).logits.tolist()
print(json.dumps({"logits": logits, "label": classifier(sys.argv[2])[0]["label"]}))
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A Hub that this process sees, and a token for it."""
    with HubStandIn() as hub:
        resolve = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", resolve)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "any")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture
def api(hub: HubStandIn) -> HfApi:
    return HfApi(endpoint=hub.url, token="any")


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint, and beside it what is not to be pushed."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "orioles"))
    for name in ("checkpoints/epoch-1/state.bin", "best/model.safetensors", ".writing-1/x.bin", "__pycache__/a.pyc"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("not for the Hub")
    (folder / "notes.txt").write_text("mine")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def python(code: str, *arguments: str | Path, env: dict[str, str], cwd: Path) -> str:
    """What a fresh Python prints last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def commits(hub: HubStandIn) -> int:
    return len(hub.repos[f"models/{REPO}"].commits) - 1  # the first is empty


def test_fresh_process_loads_by_id_what_was_pushed(folder, photograph, hub, tmp_path):
    for name in ENDPOINT:  # as in a folder that `pipeline.save_pretrained` wrote
        (folder / name).unlink()
    assert push(folder, REPO) == f"{hub.url}/{REPO}/commit/{hub.repos[f'models/{REPO}'].branches['main']}"
    assert set(hub.files(REPO)) == CHECKPOINT | {"README.md"}
    env = hub.environ(tmp_path / "loader") | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    found = json.loads(python(LOAD, REPO, photograph, env=env, cwd=tmp_path))
    with torch.no_grad():
        wanted = PromptCamForImageClassification.from_pretrained(folder).eval()(images(2, seed=1)).logits
    assert_close(torch.tensor(found["logits"]), wanted)
    assert found["label"] in PromptCamForImageClassification.from_pretrained(folder).config.label2id


@pytest.mark.parametrize("is_xet_off", [True, False])
def test_push_is_one_commit_of_our_files_and_a_repeat_is_none(is_xet_off, folder, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", is_xet_off)
    ours = ("results.json", "per_class.csv", "confusions.csv", "confusions.png", "comparisons.png", "traits.png")
    for name in (*ours, "private.txt"):
        (folder / "evaluation").mkdir(exist_ok=True)
        (folder / "evaluation" / name).write_text('{"accuracy": 0.5}' if name == "results.json" else "")
    for name in ("recipe.yaml", "training_log.jsonl"):
        (folder / name).write_text("")
    (folder / "recipe.yaml").write_text("epochs: 3\n")
    before = snapshot(folder)
    url = push(folder, REPO)
    evaluation = {f"evaluation/{name}" for name in ours}
    extra = {"README.md", "recipe.yaml", "training_log.jsonl"}
    assert set(hub.files(REPO)) == CHECKPOINT | evaluation | extra
    assert commits(hub) == 1
    assert snapshot(folder) == before | {"README.md": hub.files(REPO)["README.md"]}
    assert f'model="{REPO}"'.encode() in hub.files(REPO)["README.md"]
    assert push(folder, REPO) == url
    assert commits(hub) == 1


def test_hub_ids_are_pushed_and_local_paths_are_not(folder, hub):
    def edit(**origin: str) -> None:
        config = json.loads((folder / "config.json").read_text())
        config |= {"backbone": origin["backbone"], "_name_or_path": origin["backbone"]}
        config["backbone_config"]["_name_or_path"] = origin["backbone"]
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(origin | {"epochs": 3}))
        (folder / "evaluation").mkdir(exist_ok=True)
        results = {"accuracy": 0.5, "hub_id": origin["data"] if "hub" in origin["data"] else None}
        (folder / "evaluation" / "results.json").write_text(json.dumps(results))

    edit(backbone="/home/ana/secret/vit", data="../secret/photos", label_map="secret/genera.csv")
    before = snapshot(folder)
    push(folder, REPO)
    assert snapshot(folder) == before | {"README.md": hub.files(REPO)["README.md"]}
    assert not [name for name, content in hub.files(REPO).items() if b"secret" in content]
    assert yaml.safe_load(hub.files(REPO)["recipe.yaml"])["epochs"] == 3

    edit(backbone="facebook/dino-vitb16", data="hub/photos")
    push(folder, REPO)
    for name in ("config.json", "recipe.yaml"):
        assert hub.files(REPO)[name] == (folder / name).read_bytes()


def test_what_transformers_pushes_has_no_local_paths_either(tmp_path):
    tiny_model("vit").backbone.save_pretrained(tmp_path / "secret")
    with HubStandIn() as hub:
        env = hub.environ(tmp_path / "home") | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        refusals = json.loads(python(PUSH_BY_TRANSFORMERS, tmp_path, env=env, cwd=tmp_path))
        for way in ("model", "save_pretrained", "pipeline", "configuration"):
            files = hub.files(f"birders/{way}")
            assert json.loads(files["config.json"]).get("backbone") is None
            assert not [name for name, content in files.items() if b"secret" in content]
            assert refusals[way].startswith("prompts_only=True: others do not have the folder of the backbone")
            if way != "configuration":
                small = hub.files(f"birders/{way}-small")
                assert json.loads(small["config.json"])["backbone"] == "facebook/dino-vitb16"
                assert len(small["model.safetensors"]) < len(files["model.safetensors"]) / 2
    # A folder that stays here opens from the path
    assert str(tmp_path / "secret") in (tmp_path / "small" / "config.json").read_text()
    PromptCamForImageClassification.from_pretrained(tmp_path / "small")


def test_name_alone_is_a_repository_of_the_user(folder, hub):
    push(folder, "orioles", private=True)
    assert hub.repos["models/tester/orioles"].private
    assert b'model="tester/orioles"' in hub.files("tester/orioles")["README.md"]


def test_branch_leaves_main_alone(folder, hub, api):
    push(folder, REPO)
    main = hub.files(REPO)
    save_checkpoint(tiny_model("vit", 2), new_image_processor(32), folder)
    for _ in range(2):
        push(folder, REPO, revision="shallower")
    assert hub.files(REPO) == main
    assert hub.files(REPO, "shallower")["config.json"] == (folder / "config.json").read_bytes()


def test_files_of_an_earlier_push_go_and_those_of_others_stay(folder, hub, api):
    model = PromptCamForImageClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "traits.png").write_text("picture")
    push(folder, REPO)
    assert "model.safetensors.index.json" in hub.files(REPO)
    assert sum(name.startswith("model-0000") for name in hub.files(REPO)) > 1
    theirs = {"map.png": b"1", "evaluation/field-notes.md": b"2", "lora.safetensors": b"3", "try/my_promptcam.py": b"4"}
    for name, content in theirs.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="handler.py", repo_id=REPO)

    for path in [*folder.glob("model*.safetensors*"), folder / "evaluation" / "traits.png"]:
        path.unlink()
    save_checkpoint(model, new_image_processor(32), folder)
    before = commits(hub)
    push(folder, REPO)
    assert commits(hub) == before + 1
    assert set(hub.files(REPO)) == CHECKPOINT | {"README.md"} | theirs.keys()
    assert hub.files(REPO)["handler.py"] == b"mine"


STAGES = [("POST", "repos/create"), ("GET", "/api/models"), ("POST", "validate-yaml"), ("POST", "preupload")]
STAGES += [("POST", "/commit/")]


@pytest.mark.parametrize(("method", "path"), STAGES)
def test_refusal_at_any_stage_leaves_all_as_it_was_and_a_repeat_succeeds(method, path, folder, hub):
    write_model_card(folder)
    before = snapshot(folder)
    hub.fail_next(1, 403, method, path)
    with pytest.raises(
        ValueError, match=rf"The token has no write access to {REPO} \(.*; check the name, or log in"
    ) as raised:
        push(folder, REPO)
    assert "\n" not in str(raised.value)
    assert snapshot(folder) == before
    assert f"models/{REPO}" not in hub.repos or hub.files(REPO) == {}
    push(folder, REPO)
    assert set(hub.files(REPO)) == CHECKPOINT | {"README.md"}
    assert commits(hub) == 1


@pytest.mark.parametrize("path", ["repos/create", "validate-yaml", "/commit/"])
def test_connection_that_breaks(path, folder, hub):
    push(folder, REPO)
    first = hub.files(REPO)
    save_checkpoint(tiny_model("vit", 2), new_image_processor(32), folder)
    before = snapshot(folder)
    hub.fail_next(1, None, "POST", path)
    with pytest.raises(
        OSError, match=rf"The Hub cannot be reached \(.*\); {REPO} has all of this push or nothing of it; push again"
    ):
        push(folder, REPO)
    assert snapshot(folder) == before
    assert hub.files(REPO) == first
    push(folder, REPO)
    assert hub.files(REPO)["config.json"] == before["config.json"]


def test_hub_that_is_gone_or_fails(folder, hub, monkeypatch):
    hub.fail_next(1, 500, "POST", "repos/create")
    with pytest.raises(OSError, match=r"The Hub failed with status 500 \(The test asked for this failure"):
        push(folder, REPO)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"The Hub cannot be reached \("):
        push(folder, REPO)


def test_push_without_a_token_asks_for_one(folder, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=r"There is no Hub token, .* log in with `hf auth login`, or set HF_TOKEN"):
        push(folder, REPO)
    with pytest.raises(ValueError, match="There is no Hub token"):
        check_can_push(REPO)
    assert hub.requests == []
    push(folder, REPO, token="given")
    assert commits(hub) == 1


def test_token_that_the_hub_refuses(folder, hub):
    hub.fail_next(1, 401, "POST", "repos/create")
    with pytest.raises(ValueError, match=r"The Hub does not accept the token; log in with `hf auth login`"):
        push(folder, REPO)


@pytest.mark.parametrize("repo_id", ["a/b/c", "birders/or ioles", "", "birders/orioles.git"])
def test_malformed_ids_are_refused_before_anything_is_asked(repo_id, folder, hub):
    for attempt in (lambda: push(folder, repo_id), lambda: check_can_push(repo_id)):
        with pytest.raises(ValueError, match=r"^repo_id='.*': expected 'name' or 'namespace/name'"):
            attempt()
    assert hub.requests == []


def test_private_is_not_taken_for_granted(folder, hub, api):
    api.create_repo(REPO, private=False)
    with pytest.raises(ValueError, match=rf"private=True, but {REPO} exists and is public"):
        push(folder, REPO, private=True)
    assert hub.files(REPO) == {}


def test_licence_that_the_hub_does_not_know(folder, hub):
    before = snapshot(folder)
    with pytest.raises(ValueError, match=r'The Hub refuses this for .*"license" must be') as raised:
        push(folder, REPO, license="CC BY 4.0")
    assert "\n" not in str(raised.value)
    assert (snapshot(folder), hub.files(REPO)) == (before, {})
    push(folder, REPO, license="cc-by-4.0")
    assert metadata_load(folder / "README.md")["license"] == "cc-by-4.0"


def edit_on_hub(api: HfApi, hub: HubStandIn, edit) -> None:
    text = edit(hub.files(REPO)["README.md"].decode())
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=REPO)


def test_what_was_written_on_the_hub_stays_and_comes_to_the_folder(folder, hub, api):
    push(folder, REPO)
    edit_on_hub(api, hub, lambda text: text.replace("---\n", "---\nlicense: mit\n", 1) + "\nThanks to all.\n")
    save_checkpoint(tiny_model("vit", 2), new_image_processor(32), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        push(folder, REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert card.endswith("\nThanks to all.\n")
    assert "license: mit" in card
    assert "from layer 2 of 3 on" in card
    assert card.encode() == (folder / "README.md").read_bytes()


def test_card_of_the_folder_replaces_one_on_the_hub_and_a_warning_names_the_commit_that_keeps_it(folder, hub, api):
    push(folder, REPO)
    for number, addition in enumerate(("\nFrom the Hub.\n", "")):  # text and metadata, then metadata alone
        with open(folder / "README.md", "a") as card:
            card.write(f"\nFrom the folder, {number}.\n")
        edit_on_hub(api, hub, lambda text: text.replace("---\n", "---\nlicense: mit\n", 1) + addition)  # noqa: B023
        kept = hub.repos[f"models/{REPO}"].branches["main"]
        with pytest.warns(UserWarning, match=rf"the Hub, which stays in {REPO}, commit {kept}"):
            push(folder, REPO)
        text = hub.files(REPO)["README.md"].decode()
        assert text.endswith(f"\nFrom the folder, {number}.\n")
        assert "license" not in text
        assert "license: mit" in hub.files(REPO, kept)["README.md"].decode()


def test_text_that_is_added_to_the_folders_card_goes_to_the_hub(folder, hub):
    write_model_card(folder, license="mit")
    for name in ("Ana", "Bo"):
        with open(folder / "README.md", "a") as card:
            card.write(f"\nThanks to {name}.\n")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            push(folder, REPO)
    assert hub.files(REPO)["README.md"].endswith(b"\nThanks to Ana.\n\nThanks to Bo.\n")


@pytest.mark.parametrize("is_xet_off", [True, False])
def test_change_in_between_is_not_overwritten(is_xet_off, folder, hub, api, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", is_xet_off)
    push(folder, REPO)
    (folder / "training_log.jsonl").write_text("{}")
    before = snapshot(folder)
    upload_folder = HfApi.upload_folder

    def late(self, **options):
        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
        edit_on_hub(api, hub, lambda text: text + "\nMeanwhile.\n")
        return upload_folder(self, **options)

    monkeypatch.setattr(HfApi, "upload_folder", late)
    with pytest.raises(OSError, match=rf"{REPO} was changed during the push; push again"):
        push(folder, REPO)
    assert "training_log.jsonl" not in hub.files(REPO)
    assert snapshot(folder) == before
    push(folder, REPO)
    assert hub.files(REPO)["README.md"].endswith(b"\nMeanwhile.\n")
    assert "training_log.jsonl" in hub.files(REPO)


def test_checkpoint_that_lacks_a_file_is_not_pushed(folder, hub):
    for name in sorted(CHECKPOINT - ENDPOINT):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"has no {name}; expected a"):
            push(folder, REPO)
        (folder / name).write_bytes(content)
    (folder / "dropout_promptcam.py").unlink()
    (folder / "dropout_promptcam.py").mkdir()
    with pytest.raises(ValueError, match=r"has no dropout_promptcam\.py; expected a"):
        push(folder, REPO)
    assert hub.requests == []


def test_checkpoint_whose_configuration_names_no_code_can_be_pushed(folder):
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": None, "custom_pipelines": {TASK: None}}
    (folder / "config.json").write_text(json.dumps(config))
    check_checkpoint(folder)


def test_weights_that_are_cut_off_are_not_pushed(folder, tmp_path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or incomplete"):
        check_checkpoint(folder)
    weights.unlink()
    PromptCamForImageClassification(tiny_model("vit", 3).config).save_pretrained(folder, max_shard_size="20KB")
    check_checkpoint(folder)
    (folder / "model-00002-of-00007.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model-00002-of-00007.safetensors; expected a complete checkpoint"):
        check_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is damaged or incomplete"):
        check_checkpoint(folder)


def test_weights_without_the_prompts_are_not_pushed(folder, hub):
    weights = load_file(folder / "model.safetensors")
    del weights["class_prompts"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="has no weights 'class_prompts'; expected a complete checkpoint"):
        push(folder, REPO)
    assert hub.requests == []


def test_check_before_training(hub):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_can_push(REPO)
    assert hub.repos == {}
    hub.fail_next(1, 401, "GET", "whoami")
    with pytest.raises(ValueError, match="The Hub does not accept the token"):
        check_can_push(REPO)
    hub.token_role = "read"
    with pytest.raises(ValueError, match=rf"The token has read access only, so it cannot push to {REPO}; log in"):
        check_can_push(REPO)


@pytest.mark.parametrize("status", [None, 503])
def test_check_before_training_does_not_stop_it_for_the_network(status, hub):
    hub.fail_next(1, status, "GET", "whoami")
    with pytest.warns(UserWarning, match=rf"Could not check whether {REPO} can be pushed to: The Hub"):
        check_can_push(REPO)


def test_no_secret_goes_into_the_commit(folder, hub):
    push(folder, REPO, token="hf_secret")
    assert not any(b"hf_secret" in content for content in hub.files(REPO).values())
    assert os.environ["HF_TOKEN"] == "any"
