"""Frozen backbones: what their layers are made of, and how a pre-trained one is loaded."""

import os
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash


@dataclass(frozen=True)
class Family:
    """What the forward pass has to know of a backbone's `model_type` beyond its layers."""

    # Arguments of the model that leave out what is not used
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    # Whether `embeddings` interpolates position embeddings to any image size by itself
    interpolates: bool = False
    # Tokens before the patches, such as [CLS]
    num_prefix_tokens: int = 1


FAMILIES = {"vit": Family(init_kwargs={"add_pooling_layer": False}), "dinov2": Family(interpolates=True)}

# Where the families keep their parts in the supported releases of transformers: the first path that exists is taken
LAYERS = ("layers", "encoder.layer")
FINAL_NORM = ("layernorm",)
LAYER_PARTS = {
    "norm1": ("layernorm_before", "norm1"),
    "query": ("attention.q_proj", "attention.attention.query"),
    "key": ("attention.k_proj", "attention.attention.key"),
    "value": ("attention.v_proj", "attention.attention.value"),
    "output": ("attention.o_proj", "attention.output.dense"),
    "scale1": ("layer_scale1",),
    "norm2": ("layernorm_after", "norm2"),
    "mlp": ("mlp",),
    "scale2": ("layer_scale2",),
}
OPTIONAL_PARTS = {"scale1", "scale2"}


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
        return cls(**{name: find(layer, paths, name in OPTIONAL_PARTS) for name, paths in LAYER_PARTS.items()})

    def residual(self, x: torch.Tensor, attended: torch.Tensor, drop_path: nn.Module | None = None) -> torch.Tensor:
        """The rest of the layer, row by row: x (..., D) enters it, attended (..., D) is what its heads gathered."""
        drop_path = drop_path or nn.Identity()
        x = x + drop_path(self.scale1(self.output(attended)))
        return x + drop_path(self.scale2(self.mlp(self.norm2(x))))


def call(module: nn.Module, function: Callable, *args: Any) -> Any:
    """`function(*args)` in the place of a module's forward pass, with what else happens when a module is called: its
    forward hooks run, FSDP2's among them, which gather its weights, and its inputs get to its device."""
    if (placement := getattr(module, "_hf_hook", None)) is not None:  # of `accelerate.dispatch_model` (device_map)
        args, _ = placement.pre_forward(module, *args)
    for name, hook in tuple(module._forward_pre_hooks.items()):
        with_kwargs = name in module._forward_pre_hooks_with_kwargs
        if (changed := hook(module, args, {}) if with_kwargs else hook(module, args)) is not None:
            changed = changed[0] if with_kwargs else changed
            args = changed if isinstance(changed, tuple) else (changed,)
    output = function(*args)
    for name, hook in tuple(module._forward_hooks.items()):
        kwargs = ({},) if name in module._forward_hooks_with_kwargs else ()
        if (changed := hook(module, args, *kwargs, output)) is not None:
            output = changed
    return output


def find(root: nn.Module, paths: tuple[str, ...], optional: bool = False) -> Any:
    """The submodule at the first of several paths; the identity if it is optional and there is none.

    Raises:
        RuntimeError: If there is none, but there must be one.
    """
    for path in paths:
        try:
            return attrgetter(path)(root)
        except AttributeError:
            continue
    if optional:
        return nn.Identity()
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
        raise ValueError(f"Backbones of type {model_type!r} are not supported; expected {' or '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def pair(size: int | Iterable[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def load_pretrained(backbone: str | os.PathLike, **download) -> tuple[PreTrainedModel, str | None]:
    """A pre-trained backbone, and the commit of the Hub repository that it came from."""
    revision = None
    if not os.path.isdir(backbone):
        # Where transformers itself keeps the commit differs between releases
        revision = extract_commit_hash(cached_file(backbone, CONFIG_NAME, **download), None)
        download["revision"] = revision or download.get("revision")
    config = encoder_config(AutoConfig.from_pretrained(backbone, **download))
    init_kwargs = family_of(config.model_type).init_kwargs
    return AutoModel.from_pretrained(backbone, config=config, **download, **init_kwargs), revision


def encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a model's encoder: that of a masked autoencoder (MAE) is a plain ViT."""
    if config.model_type != "vit_mae":
        return config
    shared = ViTConfig().to_dict().keys() - {"model_type", "architectures"}
    return ViTConfig(**{name: value for name, value in config.to_dict().items() if name in shared})


def encoder_of(
    model: PreTrainedModel, image_size: int | Iterable[int] | None = None
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of a model's encoder, its position embeddings interpolated to an image size."""
    encoder: Any = model.base_model
    config, weights = encoder_config(deepcopy(encoder.config)), encoder.state_dict()
    family_of(config.model_type)
    if image_size is not None and pair(image_size) != pair(config.image_size):
        (height, width), (patch_height, patch_width) = pair(image_size), pair(config.patch_size)
        positions, num_patches = encoder.embeddings.position_embeddings, encoder.embeddings.patch_embeddings.num_patches
        num_tokens = positions.shape[1] - num_patches + (height // patch_height) * (width // patch_width)
        tokens = positions.new_empty(1, num_tokens, positions.shape[-1])
        with torch.no_grad():
            interpolated = encoder.embeddings.interpolate_pos_encoding(tokens, height, width)
        weights["embeddings.position_embeddings"] = interpolated
        config.image_size = image_size
    return config, weights


def load_weights(backbone: nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    """Copy weights into a backbone; weights that it has no place for, such as a pooler's, are left out.

    Raises:
        ValueError: If weights are missing or have other shapes.
    """
    own = backbone.state_dict()
    missing = [key for key in own if key not in weights]
    wrong = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    if missing or wrong:
        what = f"lacks the weights {', '.join(missing)}" if missing else f"has weights of other shapes: {wrong[0]}"
        raise ValueError(f"The backbone {name} does not fit this model: it {what}.")
    backbone.load_state_dict({key: weights[key] for key in own})


def check_same_architecture(found: PreTrainedConfig, expected: PreTrainedConfig, name: str) -> None:
    """Raise a `ValueError` if a backbone differs from the expected one in what its weights may not tell."""
    for what in ("model_type", "num_hidden_layers", "num_attention_heads"):
        if getattr(found, what) != getattr(expected, what):
            raise ValueError(
                f"The backbone {name} does not fit this model: its {what} is {getattr(found, what)}, expected "
                f"{getattr(expected, what)}."
            )
