"""Frozen backbones: what their layers are made of, and how a pre-trained one is loaded."""

import os
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from .attention_promptcam import MANY_PROMPTS, image_by_image
from .open_clip_promptcam import is_open_clip, open_clip_backbone, open_clip_vision_config


@dataclass(frozen=True)
class Family:
    """What the forward pass has to know of a backbone's `model_type` beyond its layers."""

    name: str
    # Tokens before the patches, such as [CLS], without registers, whose number is in the configuration
    num_prefix_tokens: int = 1
    # Whether `embeddings` takes images of any size by itself
    any_size: bool = False
    # Whether `rope_embeddings` gives the angles by which layers rotate the queries and keys of patches
    rotary: bool = False
    # Arguments of the model, and values of its configuration, that leave out what is not used
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "vit": Family("ViT", init_kwargs={"add_pooling_layer": False}),
    "deit": Family("DeiT", num_prefix_tokens=2, init_kwargs={"add_pooling_layer": False}),
    "vit_msn": Family("MSN"),
    "ijepa": Family("I-JEPA", num_prefix_tokens=0, init_kwargs={"add_pooling_layer": False}),
    "dinov2": Family("DINOv2", any_size=True),
    "dinov2_with_registers": Family("DINOv2 with registers", any_size=True),
    "dinov3_vit": Family("DINOv3", any_size=True, rotary=True),
    "clip_vision_model": Family("CLIP"),
    "siglip_vision_model": Family("SigLIP", num_prefix_tokens=0, config={"vision_use_head": False}),
}

# Where the families keep their parts in the supported releases of transformers: the first path that exists is taken
LAYERS = ("layers", "encoder.layer", "encoder.layers", "model.layer")
FIRST_NORM = ("pre_layrnorm",)  # CLIP's, of what enters the first layer
FINAL_NORM = ("layernorm", "norm", "post_layernorm")
POSITIONS = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")
LAYER_PARTS = {
    "norm1": ("layernorm_before", "norm1", "layer_norm1"),
    "query": ("attention.q_proj", "attention.attention.query", "self_attn.q_proj"),
    "key": ("attention.k_proj", "attention.attention.key", "self_attn.k_proj"),
    "value": ("attention.v_proj", "attention.attention.value", "self_attn.v_proj"),
    "output": ("attention.o_proj", "attention.output.dense", "self_attn.out_proj"),
    "scale1": ("layer_scale1",),
    "norm2": ("layernorm_after", "norm2", "layer_norm2"),
    "mlp": ("mlp",),
    "scale2": ("layer_scale2",),
}
OPTIONAL_PARTS = {"scale1", "scale2"}
IDENTITY = nn.Identity()  # in the place of an optional part that a layer does not have
# Arguments of transformers' `from_pretrained` that say how to download
DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "token")


class LayerParts(NamedTuple):
    """The parts of a pre-norm transformer layer, which computes
    `x += scale1(output(attention(query, key, value of norm1(x))))` and then `x += scale2(mlp(norm2(x)))`."""

    norm1: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    scale1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    scale2: nn.Module

    @classmethod
    def of(cls, layer: nn.Module) -> "LayerParts":
        """The parts of a backbone's layer; `RuntimeError` if one is not found."""
        return cls(**{name: find(layer, paths, name in OPTIONAL_PARTS) for name, paths in LAYER_PARTS.items()})

    def residual(self, x: torch.Tensor, attended: torch.Tensor, drop_path: nn.Module | None = None) -> torch.Tensor:
        """The rest of the layer, row by row: x (B, ..., D) enters it, attended (B, ..., D) is what its heads gathered.
        The dimensions between may be broadcast."""
        drop_path = drop_path or IDENTITY

        def rest(x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
            x = x + drop_path(self.scale1(self.output(attended)))
            return x + drop_path(self.scale2(self.mlp(self.norm2(x))))

        return rest(x, attended) if x.shape[1] < MANY_PROMPTS else image_by_image(rest, x, attended)


def call(module: nn.Module, function: Callable, *args: Any) -> Any:
    """`function(*args)` in place of a module's forward pass, with what else calling a module does: it runs its forward
    hooks (FSDP2's gather its weights), and moves its inputs to its device."""
    if (placement := getattr(module, "_hf_hook", None)) is not None:  # of `accelerate.dispatch_model` (device_map)
        args, _ = placement.pre_forward(module, *args)
    for name, hook in tuple(module._forward_pre_hooks.items()):
        with_kwargs = name in module._forward_pre_hooks_with_kwargs
        if (changed := hook(module, args, {}) if with_kwargs else hook(module, args)) is not None:
            changed = changed[0] if with_kwargs else changed
            args = changed if isinstance(changed, tuple) else (changed,)
    output = function(*args)
    for name, hook in tuple(module._forward_hooks.items()):
        with_kwargs = name in module._forward_hooks_with_kwargs
        changed = hook(module, args, {}, output) if with_kwargs else hook(module, args, output)
        if changed is not None:
            output = changed
    return output


def find(root: nn.Module, paths: tuple[str, ...], optional: bool = False) -> Any:
    """What is at the first path that exists; the identity if it is optional and there is none.

    Raises:
        RuntimeError: If there is none, but there must be one.
    """
    for path in paths:
        try:
            return attrgetter(path)(root)
        except AttributeError:
            continue
    if optional:
        return IDENTITY
    raise RuntimeError(
        f"No {' or '.join(paths)} found in {type(root).__name__} of transformers {transformers.__version__}; expected "
        "transformers >= 5.10, < 6."
    )


def family_of(model_type: str) -> Family:
    """The family of a backbone.

    Raises:
        ValueError: If backbones of this `model_type` are not supported.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"Backbones of type {model_type!r} are not supported; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def pair(size: int | Iterable[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def new_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A backbone with random weights, without the parts that are not used."""
    return AutoModel.from_config(_trimmed(config), **family_of(config.model_type).init_kwargs)


def num_prefix_tokens(config: PreTrainedConfig) -> int:
    """Number of tokens before the patches."""
    return family_of(config.model_type).num_prefix_tokens + getattr(config, "num_register_tokens", 0)


def rotary_positions(backbone: nn.Module, image_size: tuple[int, ...], tokens: torch.Tensor) -> torch.Tensor | None:
    """Cosines and sines (1, S, 2 * d) of the angles by which a family such as DINOv3 rotates the queries and keys of
    images of this height and width, 0 before the patches; of the type of their tokens. None for other families."""
    config: Any = backbone.config
    if not family_of(config.model_type).rotary:
        return None
    image = tokens.new_empty(()).expand(1, 1, *image_size)  # only its size matters
    cos, sin = cast(Any, backbone).rope_embeddings(image)
    prefix = (num_prefix_tokens(config), cos.shape[-1])
    cos, sin = torch.cat([cos.new_ones(prefix), cos]), torch.cat([sin.new_zeros(prefix), sin])  # (S, d)
    return torch.cat([cos, sin], dim=-1)[None]


def rotate(x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Rotate the queries or keys (B, H, C + S, d) of image tokens by `rotary_positions`, (1 or B, S, 2 * d). What comes
    before them, class prompts, has no position."""
    if positions is None:
        return x
    cos, sin = positions[:, None].chunk(2, dim=-1)  # (1 or B, 1, S, d)
    prompts, image = x.tensor_split([x.shape[2] - cos.shape[2]], dim=2)
    left, right = image.chunk(2, dim=-1)
    rotated = image * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([prompts, rotated.to(x.dtype)], dim=2)


def load_pretrained(
    backbone: str | os.PathLike, revision: str | None = None, **download: Any
) -> tuple[PreTrainedModel, str | None]:
    """A pre-trained backbone, and the commit of the Hub repository that it came from, None for a folder. Arguments and
    errors are those of `from_backbone`."""
    config, commit = load_config(backbone, revision, **download)
    download["revision"] = commit or revision
    if is_open_clip(backbone):
        return open_clip_backbone(backbone, **download), commit
    family = family_of(config.model_type)
    model, found = AutoModel.from_pretrained(
        backbone, config=config, output_loading_info=True, **download, **family.init_kwargs
    )
    if missing := sorted(name for name in found["missing_keys"] if not name.endswith("mask_token")):  # is never used
        raise ValueError(
            f"The backbone {backbone} has no weights {missing[0]} ({len(missing)} are missing); expected a complete "
            f"{family.name} model."
        )
    return model, commit


def load_config(
    backbone: str | os.PathLike, revision: str | None = None, **download: Any
) -> tuple[PreTrainedConfig, str | None]:
    """The configuration of a pre-trained backbone, and its commit, as of `load_pretrained`."""
    if is_open_clip(backbone):
        return open_clip_vision_config(backbone, revision, **download)
    commit = None
    if not os.path.isdir(backbone):
        # Where transformers itself keeps the commit differs between releases
        commit = extract_commit_hash(cached_file(backbone, CONFIG_NAME, revision=revision, **download), None)
    config = AutoConfig.from_pretrained(backbone, revision=commit or revision, **download)
    return encoder_config(config), commit


def encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a model's image encoder: of CLIP and SigLIP a part, of a masked autoencoder (MAE) a plain
    ViT."""
    config = getattr(config, "vision_config", config)
    if config.model_type == "vit_mae":
        shared = ViTConfig().to_dict().keys() - {"model_type", "architectures"}
        config = ViTConfig(**{name: value for name, value in config.to_dict().items() if name in shared})
    return _trimmed(config)


def _trimmed(config: PreTrainedConfig) -> PreTrainedConfig:
    for name, value in family_of(config.model_type).config.items():
        setattr(config, name, value)
    return config


def encoder_of(
    model: PreTrainedModel, image_size: int | Iterable[int] | None = None
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of a model's image encoder, its position embeddings interpolated to an image size."""
    base: Any = model.base_model
    parts = (model, base, getattr(base, "vision_model", None))  # from a model with a head down to the encoder
    encoder: Any = next((part for part in parts if hasattr(part, "embeddings")), model)
    config, weights = encoder_config(deepcopy(encoder.config)), encoder.state_dict()
    if image_size is None or pair(image_size) == pair(config.image_size):
        return config, weights
    (height, width), (patch_height, patch_width) = pair(image_size), pair(config.patch_size)
    own_height, own_width = pair(config.image_size)
    for name in POSITIONS:
        if name in weights:
            *_, num_tokens, hidden_size = weights[name].shape
            num_tokens += (height // patch_height) * (width // patch_width)
            num_tokens -= (own_height // patch_height) * (own_width // patch_width)
            with torch.no_grad():
                tokens = weights[name].new_empty(1, num_tokens, hidden_size)
                positions = encoder.embeddings.interpolate_pos_encoding(tokens, height, width)
            weights[name] = positions.reshape(*weights[name].shape[:-2], num_tokens, hidden_size)
    config.image_size = image_size
    return config, weights


def load_weights(
    backbone: PreTrainedModel, config: PreTrainedConfig, weights: dict[str, torch.Tensor], name: str
) -> None:
    """Copy weights into a backbone from another, which is called `name` in errors. Weights that it has no place for,
    such as a pooler's, are left out.

    Raises:
        ValueError: If weights are missing or have other shapes, or if what they do not tell, such as the number of
            heads, is different.
    """
    own = backbone.state_dict()
    wrong = [
        f"its {what} is {getattr(config, what)}, expected {getattr(backbone.config, what)}"
        for what in ("model_type", "num_hidden_layers", "num_attention_heads")
        if getattr(config, what) != getattr(backbone.config, what)
    ]
    wrong += [
        f"it has no weights {key} of shape {tuple(weight.shape)}"
        for key, weight in own.items()
        if key not in weights or weights[key].shape != weight.shape
    ]
    if wrong:
        raise ValueError(f"The backbone {name} does not fit this model: {wrong[0]}.")
    backbone.load_state_dict({key: weights[key] for key in own})
