"""Backbones in the layout of open_clip, against its image encoder written with torch's own layers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from promptcam_hf.modeling.backbone_promptcam import load_pretrained
from safetensors.torch import save_file
from torch import nn

from promptcam_hf import open_clip_backbone

from ..hub_stand_in import HubStandIn, Repo
from ..tiny_models import images

WIDTH, LAYERS, HEADS = 48, 2, 3
VISION = {"image_size": 32, "layers": LAYERS, "width": WIDTH, "head_width": 16, "mlp_ratio": 2.0, "patch_size": 8}


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Named as in open_clip, and with its attention: torch's own."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 2 * WIDTH))
        self.mlp.add_module("gelu", activation)
        self.mlp.add_module("c_proj", nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, activation: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 8, stride=8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(17, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([Block(activation) for _ in range(LAYERS)])
        self.proj = nn.Parameter(torch.randn(WIDTH, 16))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, 16) of images, as the text encoder's are compared with."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, 16, WIDTH)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x)[:, 0] @ self.proj


def write(folder: Path, quick_gelu: bool = False, file: str = "open_clip_model.safetensors", **vision: Any) -> Encoder:
    """A tiny, random model in open_clip's layout; its encoder."""
    torch.manual_seed(0)
    encoder = Encoder(QuickGELU() if quick_gelu else nn.GELU()).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    weights = {f"visual.{name}": weight for name, weight in encoder.state_dict().items()}
    weights |= {"token_embedding.weight": torch.zeros(9, 8), "logit_scale": torch.zeros(())}
    folder.mkdir(exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(weights, folder / file)
    elif file.endswith(".pt"):  # as open_clip's training saves them
        torch.save(
            {"epoch": 1, "state_dict": {f"module.{name}": weight for name, weight in weights.items()}}, folder / file
        )
    else:
        torch.save(weights, folder / file)
    model = {"embed_dim": 16, "vision_cfg": VISION | vision, "text_cfg": {}} | (
        {"quick_gelu": True} if quick_gelu else {}
    )
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocessing}))
    return encoder


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "epoch_1.pt"])
def test_encoder_computes_what_open_clip_computes(quick_gelu, file, tmp_path):
    encoder, pixels = write(tmp_path, quick_gelu, file), images(2)
    backbone = open_clip_backbone(tmp_path / file if file.endswith(".pt") else tmp_path)
    with torch.no_grad():
        found = backbone(pixels).pooler_output @ encoder.proj
        torch.testing.assert_close(found, encoder(pixels), atol=1e-5, rtol=1e-5)
    assert backbone.config.hidden_act == ("quick_gelu" if quick_gelu else "gelu")


# Trains nothing, but saves prompts alone, whose backbone is then fetched again
FETCH = """
import sys
import torch
from promptcam_hf import PromptCamForImageClassification as Model
model = Model.from_backbone("hf-hub:org/bioclip", num_labels=3).eval()
model.save_pretrained(sys.argv[1], prompts_only=True)
opened, pixels = Model.from_pretrained(sys.argv[1]), torch.ones(1, 3, 32, 32)
torch.testing.assert_close(opened(pixels).logits, model(pixels).logits)
print(opened.config.backbone, opened.config.backbone_revision, opened.backbone.pre_layrnorm.weight.sum().item())
"""


def test_checkpoint_of_prompts_alone_fetches_its_backbone_from_the_hub(tmp_path):
    encoder = write(tmp_path / "model", file="open_clip_pytorch_model.bin")
    with HubStandIn() as hub:
        repo = hub.repos["models/org/bioclip"] = Repo(private=False)
        commit = repo.commit("main", {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()})
        command = [sys.executable, "-c", FETCH, str(tmp_path / "small")]
        done = subprocess.run(command, env=hub.environ(tmp_path), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    name, revision, total = done.stdout.split()
    assert (name, revision) == ("hf-hub:org/bioclip", commit)
    assert float(total) == pytest.approx(encoder.ln_pre.weight.sum().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "vit_base"}, r"timm_model_name='vit_base' in its open_clip_config\.json; only plain ViTs"),
        ({"layers": [3, 4, 6, 3]}, r"layers=\[3, 4, 6, 3\] in its open_clip_config\.json; only square ViTs"),
        ({"image_size": [32, 64]}, r"image_size=\[32, 64\] in its .* only square ViTs"),
        ({"layers": 3}, r"shape of weights encoder\.layers\.2\.\S+: none; its open_clip_config\.json says"),
        ({"layers": 1}, r"shape of weights encoder\.layers\.1\.\S+: \(.*\); its open_clip_config\.json says none"),
        ({"image_size": 64}, r"position_embedding.weight: \(17, 48\); its open_clip_config\.json says \(65, 48\)"),
    ],
)
def test_other_models_of_open_clip_are_refused(tmp_path, vision, message):
    write(tmp_path, **vision)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_file_that_would_run_code_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no open_clip_model\.safetensors or open_clip_pytorch_model\.bin"):
        open_clip_backbone(tmp_path)
    torch.save({"visual.proj": print}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"open_clip_pytorch_model\.bin cannot be read as tensors alone"):
        open_clip_backbone(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"open_clip_config\.json is not the configuration of an open_clip model"):
        open_clip_backbone(tmp_path)
