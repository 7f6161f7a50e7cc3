import pickle
from pathlib import Path

import pytest
import torch

from promptcam_hf import convert_checkpoint
from promptcam_hf.share.conversion import read_labels

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


def refused(path: Path, match: str, family: str = "dino", **kwargs) -> None:
    output_dir = path.parent / "converted"
    with pytest.raises(ValueError, match=match) as error:
        convert_checkpoint(path, output_dir, family, **{"num_attention_heads": 6} | kwargs)
    assert "\n" not in str(error.value)
    assert not output_dir.exists()


def test_sizes_are_read_off_the_tensors(tmp_path):
    model = convert_checkpoint(ORIGINAL, tmp_path, "dino", id2label=dict(enumerate("abcdefg")), num_attention_heads=6)
    backbone = model.config.backbone_config
    sizes = (backbone.hidden_size, backbone.num_hidden_layers, backbone.intermediate_size, backbone.patch_size)
    assert sizes == (96, 4, 384, 16)
    assert (backbone.image_size, backbone.num_attention_heads, backbone.layer_norm_eps) == (64, 6, 1e-6)
    assert model.config.id2label[6] == "g"
    assert (tmp_path / "preprocessor_config.json").exists()


def test_prompts_of_the_last_layers_only_are_taken_for_those(tmp_path, tensors):
    tensors["vpt.prompt_embeddings"] = tensors["vpt.prompt_embeddings"][-2:]
    model = convert_checkpoint(save(tmp_path, tensors), tmp_path / "out", "dino", num_attention_heads=6)
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
    refused(path, "'vpt.prompt_embeddings'")
    with pytest.raises(FileNotFoundError):
        convert_checkpoint(tmp_path / "missing.pt", tmp_path / "out", "dino")


def test_left_over_missing_and_misshapen_tensors_are_named(tmp_path, tensors):
    refused(save(tmp_path, tensors | {"reg_token": torch.zeros(1)}), "reg_token")
    refused(
        save(tmp_path, tensors | {"norm.weight": torch.zeros(5)}), r"norm.weight has shape \(5,\); expected \(96,\)"
    )
    del tensors["blocks.2.attn.proj.bias"]
    refused(save(tmp_path, tensors), r"no blocks.2.attn.proj.bias")


def test_arguments_that_do_not_fit_the_checkpoint_are_refused(tmp_path, tensors):
    path = save(tmp_path, tensors)
    refused(path, "'dinov3': expected dino or dinov2", family="dinov3")
    refused(path, "no layer scale, which does not fit backbone_family='dinov2'", family="dinov2")
    refused(path, "num_attention_heads=7 does not divide the hidden size 96", num_attention_heads=7)
    refused(path, "96, which is not a multiple of 64, .* pass num_attention_heads", num_attention_heads=None)
    refused(path, "id2label names 2 classes; .* has prompts for 7", id2label={0: "a", 1: "b"})


def test_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty; expected a new or empty folder"):
        convert_checkpoint(ORIGINAL, tmp_path, "dino", num_attention_heads=6)
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
