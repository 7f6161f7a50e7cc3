"""Checkpoints of the original Prompt-CAM code, turned into ours."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config, PreTrainedConfig, ViTConfig

from ..checkpoint import new_image_processor, save_checkpoint
from ..modeling import PromptCamConfig, PromptCamForImageClassification

BACKBONE_FAMILIES = ("dino", "dinov2")


def convert_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    backbone_family: str,
    id2label: dict[int, str] | None = None,
    num_attention_heads: int | None = None,
) -> PromptCamForImageClassification:
    """
    Turn a checkpoint of the original Prompt-CAM code (`torch.save({"model_state_dict": ...})` of a timm-style model)
    into a folder that `from_pretrained` and `pipeline("prompt-cam")` open.

    Args:
        path: The checkpoint. It is read with `weights_only=True`: a file that would run code is refused.
        output_dir: Folder to write to; made if need be, and written whole or not at all.
        backbone_family: `"dino"` (ViT) or `"dinov2"`.
        id2label: Names of the classes, in the order of the original's labels. Defaults to `LABEL_0`, `LABEL_1`, ...
        num_attention_heads: Heads of the backbone; the only size that the tensors do not tell. Defaults to
            `hidden_size / 64`, as in ViT-S, -B and -L.

    Returns:
        The converted model, in evaluation mode.

    Raises:
        ValueError: If the file is not such a checkpoint, or an argument does not fit it.
        FileNotFoundError: If there is no such file.
    """
    if backbone_family not in BACKBONE_FAMILIES:
        raise ValueError(f"backbone_family={backbone_family!r}: expected {' or '.join(BACKBONE_FAMILIES)}.")
    tensors = _read(Path(path))
    config = _config(tensors, backbone_family, id2label, num_attention_heads, path)
    model = PromptCamForImageClassification(config).eval()
    _copy(tensors, model, path)
    save_checkpoint(model, new_image_processor(config.backbone_config.image_size), output_dir)
    return model


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a checkpoint of the original code.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError):
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors. Expected what the original code saves; a file that would "
            "run code when loaded is refused."
        ) from None
    tensors = checkpoint.get("model_state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds no 'model_state_dict' of tensors; expected a checkpoint of the original code.")
    return dict(tensors)


def _config(
    tensors: dict[str, torch.Tensor],
    backbone_family: str,
    id2label: dict[int, str] | None,
    num_attention_heads: int | None,
    path: str | os.PathLike,
) -> PromptCamConfig:
    needed = (
        "vpt.prompt_embeddings",
        "patch_embed.proj.weight",
        "pos_embed",
        "blocks.0.mlp.fc1.weight",
        "head.weight",
    )
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}; expected a Prompt-CAM checkpoint of the original code.")
    prompted_layers, num_labels, hidden_size = tensors["vpt.prompt_embeddings"].shape
    num_channels, patch_size = tensors["patch_embed.proj.weight"].shape[1:3]
    grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    intermediate_size = len(tensors["blocks.0.mlp.fc1.weight"])
    num_layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    if num_attention_heads is None and hidden_size % 64:
        raise ValueError(
            f"{path} has the hidden size {hidden_size}, no multiple of 64, the usual size of a head: pass the number "
            "of heads as num_attention_heads."
        )
    heads = hidden_size // 64 if num_attention_heads is None else num_attention_heads
    if heads < 1 or hidden_size % heads:
        raise ValueError(f"num_attention_heads={heads} does not divide the hidden size {hidden_size} of {path}.")
    if len(tensors["head.weight"]) != 1 or grid**2 != tensors["pos_embed"].shape[1] - 1:
        raise ValueError(
            f"{path}: head {tuple(tensors['head.weight'].shape)}, position encoding "
            f"{tuple(tensors['pos_embed'].shape)}; expected one score vector and a [CLS] token before a square grid."
        )
    if ("blocks.0.ls1.gamma" in tensors) != (backbone_family == "dinov2"):
        found = "has" if "blocks.0.ls1.gamma" in tensors else "has no"
        raise ValueError(f"{path} {found} layer scale, which does not fit backbone_family={backbone_family!r}.")
    if id2label is not None and len(id2label) != num_labels:
        raise ValueError(f"id2label names {len(id2label)} classes; {path} has prompts for {num_labels}.")

    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "layer_norm_eps": 1e-6,  # in all of the original's models
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
    }
    backbone_config: PreTrainedConfig
    if backbone_family == "dino":
        backbone_config = ViTConfig(**sizes, intermediate_size=intermediate_size)
    else:
        mlp_ratio = intermediate_size // hidden_size
        backbone_config = Dinov2Config(**sizes, mlp_ratio=mlp_ratio, use_mask_token=False)
    labels = {"num_labels": num_labels} if id2label is None else {"id2label": id2label}
    return PromptCamConfig(backbone_config=backbone_config, num_prompted_layers=prompted_layers, **labels)


@torch.no_grad()
def _copy(tensors: dict[str, torch.Tensor], model: PromptCamForImageClassification, path: str | os.PathLike) -> None:
    """Put every tensor in its place; what is left over or missing is an error."""
    left = dict(tensors)

    def put(parameter: torch.Tensor, value: torch.Tensor, name: str) -> None:
        if parameter.shape != value.shape:
            raise ValueError(f"{path}: {name} has shape {tuple(value.shape)}; expected {tuple(parameter.shape)}.")
        parameter.copy_(value)

    def put_module(module: torch.nn.Module, name: str) -> None:
        for kind, parameter in module.named_parameters():
            if f"{name}.{kind}" not in left:
                raise ValueError(f"{path} has no {name}.{kind}.")
            put(parameter, left.pop(f"{name}.{kind}"), f"{name}.{kind}")

    prompts = left.pop("vpt.prompt_embeddings")
    put(model.class_prompts, prompts[-1], "vpt.prompt_embeddings")
    if model.agnostic_prompts is not None:
        put(model.agnostic_prompts, prompts[:-1], "vpt.prompt_embeddings")
    embeddings = model.backbone.embeddings
    put(embeddings.cls_token, left.pop("cls_token"), "cls_token")
    put(embeddings.position_embeddings, left.pop("pos_embed"), "pos_embed")
    put_module(embeddings.patch_embeddings.projection, "patch_embed.proj")
    for index in range(model.num_layers):
        parts, block = model.layer_parts(index + 1), f"blocks.{index}"
        for kind in ("weight", "bias"):
            if f"{block}.attn.qkv.{kind}" in left:
                for part, chunk in zip(
                    (parts.query, parts.key, parts.value), left.pop(f"{block}.attn.qkv.{kind}").chunk(3), strict=True
                ):
                    put(getattr(part, kind), chunk, f"{block}.attn.qkv.{kind}")
        put_module(parts.norm1, f"{block}.norm1")
        put_module(parts.output, f"{block}.attn.proj")
        put_module(parts.norm2, f"{block}.norm2")
        put_module(parts.mlp, f"{block}.mlp")
        for scale, name in ((parts.scale1, "ls1"), (parts.scale2, "ls2")):
            for parameter in scale.parameters():
                put(parameter, left.pop(f"{block}.{name}.gamma"), f"{block}.{name}.gamma")
    put_module(model.backbone.layernorm, "norm")
    put_module(model.score_head, "head")
    if left:
        raise ValueError(
            f"{path} holds {', '.join(sorted(left)[:3])}, which a {model.config.backbone_config.model_type} "
            "backbone has no place for."
        )
