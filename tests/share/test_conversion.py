import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d, layer_norm, linear

from promptcam_hf import convert_checkpoint
from promptcam_hf.share.conversion import read_labels

from ..data.cases import folder_with
from ..hub_stand_in import HubStandIn, Repo

ORIGINAL = Path(__file__).parents[1] / "fixtures" / "dino" / "model.pt"


class Exploit:
    def __reduce__(self):
        return (print, ("code from the checkpoint ran",))


@pytest.fixture
def tensors() -> dict:
    return torch.load(ORIGINAL, weights_only=True)["model_state_dict"]


def save(tmp_path: Path, tensors: dict) -> Path:
    path = tmp_path / "model.pt"
    torch.save({"model_state_dict": tensors}, path)
    return path


def refused(path: Path, match: str, **kwargs) -> None:
    output_dir = path.parent / "converted"
    with pytest.raises(ValueError, match=match) as error:
        convert_checkpoint(path, output_dir, **{"num_attention_heads": 6} | kwargs)
    assert "\n" not in str(error.value)
    assert not output_dir.exists()


def test_sizes_are_read_off_the_tensors(tmp_path):
    model = convert_checkpoint(ORIGINAL, tmp_path, id2label=dict(enumerate("abcdefg")), num_attention_heads=6)
    backbone = model.config.backbone_config
    sizes = (backbone.hidden_size, backbone.num_hidden_layers, backbone.intermediate_size, backbone.patch_size)
    assert sizes == (96, 4, 384, 16)
    assert (backbone.image_size, backbone.num_attention_heads, backbone.layer_norm_eps) == (64, 6, 1e-6)
    assert model.config.id2label[6] == "g"
    assert (tmp_path / "preprocessor_config.json").exists()


def test_prompts_of_the_last_layers_only_are_taken_for_those(tmp_path, tensors):
    tensors["vpt.prompt_embeddings"] = tensors["vpt.prompt_embeddings"][-2:]
    model = convert_checkpoint(save(tmp_path, tensors), tmp_path / "out", num_attention_heads=6)
    assert model.config.num_prompted_layers == 2
    assert torch.equal(model.class_prompts, tensors["vpt.prompt_embeddings"][1])
    assert torch.equal(model.agnostic_prompts[0], tensors["vpt.prompt_embeddings"][0])


def test_file_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save({"model_state_dict": Exploit()}, path)
    refused(path, "run code when it is loaded is refused")
    path.write_bytes(pickle.dumps(Exploit()))
    refused(path, "run code when it is loaded is refused")
    assert "code from the checkpoint ran" not in capsys.readouterr().out


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    for content in (b"", b"not a checkpoint", ORIGINAL.read_bytes()[:5000]):
        path.write_bytes(content)
        refused(path, "model.pt")
    torch.save({"state_dict": {}}, path)
    refused(path, "no 'model_state_dict'")
    torch.save({"model_state_dict": {"a": torch.zeros(1)}}, path)
    refused(path, "no 'vpt.prompt_embeddings': it holds a; expected a Prompt-CAM checkpoint")
    with pytest.raises(FileNotFoundError):
        convert_checkpoint(tmp_path / "missing.pt", tmp_path / "out")


def test_left_over_missing_and_misshapen_tensors_are_named(tmp_path, tensors):
    refused(save(tmp_path, tensors | {"reg_token": torch.zeros(1)}), "reg_token")
    refused(
        save(tmp_path, tensors | {"norm.weight": torch.zeros(5)}), r"norm.weight has shape \(5,\); expected \(96,\)"
    )
    del tensors["blocks.2.attn.proj.bias"]
    refused(save(tmp_path, tensors), r"no blocks.2.attn.proj.bias")


def test_arguments_that_do_not_fit_the_checkpoint_are_refused(tmp_path, tensors):
    path = save(tmp_path, tensors)
    refused(path, "num_attention_heads=7 does not divide the hidden size 96", num_attention_heads=7)
    refused(path, "96, which is not a multiple of 64, .* pass num_attention_heads", num_attention_heads=None)
    refused(path, "id2label names 2 classes; .* has prompts for 7", id2label={0: "a", 1: "b"})


def test_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty; expected a new or empty folder"):
        convert_checkpoint(ORIGINAL, tmp_path, num_attention_heads=6)
    assert (tmp_path / "config.json").read_text() == "mine"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-with-mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_labels_are_read_in_unicode_encodings(tmp_path, encoding, end):
    text = end.join(["Weißstorch", "鳥", "Bird\u2028of two"]) + end
    mark, encoding = ("\ufeff", "utf-16-le") if "mark" in encoding else ("", encoding)
    (tmp_path / "labels.txt").write_bytes((mark + text).encode(encoding))
    assert read_labels(tmp_path / "labels.txt") == {0: "Weißstorch", 1: "鳥", 2: "Bird\u2028of two"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "Amsel\nWeißstorch\n".encode("latin-1"),
            r"labels\.txt, line 2: not UTF-8 text \(byte 9\); save it",
        ),
        (b"Amsel\n\nStar\n", r"labels\.txt, line 2: no class name; expected one per line\.$"),
        (b"", r"labels\.txt, line 1: no class name"),
    ],
)
def test_labels_that_cannot_be_read_are_named_with_their_line(tmp_path, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_labels_come_from_the_data_set_in_the_order_of_the_original(tmp_path):
    names = ("10_wren", "2_auk", "Zebra_finch")  # as the original code sorts folders, and people do not
    folder_with(tmp_path / "folders", *(f"val/{name}/1.png" for name in reversed(names)))
    assert read_labels(tmp_path / "folders") == dict(enumerate(names))
    pets = tmp_path / "pets"
    folder_with(pets, "images/Abyssinian_1.jpg", "images/beagle_1.jpg", "images/Bengal_1.jpg")
    (pets / "annotations").mkdir()
    for split in ("trainval", "test"):
        (pets / "annotations" / f"{split}.txt").write_text("Bengal_1 6 1 2\nAbyssinian_1 1 1 1\nbeagle_1 5 2 4\n")
    assert read_labels(pets) == {0: "Abyssinian", 1: "beagle", 2: "Bengal"}
    with pytest.raises(ValueError, match=r"id2label names 3 classes; .*model\.pt has prompts for 7"):
        convert_checkpoint(ORIGINAL, tmp_path / "out", read_labels(pets), num_attention_heads=6)


class Clip(torch.nn.Module):
    """The original code's CLIP: a norm before the first block, QuickGELU, norms with an epsilon of 1e-5."""

    def __init__(self, tensors: dict):
        super().__init__()
        self.tensors = tensors

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], 1e-5)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        prompts = self.tensors["vpt.prompt_embeddings"]
        patches = conv2d(pixels, self.tensors["patch_embed.proj.weight"], stride=16).flatten(2).transpose(1, 2)
        x = torch.cat([self.tensors["cls_token"].expand(len(pixels), -1, -1), patches], dim=1)
        x = self.norm("norm_pre", x + self.tensors["pos_embed"])
        for index, prompt in enumerate(prompts):
            x = torch.cat([prompt.expand(len(pixels), -1, -1), x[:, -17:]], dim=1)
            block = f"blocks.{index}"
            normed = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x))
            query, key, value = normed.unflatten(-1, (3, 6, 16)).permute(2, 0, 3, 1, 4)
            attended = ((query @ key.mT / 4).softmax(-1) @ value).transpose(1, 2).flatten(2)
            x = x + self.linear(f"{block}.attn.proj", attended)
            hidden = self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x))
            x = x + self.linear(f"{block}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
        return self.linear("head", self.norm("norm", x[:, : prompts.shape[1]])).squeeze(-1)


def test_checkpoint_on_clip_computes_what_the_original_code_does(tmp_path, tensors):
    torch.manual_seed(0)
    for kind in ("weight", "bias"):
        tensors[f"norm_pre.{kind}"] = torch.randn(96)
    del tensors["patch_embed.proj.bias"]
    model = convert_checkpoint(save(tmp_path, tensors), tmp_path / "out", num_attention_heads=6)
    assert model.config.backbone_config.model_type == "clip_vision_model"
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, Clip(tensors)(pixels), atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["image_mean"] == [0.5] * 3


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"state_dict": {"visual.proj": torch.zeros(1)}}, "it holds an open_clip model"),
        ({"cls_token": torch.zeros(1), "blocks.0.norm1.weight": torch.zeros(1)}, "it holds a backbone without prompts"),
        ({"embeddings.cls_token": torch.zeros(1)}, "it holds a backbone of transformers"),
        ({"optimizer": 1, "epoch": 2}, "it holds optimizer, epoch"),
    ],
)
def test_wrong_file_is_named_for_what_it_is(tmp_path, content, what):
    torch.save(content, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", f"no 'model_state_dict' of tensors: {what}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "model.safetensors", "is a file of safetensors; expected a checkpoint of the original code")


FETCH = """
import sys
from promptcam_hf import convert_checkpoint
for name in ("cub.pt", "dino/cub.pt"):
    try:
        convert_checkpoint(f"imageomics/Prompt-CAM:{name}", sys.argv[1], num_attention_heads=6)
    except FileNotFoundError as error:
        print(error)
"""


def test_checkpoint_on_the_hub_is_fetched(tmp_path):
    with HubStandIn() as hub:
        repo = hub.repos["models/imageomics/Prompt-CAM"] = Repo(private=False)
        repo.commit("main", {"dino/cub.pt": ORIGINAL.read_bytes(), "README.md": b""})
        command = [sys.executable, "-c", FETCH, str(tmp_path / "out")]
        done = subprocess.run(command, env=hub.environ(tmp_path), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "imageomics/Prompt-CAM has no file cub.pt; expected one of dino/cub.pt.\n"
    assert (tmp_path / "out" / "model.safetensors").is_file()
