"""Backbones in the layout of open_clip (https://github.com/mlfoundations/open_clip), such as BioCLIP: their image
encoder, as the CLIPVisionModel of transformers that computes the same."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

HUB_PREFIX = "hf-hub:"  # how open_clip itself names a repository of the Hub
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

# Settings of `vision_cfg` that change the image tokens, and that CLIPVisionModel does not have
UNSUPPORTED = (
    "timm_model_name",
    "ls_init_value",
    "attentional_pool",
    "no_ln_pre",
    "act_kwargs",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)
# Parts of names in open_clip -> in transformers
NAMES = {
    "transformer.resblocks.": "encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    "conv1.": "embeddings.patch_embedding.",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
}


def is_open_clip(source: str | os.PathLike) -> bool:
    """Whether this is a model in the layout of open_clip: `hf-hub:org/name`, a folder, or a file of weights in one."""
    path = Path(source)
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / CONFIG_NAME).is_file()
    return os.fspath(source).startswith(HUB_PREFIX) or (path.is_file() and path.with_name(CONFIG).is_file())


def open_clip_backbone(source: str | os.PathLike, *, revision: str | None = None, **download: Any) -> CLIPVisionModel:
    """
    The image encoder of an open_clip model, for `from_backbone`.

    Args:
        source: `hf-hub:org/name`, such as `hf-hub:imageomics/bioclip`; a folder with `open_clip_config.json` and
            `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`; or a file of weights in such a folder.
        revision: Branch, tag or commit of the Hub repository.
        download: Arguments of the download, such as `token` or `cache_dir`.

    Returns:
        The encoder, in evaluation mode, in the precision of its weights. Files are read with `weights_only=True`: one
        that would run code is refused.

    Raises:
        OSError: If there is no such model.
        ValueError: If it is no plain Vision Transformer, or its files are damaged or incomplete.
    """
    config, _ = open_clip_vision_config(source, revision, **download)
    file = os.fspath(source) if os.path.isfile(source) else _find(source, WEIGHTS, revision, **download)
    weights = _renamed(_read(file), source)
    model = CLIPVisionModel(config).eval()
    own = model.state_dict()
    for name in [*own, *weights]:
        found, expected = (tuple(tensors[name].shape) if name in tensors else "none" for tensors in (weights, own))
        if found != expected:
            raise ValueError(f"{source}: shape of weights {name}: {found}; its {CONFIG} says {expected}.")
    model.to(weights["pre_layrnorm.weight"].dtype).load_state_dict(weights)
    return model


def open_clip_vision_config(
    source: str | os.PathLike, revision: str | None = None, **download: Any
) -> tuple[CLIPVisionConfig, str | None]:
    """The configuration of an open_clip model's image encoder, and its commit; see `read_open_clip_config`."""
    config = read_open_clip_config(source, revision, **download)
    vision: dict[str, Any] = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0}
    vision |= {"patch_size": 16, "image_size": 224} | config["model_cfg"].get("vision_cfg", {})
    for name in UNSUPPORTED:
        if vision.get(name):
            raise ValueError(f"{source}: {name}={vision[name]!r} in its {CONFIG}; only plain ViTs are supported.")
    for name in ("layers", "patch_size", "image_size"):
        if isinstance(vision[name], list) and len(set(vision[name])) == 1:
            vision[name] = vision[name][0]
        if not isinstance(vision[name], int):
            raise ValueError(f"{source}: {name}={vision[name]!r} in its {CONFIG}; only square ViTs are supported.")
    vision_config = CLIPVisionConfig(
        hidden_size=vision["width"],
        intermediate_size=int(vision["width"] * vision["mlp_ratio"]),
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["width"] // vision["head_width"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        hidden_act="quick_gelu" if config["model_cfg"].get("quick_gelu") else "gelu",
        layer_norm_eps=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
    )
    return vision_config, config["commit"]


def read_open_clip_config(source: str | os.PathLike, revision: str | None = None, **download: Any) -> dict[str, Any]:
    """The configuration of an open_clip model: its `model_cfg` and `preprocess_cfg`, and under `commit` that of its Hub
    repository, None for local files. Arguments and errors are those of `open_clip_backbone`."""
    file = _find(source, (CONFIG,), revision, **download)
    try:
        with open(file, encoding="utf-8") as content:
            config = json.load(content)
        config = {"preprocess_cfg": {}, **config, "model_cfg": dict(config["model_cfg"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is not the configuration of an open_clip model, with a 'model_cfg'.") from None
    return config | {"commit": extract_commit_hash(file, None)}


def _find(source: str | os.PathLike, names: tuple[str, ...], revision: str | None, **download: Any) -> str:
    """The first of these files that the model has."""
    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False, **download}
    for name in names:
        if os.fspath(source).startswith(HUB_PREFIX):
            file = cached_file(os.fspath(source).removeprefix(HUB_PREFIX), name, **options)
        else:
            file = os.path.join(source if os.path.isdir(source) else os.path.dirname(source), name)
        if file is not None and os.path.isfile(file):
            return file
    raise FileNotFoundError(f"{source} has no {' or '.join(names)}; expected a model of open_clip.")


def _read(file: str) -> dict[str, torch.Tensor]:
    if file.endswith(".safetensors"):
        return load_file(file)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise ValueError(f"{file} cannot be read as tensors alone; expected weights of open_clip.") from None
    tensors = tensors.get("state_dict", tensors)  # as its training saves them
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _renamed(tensors: dict[str, torch.Tensor], source: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The weights of the image encoder, under transformers' names."""
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith("visual.") or name == "visual.proj":  # the text encoder, the projection to its space
            continue
        name = name.removeprefix("visual.")
        for part, renamed in NAMES.items():
            name = name.replace(part, renamed)
        if ".attn.in_proj_" in name:
            layer, kind = name.split(".attn.in_proj_")
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"{layer}.self_attn.{part}_proj.{kind}"] = rows
        else:
            weights[name] = tensor
    if not weights:
        raise ValueError(f"{source} has no weights 'visual.*'; expected those of an open_clip model.")
    return weights
