"""Checkpoints of the original Prompt-CAM code, converted to ours."""

import codecs
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from transformers import CLIPVisionConfig, Dinov2Config, PreTrainedConfig, ViTConfig

from ..checkpoint import new_image_processor, save_checkpoint
from ..data.class_names import in_natural_order
from ..data.splits import load_splits
from ..files import check_new_folder
from ..messages import counted, first_line, listed
from ..modeling import PromptCamConfig, PromptCamForImageClassification
from ..modeling.backbone_promptcam import FINAL_NORM, find
from ..modeling.hub_promptcam import is_hub_id

# The tensors that sizes are read from
PROMPTS, PATCHES, POSITIONS, MLP, HEAD = (
    "vpt.prompt_embeddings",  # (prompted layers, classes, hidden size)
    "patch_embed.proj.weight",  # (hidden size, channels, patch size, patch size)
    "pos_embed",  # (1, 1 + patches, hidden size)
    "blocks.0.mlp.fc1.weight",  # (intermediate size, hidden size)
    "head.weight",  # (1, hidden size)
)
# The tensors that only DINOv2 and only CLIP have
LAYER_SCALE, FIRST_NORM = "blocks.0.ls1.gamma", "norm_pre.weight"
# What other files hold, by the start of a name in them
OTHER_FILES = {
    "visual.": "an open_clip model, which `promptcam train --backbone` takes",
    "class_prompts": "weights of a model of promptcam-hf, which needs no conversion",
    "blocks.": "a backbone without prompts",
    "embeddings.": "a backbone of transformers, without prompts",
}


def convert_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    id2label: dict[int, str] | None = None,
    num_attention_heads: int | None = None,
) -> PromptCamForImageClassification:
    """
    Convert a checkpoint of the original Prompt-CAM code (Chowdhury et al., CVPR 2025;
    https://github.com/Imageomics/Prompt_CAM) into a folder that `from_pretrained` and `pipeline("prompt-cam")` open.
    The converted model computes the same logits.

    The original code saves a dictionary with the tensors of a timm-style Vision Transformer under `model_state_dict`.
    The family of the backbone (a ViT such as DINO, MAE and that of ImageNet-21k; DINOv2; CLIP) and all sizes are read
    from these tensors, except for the number of heads.

    Args:
        path: The checkpoint: a file, or `org/repository:file` for one on the Hub, such as those of
            `imageomics/Prompt-CAM`. It is read with `weights_only=True`: a file that would run code is refused.
        output_dir: New or empty folder for the converted checkpoint. It is written completely or not at all.
        id2label: Class names by label, in the order of the original labels. Default: `LABEL_0`, `LABEL_1`, ...
        num_attention_heads: Attention heads in each layer. Default: hidden size / 64, which holds for ViT-S, -B and -L.

    Returns:
        The converted model, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a checkpoint, an argument does not fit it, or `output_dir` is not empty.
        OSError: If the file cannot be fetched, or the converted checkpoint cannot be written.

    Example:

    ```python
    >>> from promptcam_hf import convert_checkpoint

    >>> model = convert_checkpoint("model.pt", "promptcam-cub")
    ```
    """
    check_new_folder(Path(output_dir))
    tensors = _read_tensors(_fetch(path))
    _check_tensors(tensors, path)
    config = _read_config(tensors, id2label, num_attention_heads, path)
    model = PromptCamForImageClassification(config).eval()
    _copy_tensors(tensors, model, path)
    save_checkpoint(model, new_image_processor(config.backbone_config.image_size), output_dir)
    return model


def read_labels(source: str | os.PathLike) -> dict[int, str]:
    """
    Read class names in the order of the original labels.

    Args:
        source: A text file in UTF-8, or in UTF-16 with a byte order mark, one name per line; or the folder of the data
            set, as for `load_splits`: the unpacked download of CUB-200-2011 or Oxford-IIIT Pet, which numbers its
            classes, or a folder per class, of which the names are in the order of `sorted`.

    Returns:
        Class name by label, as `convert_checkpoint` takes them.

    Raises:
        ValueError: If the file is in another encoding, a line between others is empty, or the data cannot be read.
        OSError: If it cannot be read.
    """
    if Path(source).is_dir():
        names = load_splits(source, training=False).names
        # Names of folders come in natural order, in which the original code does not sort them
        return dict(enumerate(sorted(names) if names == in_natural_order(names) else names))
    content = Path(source).read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{source}, line {line}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        raise ValueError(f"{source}, line {names.index('') + 1}: no class name; expected one per line.")
    return dict(enumerate(names))


def _fetch(path: str | os.PathLike) -> Path:
    """The file of a checkpoint, downloaded if it is on the Hub."""
    repository, _, name = os.fspath(path).partition(":")
    if os.path.exists(path) or not name or not is_hub_id(repository):
        return Path(path)
    try:
        return Path(hf_hub_download(repository, name))
    except RemoteEntryNotFoundError:
        there = sorted(file for file in list_repo_files(repository) if file.endswith((".pt", ".pth", ".bin")))
        raise FileNotFoundError(f"{repository} has no file {name}; expected one of {listed(there)}.") from None
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(f"{path} cannot be fetched ({first_line(error)})") from None


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {found}; expected a checkpoint of the original code.")
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} is a file of safetensors; expected a checkpoint of the original code, a .pt file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError):
        raise ValueError(
            f"{path} cannot be read as tensors alone; expected a checkpoint of the original code. A file that would "
            "run code when it is loaded is refused."
        ) from None
    tensors = checkpoint.get("model_state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        names = list(checkpoint.get("state_dict", checkpoint)) if isinstance(checkpoint, dict) else []
        raise ValueError(
            f"{path} has no 'model_state_dict' of tensors{_what_it_is(names)}; expected a checkpoint of the original "
            "code."
        )
    return dict(tensors)


def _what_it_is(names: list[str]) -> str:
    """What a file that is no checkpoint of the original code seems to be, by the names in it."""
    for start, what in OTHER_FILES.items():
        if any(str(name).startswith(start) for name in names):
            return f": it holds {what}"
    return f": it holds {listed(map(str, names), 3)}" if names else ""


def _check_tensors(tensors: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Check that these are the tensors of a Prompt-CAM."""
    for name in (PROMPTS, PATCHES, POSITIONS, MLP, HEAD):
        if name not in tensors:
            raise ValueError(
                f"{path} has no {name!r}{_what_it_is(list(tensors))}; expected a Prompt-CAM checkpoint of the original "
                "code."
            )
    head, positions = tuple(tensors[HEAD].shape), tuple(tensors[POSITIONS].shape)
    if head[0] != 1 or _grid(tensors) ** 2 != positions[1] - 1:
        raise ValueError(
            f"{path}: {HEAD} has shape {head} and {POSITIONS} {positions}; expected one score vector, and a [CLS] "
            "token before a square grid of patches."
        )


def _grid(tensors: dict[str, torch.Tensor]) -> int:
    """Patches along a side of the image."""
    return round((tensors[POSITIONS].shape[1] - 1) ** 0.5)


def _read_config(
    tensors: dict[str, torch.Tensor],
    id2label: dict[int, str] | None,
    num_attention_heads: int | None,
    path: str | os.PathLike,
) -> PromptCamConfig:
    """The configuration, with the sizes of the tensors."""
    num_prompted_layers, num_labels, hidden_size = tensors[PROMPTS].shape
    if id2label is not None and len(id2label) != num_labels:
        raise ValueError(f"id2label names {counted(len(id2label), 'class')}; {path} has prompts for {num_labels}.")
    if num_attention_heads is None and hidden_size % 64:
        raise ValueError(
            f"{path} has the hidden size {hidden_size}, which is not a multiple of 64, the usual size of a head; pass "
            "num_attention_heads."
        )
    heads = hidden_size // 64 if num_attention_heads is None else num_attention_heads
    if heads < 1 or hidden_size % heads:
        raise ValueError(f"num_attention_heads={heads} does not divide the hidden size {hidden_size} of {path}.")

    num_channels, patch_size = tensors[PATCHES].shape[1:3]
    intermediate_size = len(tensors[MLP])
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        "num_attention_heads": heads,
        "image_size": _grid(tensors) * patch_size,
        "patch_size": patch_size,
        "num_channels": num_channels,
    }
    # In the original code, CLIP has the norms and the activation of OpenAI's
    norm_and_bias: dict[str, Any] = {"layer_norm_eps": 1e-6, "qkv_bias": "blocks.0.attn.qkv.bias" in tensors}
    backbone_config: PreTrainedConfig
    if LAYER_SCALE in tensors:
        ratio = intermediate_size // hidden_size
        backbone_config = Dinov2Config(**sizes, **norm_and_bias, mlp_ratio=ratio, use_mask_token=False)
    elif FIRST_NORM in tensors:
        activation: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
        backbone_config = CLIPVisionConfig(**sizes, **activation, intermediate_size=intermediate_size)
    else:
        backbone_config = ViTConfig(**sizes, **norm_and_bias, intermediate_size=intermediate_size)
    labels = {"num_labels": num_labels} if id2label is None else {"id2label": id2label}
    return PromptCamConfig(backbone_config=backbone_config, num_prompted_layers=num_prompted_layers, **labels)


@torch.no_grad()
def _copy_tensors(
    tensors: dict[str, torch.Tensor], model: PromptCamForImageClassification, path: str | os.PathLike
) -> None:
    """Copy every tensor into the model; missing and left over ones are errors."""
    targets = _targets(model)
    if missing := [name for name in targets if name not in tensors]:
        raise ValueError(f"{path} has no {missing[0]}; expected a complete checkpoint of the original code.")
    if unknown := sorted(tensors.keys() - targets.keys() - {PROMPTS}):
        family = model.config.backbone_config.model_type
        raise ValueError(f"{path} has {', '.join(unknown[:3])}, which a {family} backbone does not have.")
    for name, parameters in targets.items():
        expected = torch.Size((len(parameters) * len(parameters[0]), *parameters[0].shape[1:]))
        if tensors[name].shape != expected:
            raise ValueError(f"{path}: {name} has shape {tuple(tensors[name].shape)}; expected {tuple(expected)}.")
        for parameter, chunk in zip(parameters, tensors[name].chunk(len(parameters)), strict=True):
            parameter.copy_(chunk)
    *agnostic, class_prompts = tensors[PROMPTS]
    model.class_prompts.copy_(class_prompts)
    if model.agnostic_prompts is not None:
        model.agnostic_prompts.copy_(torch.stack(agnostic))


def _targets(model: PromptCamForImageClassification) -> dict[str, tuple[torch.Tensor, ...]]:
    """Name in the original checkpoint -> the parameters that its rows are divided among; without the prompts."""
    embeddings = model.backbone.embeddings
    modules = {"norm": find(model.backbone, FINAL_NORM), "head": model.score_head}
    if model.config.backbone_config.model_type == "clip_vision_model":
        modules |= {"patch_embed.proj": embeddings.patch_embedding, "norm_pre": model.backbone.pre_layrnorm}
        cls_token, positions = embeddings.class_embedding[None, None], embeddings.position_embedding.weight[None]
    else:
        modules |= {"patch_embed.proj": embeddings.patch_embeddings.projection}
        cls_token, positions = embeddings.cls_token, embeddings.position_embeddings
    targets: dict[str, tuple[torch.Tensor, ...]] = {"cls_token": (cls_token,), POSITIONS: (positions,)}
    for index in range(model.num_layers):
        layer, block = model.layer_parts(index + 1), f"blocks.{index}"
        modules |= {
            f"{block}.norm1": layer.norm1,
            f"{block}.attn.proj": layer.output,
            f"{block}.norm2": layer.norm2,
            f"{block}.mlp": layer.mlp,
        }
        for kind, query in layer.query.named_parameters():
            targets[f"{block}.attn.qkv.{kind}"] = (query, getattr(layer.key, kind), getattr(layer.value, kind))
        for name, scale in (("ls1", layer.scale1), ("ls2", layer.scale2)):
            for gamma in scale.parameters():
                targets[f"{block}.{name}.gamma"] = (gamma,)
    for name, module in modules.items():
        targets |= {f"{name}.{kind}": (parameter,) for kind, parameter in module.named_parameters()}
    return targets
