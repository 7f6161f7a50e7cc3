"""Prompt-CAM: a frozen Vision Transformer that classifies by where its class prompts look.

Reference: Chowdhury et al., "Prompt-CAM: Making Vision Transformers Interpretable for Fine-Grained Analysis", CVPR 2025
(arXiv 2501.09333). Notation: layers L_1..L_N, patch features E_i, [CLS] token x_i, prompts P, outputs Z at the prompts'
places, logits s[c] = w . z_N^c + b.

The textbook forward pass concatenates the prompts to the sequence of every layer. This one computes the same numbers
from three facts:

1. The output of a class-agnostic prompt is never used. It needs a key and a value, and neither query, output
   projection nor MLP.
2. Prompts that enter a layer do not depend on the image. What they are to that layer is computed once a batch, and in
   inference once for as long as the weights stay as they are.
3. Of layer N only the rows of the class prompts are needed.

Shapes: B images, C classes, P prompts, S image tokens (prefix and patches), H heads of size d, D = H * d.
"""

import os
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig
from transformers import initialization as init
from transformers.utils import CONFIG_NAME, ModelOutput, cached_file
from transformers.utils.hub import extract_commit_hash

from .configuration_promptcam import PromptCamConfig

# --- Backbones --------------------------------------------------------------------------------------------------------


class LayerParts(NamedTuple):
    """The parts of a pre-norm transformer layer, which computes, row by row,
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


@dataclass(frozen=True)
class BackboneFamily:
    """Where a family of backbones keeps what the forward pass needs: attribute paths, of which the first that exists
    is taken, because transformers renames them between releases. No path at all: the family has no such part."""

    layers: tuple[str, ...]
    final_norm: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    # Whether the embeddings adapt the position encoding to any image size by themselves
    any_image_size: bool = False
    # Arguments that leave out what is not used
    init_kwargs: tuple[tuple[str, bool], ...] = ()


BACKBONE_FAMILIES = {
    "vit": BackboneFamily(
        layers=("layers", "encoder.layer"),
        final_norm=("layernorm",),
        parts={
            "norm1": ("layernorm_before",),
            "query": ("attention.q_proj", "attention.attention.query"),
            "key": ("attention.k_proj", "attention.attention.key"),
            "value": ("attention.v_proj", "attention.attention.value"),
            "output": ("attention.o_proj", "attention.output.dense"),
            "scale1": (),
            "norm2": ("layernorm_after",),
            "mlp": ("mlp",),
            "scale2": (),
        },
        init_kwargs=(("add_pooling_layer", False),),
    ),
    "dinov2": BackboneFamily(
        layers=("layers", "encoder.layer"),
        final_norm=("layernorm",),
        parts={
            "norm1": ("norm1",),
            "query": ("attention.q_proj", "attention.attention.query"),
            "key": ("attention.k_proj", "attention.attention.key"),
            "value": ("attention.v_proj", "attention.attention.value"),
            "output": ("attention.o_proj", "attention.output.dense"),
            "scale1": ("layer_scale1",),
            "norm2": ("norm2",),
            "mlp": ("mlp",),
            "scale2": ("layer_scale2",),
        },
        any_image_size=True,
    ),
}


def backbone_family(model_type: str) -> BackboneFamily:
    """The family of a backbone's `model_type`.

    Raises:
        ValueError: If there is none; the message lists those that there are.
    """
    if model_type not in BACKBONE_FAMILIES:
        raise ValueError(
            f"Backbones of type {model_type!r} are not supported; expected {' or '.join(BACKBONE_FAMILIES)}."
        )
    return BACKBONE_FAMILIES[model_type]


def _encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a model's encoder: that of a masked autoencoder (MAE) is a plain ViT."""
    if config.model_type != "vit_mae":
        return config
    shared = ViTConfig().to_dict().keys() - {"model_type", "architectures"}
    return ViTConfig(**{name: value for name, value in config.to_dict().items() if name in shared})


def _load_backbone(backbone: str | os.PathLike, **download) -> tuple[PreTrainedModel, str | None]:
    """A pre-trained backbone, and the commit of the Hub repository that it came from."""
    revision = None
    if not os.path.isdir(backbone):
        # Where transformers itself keeps the commit differs between releases
        revision = extract_commit_hash(cached_file(backbone, CONFIG_NAME, **download), None)
        download["revision"] = revision or download.get("revision")
    config = _encoder_config(AutoConfig.from_pretrained(backbone, **download))
    family = backbone_family(config.model_type)
    return AutoModel.from_pretrained(backbone, config=config, **download, **dict(family.init_kwargs)), revision


def _encoder_of(
    model: PreTrainedModel, image_size: int | Iterable[int] | None = None
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of a model's encoder, its position encoding interpolated to an image size."""
    encoder: Any = model.base_model
    config, weights = _encoder_config(deepcopy(encoder.config)), encoder.state_dict()
    backbone_family(config.model_type)
    if image_size is not None and _pair(image_size) != _pair(config.image_size):
        (height, width), (patch_height, patch_width) = _pair(image_size), _pair(config.patch_size)
        positions, num_patches = encoder.embeddings.position_embeddings, encoder.embeddings.patch_embeddings.num_patches
        num_tokens = positions.shape[1] - num_patches + (height // patch_height) * (width // patch_width)
        tokens = positions.new_empty(1, num_tokens, positions.shape[-1])
        with torch.no_grad():
            weights["embeddings.position_embeddings"] = encoder.embeddings.interpolate_pos_encoding(
                tokens, height, width
            )
        config.image_size = image_size
    return config, weights


def _resolve(root: nn.Module, paths: tuple[str, ...], what: str, model_type: str) -> str:
    for path in paths:
        try:
            root.get_submodule(path)
        except AttributeError:
            continue
        return path
    raise RuntimeError(
        f"No {what} found in a {model_type!r} backbone of transformers {transformers.__version__} "
        f"(looked for {', '.join(paths)}); expected transformers >= 5.10, < 6."
    )


# --- Attention --------------------------------------------------------------------------------------------------------


def _merge_heads(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, S, d) -> (B, S, D)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _prepend(prompts: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Keys or values (1, H, P, d) that are the same for all images, before an image's own (B, H, S, d)."""
    return torch.cat([prompts.expand(x.shape[0], -1, -1, -1), x], dim=2)  # (B, H, P + S, d)


def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Scores (B, H, Q, K), before softmax, of queries (B, H, Q, d) and keys (B, H, K, d), in float32 at least, as fused
    kernels keep them: scores of some dozens, rounded to half precision, would change weights by several percent."""
    with torch.autocast(query.device.type, enabled=False):
        query, key = _at_least_float32(query), _at_least_float32(key)
        return (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)


def _attention_weights(query: torch.Tensor, key: torch.Tensor, lse: torch.Tensor | None = None) -> torch.Tensor:
    """Attention weights (B, H, Q, K) of queries (B, H, Q, d) over keys (B, H, K, d); with `lse` (B, H, Q, 1), the
    log-sum-exp of scores over keys that are not given, those keys together are one more column, the first."""
    scores = _scores(query, key)
    if lse is not None:
        scores = torch.cat([lse, scores], dim=-1)
    return scores.softmax(dim=-1).to(query.dtype)


def _is_recorded() -> bool:
    """Whether operations are traced or transformed, so that what Python decides now would be taken for good."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0  # fake tensors, make_fx
        or torch._C._functorch.peek_interpreter_stack() is not None  # vmap
        or torch.autograd.forward_ad._current_level >= 0
    )


# Floats of hidden size that go through an MLP at a time where memory is reused: 25 MB of activations in a ViT
_CHUNK = 3 * 2**19


def _may_reuse_memory(x: torch.Tensor) -> bool:
    """Whether to work in place and in pieces, because nothing is kept for backward and `x` lies on a CPU: there, fresh
    large blocks of memory cost more than what is computed in them, and an image would take longer the larger its batch.
    """
    return x.device.type == "cpu" and not (torch.is_grad_enabled() or _is_recorded())


def _attend_with_prompts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prompt_key: torch.Tensor, prompt_value: torch.Tensor
) -> torch.Tensor:
    """Attention output (B, H, Q, d) of queries over [prompts (1, H, P, d), image tokens (B, H, S, d)]."""
    if query.shape[0] == 1 or not _may_reuse_memory(query):
        return scaled_dot_product_attention(query, _prepend(prompt_key, key), _prepend(prompt_value, value))
    num_prompts = prompt_key.shape[2]
    keys, values = _prepend(prompt_key, key[:1]), _prepend(prompt_value, value[:1])  # (1, H, P + S, d)
    attended = torch.empty_like(query)
    for index in range(query.shape[0]):  # the prompts stay in place, an image after the other takes the rest
        keys[0, :, num_prompts:], values[0, :, num_prompts:] = key[index], value[index]
        attended[index] = scaled_dot_product_attention(query[index : index + 1], keys, values)[0]
    return attended


class EntryPrompts(NamedTuple):
    """Class prompts as they are to the layer in which they enter, and the attention that they pay to each other.

    A class prompt attends to all prompts and to the image tokens. The first part is the same for every image, so it is
    computed once, and enters each image's attention as a single column: with `lse` as its score and `among` as its
    value, softmax over [that column, image tokens] gives exactly what softmax over [prompts, image tokens] gives. The
    cost of an image is then linear in the number of classes.
    """

    tokens: torch.Tensor  # (1, C, D)
    query: torch.Tensor  # (1, H, C, d)
    key: torch.Tensor  # (1, H, C, d)
    value: torch.Tensor  # (1, H, C, d)
    among: torch.Tensor  # (1, H, C, d): output of the prompts' attention among themselves
    lse: torch.Tensor  # (1, H, C, 1), float32 or better: log-sum-exp of the prompts' scores among themselves


# Rows at a time in the prompts' attention among themselves, so that its memory is linear in C
_ENTRY_CHUNK = 512


def _attend_among(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention output (1, H, C, d) of prompts over prompts, and the log-sum-exp (1, H, C, 1) of their scores."""

    def rows(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = _scores(query, key)  # (1, H, chunk, C)
        lse = scores.logsumexp(dim=-1, keepdim=True)  # (1, H, chunk, 1)
        return (scores - lse).exp().to(value.dtype) @ value, lse

    chunks = query.split(_ENTRY_CHUNK, dim=2)
    if len(chunks) > 1 and torch.is_grad_enabled():
        results = [checkpoint(rows, chunk, use_reentrant=False) for chunk in chunks]
    else:
        results = [rows(chunk) for chunk in chunks]
    among, lse = (torch.cat(part, dim=2) for part in zip(*results, strict=True))
    return among, lse


def _attend_from_entry(prompts: EntryPrompts, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention output (B, H, C, d) of the entering class prompts over [prompts, image tokens (B, H, S, d)].

    One fused attention call over S + 1 keys: eight more dimensions carry the column that stands for the prompts. In the
    query they hold its score, which the key of that column alone picks up; in the value they hold a one in that column
    alone, so that its weight comes out beside the weighted sum of the image's values. (Eight, not one, because fused
    kernels want a multiple of it.)
    """
    head_dim, dtype = key.shape[-1], key.dtype
    score = prompts.lse * head_dim**0.5  # the kernel multiplies by d ** -0.5
    high = score.to(dtype)
    low = (score - high).to(dtype)  # the rest of a float32 score where dtype is a half precision
    query = pad(torch.cat([prompts.query, high, low], dim=-1), (0, 6))  # (1, H, C, d + 8)
    column_key = pad(key.new_ones(2), (head_dim, 6)).expand(*key.shape[:2], 1, -1)  # (B, H, 1, d + 8)
    column_value = pad(key.new_ones(1), (head_dim, 7)).expand(*key.shape[:2], 1, -1)  # (B, H, 1, d + 8)
    mixed = scaled_dot_product_attention(
        query.expand(key.shape[0], -1, -1, -1),
        torch.cat([column_key, pad(key, (0, 8))], dim=2),  # (B, H, 1 + S, d + 8)
        torch.cat([column_value, pad(value, (0, 8))], dim=2),  # (B, H, 1 + S, d + 8)
        scale=head_dim**-0.5,
    )
    return mixed[..., :head_dim] + mixed[..., head_dim : head_dim + 1] * prompts.among


# --- Prompts, once for as long as the weights stay as they are --------------------------------------------------------


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.device != b.device or a.shape != b.shape:
        return False
    if all(
        x.is_contiguous() and (x.nbytes | x.data_ptr()) % 8 == 0 and x.storage_offset() * x.itemsize % 8 == 0
        for x in (a, b)
    ):
        a, b = (x.detach().view(-1).view(torch.int64) for x in (a, b))  # eight bytes at a time: twice as fast
    return torch.equal(a, b)


def _depends_on_weights_alone(part: nn.Module) -> bool:
    """Whether a part is as plain as transformers makes it: adapters, hooks, quantisation and offloading may each change
    what it computes while its weights stay."""
    plain = type(part) in (nn.Linear, nn.LayerNorm)
    hooked = part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__
    return plain and not hooked and not any(weight.is_meta for weight in part.parameters())


class _PromptCache:
    """By layer, what was computed from the weights last, and a copy of those weights.

    Version counters and tensor identities miss some ways of changing a weight (`weight.data.copy_(...)`, as many moving
    averages do), so the weights themselves are compared, bit by bit, just before the layer needs them in its caches
    anyway: for all of a ViT-B some 5 ms on a CPU, where computing the prompts' keys and values anew takes 30 and more.
    """

    def __init__(self):
        self._content: dict[int, tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]] = {}

    def get(
        self, layer: int, weights: list[torch.Tensor], compute: Callable[[], tuple[torch.Tensor, ...]]
    ) -> tuple[torch.Tensor, ...]:
        kept = self._content.get(layer)  # read once and written once: threads may share a model
        if kept is None or len(kept[0]) != len(weights) or not all(map(_same_bits, kept[0], weights)):
            copies = [weight.detach().clone() for weight in weights]
            self._content[layer] = kept = (copies, compute())
        return kept[1]

    def __reduce__(self):
        return _PromptCache, ()  # copies and pickles of a model start empty


# --- Outputs ----------------------------------------------------------------------------------------------------------


@dataclass
class PromptCamImageClassifierOutput(ModelOutput):
    """
    Output of [`PromptCamForImageClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Mean cross-entropy.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            Scores s[c] = w . z_N^c + b, before the softmax.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            N + 1 tensors: what enters each layer, and what leaves the last. Image tokens alone,
            `(batch_size, prefix + patches, hidden_size)`, up to the layer in which the class prompts enter;
            `(batch_size, num_labels + prefix + patches, hidden_size)` from there on; of the last layer's output only
            the class prompts, `(batch_size, num_labels, hidden_size)`, for nothing else of it is used. In training
            with `patch_dropout` there are fewer patches from the first prompted layer on, here and in `attentions`.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
            For each layer in which class prompts are queries (`class_prompt_layer` to N) the attention weights after
            softmax, `(batch_size, num_heads, num_labels, num_labels + prefix + patches)`, in [0, 1]: rows are class
            prompts, columns are class prompts, [CLS] and the like, patches. `attentions[-1]` is the trait attention,
            which [`~PromptCamForImageClassification.trait_maps`] turns into maps.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class PromptCamHeadRanking(ModelOutput):
    """
    Output of [`~PromptCamForImageClassification.rank_heads`]. `...` is `(batch_size,)` or `(batch_size, num_classes)`,
    as the classes that were asked for.

    Args:
        order (`torch.LongTensor` of shape `(..., num_heads)`):
            Heads, from 0, the most important first.
        blurred_probability (`torch.FloatTensor` of shape `(..., num_heads)`):
            The class's probability, in [0, 1], after each blurring: first with the least important head blurred
            (`order[..., -1]`), then with the next one too, last with all of them.
        num_sufficient (`torch.LongTensor` of shape `(...)`):
            How many of the most important heads suffice for the image to be classified as this class: those that are
            still sharp just before it stops being so. 0 where it never was, or still is with all heads blurred.
        classes (`torch.LongTensor` of shape `(...)`):
            The classes that were explained.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            Scores of all classes, nothing blurred.
        trait_maps (`torch.FloatTensor` of shape `(..., num_heads, grid_height, grid_width)`):
            Where each head, by its own number, looks: the class prompt's attention on the patches in layer N, in
            [0, 1], not renormalised.
    """

    order: torch.Tensor | None = None
    blurred_probability: torch.Tensor | None = None
    num_sufficient: torch.Tensor | None = None
    classes: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    trait_maps: torch.Tensor | None = None


# --- Model ------------------------------------------------------------------------------------------------------------


class PromptCamPreTrainedModel(PreTrainedModel):
    """What `PreTrainedModel` needs to know: how weights start, and that the backbone stays frozen."""

    config_class = PromptCamConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    # The layers are not called as modules but walked through, so one backbone lives on one device
    _no_split_modules = ["ViTModel", "Dinov2Model"]
    _supports_sdpa = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        PreTrainedModel._init_weights(self, module)
        if isinstance(module, PromptCamForImageClassification):
            # Xavier-uniform as if prompts were patches: sqrt(6 / (patch pixels + D))
            height, width = _pair(self.config.backbone_config.patch_size)
            fan = self.config.backbone_config.num_channels * height * width + self.config.backbone_config.hidden_size
            bound = (6 / fan) ** 0.5
            init.uniform_(module.class_prompts, -bound, bound)
            if module.agnostic_prompts is not None:
                init.uniform_(module.agnostic_prompts, -bound, bound)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        # What the download of a backbone needs too, of what is said about that of the checkpoint
        download = {name: kwargs[name] for name in ("cache_dir", "local_files_only", "token") if name in kwargs}
        loaded = super().from_pretrained(*args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.prompts_only:
            model.load_backbone(**download)
        model.freeze_backbone()  # loading puts new parameters, which require gradients, in the place of the frozen ones
        return loaded

    def save_pretrained(self, save_directory, *args, prompts_only: bool | None = None, **kwargs):
        """
        As of every transformers model, and in a small form: prompts, score head and the backbone's id, a few MB instead
        of hundreds.

        Args:
            prompts_only (`bool`, *optional*): Whether to save the small form. By default as `config.prompts_only` says,
                which this sets: a model keeps the form that it was last saved in.

        Raises:
            ValueError: If the small form is asked for, but where the backbone came from is not known, or its weights
                have been trained.
        """
        config, backbone = cast(Any, self.config), cast(Any, self.backbone)
        trained = [name for name, weight in backbone.named_parameters() if weight.requires_grad]
        if prompts_only is None:
            prompts_only = config.prompts_only
        if prompts_only:
            if config.backbone is None:
                raise ValueError(
                    "prompts_only=True: it is not known where the backbone came from. Build the model with "
                    "from_backbone(<id or folder>), or set config.backbone."
                )
            if trained:
                raise ValueError(f"prompts_only=True would lose the backbone's trained weights, such as {trained[0]}.")
            weights = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = {n: weight for n, weight in weights.items() if not n.startswith("backbone.")}
        elif trained:  # what is saved is no longer what came from there
            config.backbone = config.backbone_revision = None
        config.prompts_only = prompts_only  # once it is sure that it can be
        super().save_pretrained(save_directory, *args, **kwargs)


def _scaled(x: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    return x if factor is None else x * factor


def _pair(size: int | Iterable[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class PromptCamForImageClassification(PromptCamPreTrainedModel):
    """
    A frozen Vision Transformer with learned prompts, one for each class, and one score vector that all classes share.
    Since the vector is shared, a class scores high only if its prompt attends to patches that show its traits: the
    attention of its prompt in the last layer is a map of them, a head a trait.

    The backbone is frozen from construction, in its weights and in its behaviour (none of its own dropout in training).
    Whatever the configuration's attention implementation, attention runs through `scaled_dot_product_attention`.

    Args:
        config ([`PromptCamConfig`]): The configuration. Weights are random; use
            [`~PromptCamForImageClassification.from_backbone`] to start on a pre-trained backbone, `from_pretrained` to
            load a trained model.

    Raises:
        ValueError: If the configuration contradicts itself, or there is no support for the backbone's family.
    """

    backbone: Any  # a module whose parts `BACKBONE_FAMILIES` names

    def __init__(self, config: PromptCamConfig):
        super().__init__(config)
        config.check_consistency()  # again: attributes may have been set since
        backbone_config = config.backbone_config
        family = backbone_family(backbone_config.model_type)
        hidden_size = backbone_config.hidden_size
        num_labels: Any = config.num_labels  # an int; transformers would allow None
        self.num_labels = num_labels
        self.num_heads = backbone_config.num_attention_heads
        self.num_layers = backbone_config.num_hidden_layers

        self.backbone = AutoModel.from_config(backbone_config, **dict(family.init_kwargs))
        self.class_prompts = nn.Parameter(torch.empty(num_labels, hidden_size))
        num_agnostic = (config.num_agnostic_layers, config.num_agnostic_prompts)
        self.agnostic_prompts = nn.Parameter(torch.empty(*num_agnostic, hidden_size)) if all(num_agnostic) else None
        self.prompt_dropout = nn.Dropout(config.prompt_dropout)
        self.score_head = nn.Linear(hidden_size, 1)

        self._any_image_size = family.any_image_size
        self._layers_path = _resolve(self.backbone, family.layers, "layers", backbone_config.model_type)
        self._final_norm_path = _resolve(self.backbone, family.final_norm, "final norm", backbone_config.model_type)
        layer = self.backbone.get_submodule(self._layers_path)[0]
        self._part_paths = {
            name: _resolve(layer, paths, name, backbone_config.model_type) if paths else None
            for name, paths in family.parts.items()
        }
        self._prompt_cache = _PromptCache()
        self.gradient_checkpointing = False
        self.post_init()
        if config.prompts_only:  # `from_pretrained` does without the backbone's weights, and then fetches them
            self._keys_to_ignore_on_load_missing = {r"^backbone\."}
        self.freeze_backbone()
        self.train(self.training)

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike | PreTrainedModel, *, image_size: int | None = None, **config
    ) -> "PromptCamForImageClassification":
        """
        A new Prompt-CAM on a pre-trained backbone: prompts and score head at random, the backbone's weights kept.

        Args:
            backbone (`str`, `os.PathLike` or `PreTrainedModel`): Id on the Hub, local folder, or a loaded model; of a
                classifier or another model with a head the backbone is taken.
            image_size (`int`, *optional*): Pixels of a side of the images to come, if it is to be another than the
                backbone's: its position encoding is interpolated once, here.
            config: What goes into [`PromptCamConfig`], notably `id2label` or `num_labels`.

        Raises:
            ValueError: If the backbone's family is not supported or the configuration contradicts itself.
            OSError: If there is no such model.

        Example:

        ```python
        >>> model = PromptCamForImageClassification.from_backbone(
        ...     "facebook/dino-vitb16", id2label={0: "Baltimore_Oriole", 1: "Scott_Oriole"}
        ... )
        ```
        """
        if not isinstance(backbone, PreTrainedModel):
            backbone, revision = _load_backbone(backbone)
            config = {"backbone": backbone.name_or_path, "backbone_revision": revision} | config
        backbone_config, weights = _encoder_of(backbone, image_size)
        model = cls(PromptCamConfig(backbone_config=backbone_config, **config))
        model.to(device=backbone.device, dtype=backbone.dtype)  # type: ignore[call-arg]
        model._put_backbone(weights)
        return model

    def load_backbone(self, **download) -> None:
        """
        Put the weights of `config.backbone`, at its `backbone_revision`, into the backbone.

        Args:
            download: Arguments of the download, such as `token` or `cache_dir`.

        Raises:
            OSError: If there is no such model.
            ValueError: If it is another architecture than this model's backbone.
        """
        name = self.config.backbone
        try:
            source, revision = _load_backbone(name, revision=self.config.backbone_revision, **download)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise OSError(
                f"This checkpoint holds prompts alone, and its backbone {name!r} cannot be opened ({reason}). If it "
                "lies elsewhere, pass from_pretrained(..., backbone=<id or folder>)."
            ) from None
        own = self.config.backbone_config
        config, weights = _encoder_of(source, own.image_size)
        for what in ("model_type", "num_hidden_layers", "num_attention_heads"):  # which weights may fit all the same
            if getattr(config, what) != getattr(own, what):
                raise ValueError(
                    f"The backbone {name} does not fit this model: its {what} is {getattr(config, what)}, expected "
                    f"{getattr(own, what)}."
                )
        self._put_backbone(weights)
        self.config.backbone_revision = revision

    def _put_backbone(self, weights: dict[str, torch.Tensor]) -> None:
        own = self.backbone.state_dict()
        missing = [name for name in own if name not in weights]  # what is left over, such as a pooler, is no harm
        wrong = [name for name in own if name in weights and weights[name].shape != own[name].shape]
        if missing or wrong:
            what = f"lacks the weights {', '.join(missing)}" if missing else f"has weights of other shapes: {wrong[0]}"
            raise ValueError(f"The backbone {self.config.backbone or ''} does not fit this model: it {what}.")
        self.backbone.load_state_dict({name: weights[name] for name in own})

    def freeze_backbone(self) -> None:
        """Let no gradient reach the backbone's weights."""
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "PromptCamForImageClassification":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        features: torch.Tensor | None = None,
    ) -> PromptCamImageClassifierOutput | tuple:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): True classes, 0 to `num_labels` - 1.
            output_attentions (`bool`, *optional*): Whether to return `attentions`. Their memory is quadratic in the
                number of classes; nothing else is.
            output_hidden_states (`bool`, *optional*): Whether to return `hidden_states`.
            interpolate_pos_encoding (`bool`, *optional*): Whether to adapt the position encoding to images of another
                size than the backbone's. By default as the backbone itself does: ViT no, DINOv2 yes.
            return_dict (`bool`, *optional*): Whether to return a `ModelOutput` (default) or a tuple.
            features (`torch.FloatTensor` of shape `(batch_size, prefix + patches, hidden_size)`, *optional*): In the
                place of `pixel_values`: what `frozen_features` made of them. `hidden_states` then start there.

        Raises:
            ValueError: If `pixel_values`, `features` or `labels` have the wrong shape, type or range.
        """
        if (pixel_values is None) == (features is None):
            raise ValueError("Expected either pixel_values or features.")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        if labels is not None and not torch.compiler.is_compiling():
            batch_size = len(pixel_values if pixel_values is not None else features)  # type: ignore[arg-type]
            self._check_classes("labels", labels, batch_size, dims=(1,))

        attentions: list[torch.Tensor] | None = [] if output_attentions else None
        hidden_states: list[torch.Tensor] | None = [] if output_hidden_states else None
        tokens = self._encode(pixel_values, interpolate_pos_encoding, attentions, hidden_states, features)
        classes = self._class_layer(self.num_layers, tokens, attentions)  # Z_N, (B, C, D)
        logits = self._score(classes)  # (B, C)
        loss = None if labels is None else cross_entropy(_at_least_float32(logits), labels.long())

        if hidden_states is not None:
            hidden_states.append(classes)
        output = PromptCamImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
            attentions=None if attentions is None else tuple(attentions),
        )
        return output if return_dict else output.to_tuple()

    def frozen_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = None) -> torch.Tensor:
        """
        Walk images through the layers before the first that gets prompts. What comes out depends on nothing that is
        trained, so it can be kept and handed to `forward(features=...)`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            interpolate_pos_encoding (`bool`, *optional*): As in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, prefix + patches, hidden_size)`.
        """
        tokens = self._embed(pixel_values, interpolate_pos_encoding)
        for layer in range(1, self.config.first_prompted_layer):
            tokens = self._image_layer(layer, tokens, None, None)
        return tokens

    def trait_maps(self, attention: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """
        Lay out class prompts' attention on the patch grid.

        Args:
            attention (`torch.FloatTensor`, `(batch_size, num_heads, num_labels, num_labels + prefix + patches)`):
                One of a model output's `attentions`, usually the last.
            image_size (`tuple[int, int]`, *optional*):
                Height and width of the `pixel_values` it comes from. Defaults to the backbone's image size.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels, num_heads, grid_height, grid_width)`: the map of
            every class and head, values in [0, 1], not renormalised.

        Raises:
            ValueError: If the attention has fewer columns than images of this size have patches.
        """
        height, width = self._grid(image_size or _pair(self.config.backbone_config.image_size))
        if attention.dim() != 4 or attention.shape[-1] < height * width:
            raise ValueError(
                f"attention of shape {tuple(attention.shape)}: expected (batch, heads, classes, tokens) with at least "
                f"{height * width} tokens, the patches of the {height} x {width} grid. Is image_size right?"
            )
        patches = attention[..., -height * width :]  # prompts and prefix come first
        return patches.unflatten(-1, (height, width)).transpose(1, 2)  # (B, C, H, grid_height, grid_width)

    @torch.no_grad()
    def rank_heads(
        self,
        pixel_values: torch.Tensor,
        classes: torch.Tensor | None = None,
        top_k: int = 1,
        interpolate_pos_encoding: bool | None = None,
    ) -> PromptCamHeadRanking:
        """
        Rank the heads by how much a class's probability needs them (greedy blurring, Section 3.3 of the paper, with the
        original implementation's definition of a blurred head: the class prompt's scores in layer N set to zero, so
        that it attends to all tokens alike).

        In turn, the head is blurred whose blurring leaves the class's probability highest (of equals the lowest), until
        all are. Blurring changes one row of one head in the last layer, and heads add up before the output projection:
        so a candidate is a mix of sharp and blurred head outputs, taken through the rest of the layer for one token.
        All candidates of all images go in one batch.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            classes (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, num_classes)`, *optional*):
                The class or classes to explain for each image. Defaults to the `top_k` that score highest.
            top_k (`int`, *optional*, defaults to 1): How many classes to explain where `classes` is not given.
            interpolate_pos_encoding (`bool`, *optional*): As in `forward`.

        Returns:
            [`PromptCamHeadRanking`]

        Raises:
            ValueError: If an argument has the wrong shape, type or range.
        """
        if classes is not None:
            classes = torch.as_tensor(classes, device=pixel_values.device)
            self._check_classes("classes", classes, len(pixel_values), dims=(1, 2))
            classes = classes.long()
        elif not 1 <= top_k <= self.num_labels:
            raise ValueError(f"top_k={top_k}: expected 1 to {self.num_labels}, the number of classes.")
        tokens = self._encode(pixel_values, interpolate_pos_encoding)
        logits = _at_least_float32(self._score(self._class_layer(self.num_layers, tokens)))  # (B, C)
        chosen = logits.topk(top_k, dim=-1).indices if classes is None else classes.reshape(len(logits), -1)  # (B, K)

        rows, weights, sharp, blurred = self._heads_of_classes(tokens, chosen)
        order, odds = self._blur_greedily(rows, sharp, blurred, logits, chosen)
        sharp_logits, others = _split_off(logits, chosen)  # (B, K), (B, K, C)
        best_other = others.amax(dim=-1) - others.logsumexp(dim=-1)  # (B, K), as log-odds
        sharp_odds = sharp_logits - others.logsumexp(dim=-1)
        wins = torch.cat([sharp_odds[..., None], odds], dim=-1) >= best_other[..., None]  # (B, K, 1 + H)
        # Blurrings that the class survives in a row, the sharp state counted as the first
        survived = wins.long().cumprod(dim=-1).sum(dim=-1)  # (B, K)
        num_sufficient = torch.where(survived > 0, self.num_heads + 1 - survived, 0)

        height, width = self._grid(pixel_values.shape[-2:])
        maps = weights[..., -height * width :].unflatten(-1, (height, width)).transpose(1, 2)  # (B, K, H, h, w)
        results = {
            "order": order,
            "blurred_probability": odds.sigmoid(),
            "num_sufficient": num_sufficient,
            "classes": chosen,
            "trait_maps": maps,
        }
        if classes is not None and classes.dim() == 1:
            results = {name: result.squeeze(1) for name, result in results.items()}
        return PromptCamHeadRanking(**results, logits=logits)

    def _heads_of_classes(
        self, tokens: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """For the chosen classes (B, K), in layer N: what enters it at their prompts (B, K, D), attention weights whose
        last columns are the patches (B, H, K, ...), output of each head sharp (B, K, H, d) and blurred (B, 1, H, d)."""
        parts = self.layer_parts(self.num_layers)
        normed = parts.norm1(tokens)
        key, value = (self._heads(part, normed) for part in (parts.key, parts.value))  # (B, H, S or C + S, d)
        if self.config.class_prompt_layer == self.num_layers:
            entry = self._entry()
            rows = entry.tokens[0, chosen]  # (B, K, D)
            query, among, lse = (
                x[0].transpose(0, 1)[chosen].transpose(1, 2) for x in (entry.query, entry.among, entry.lse)
            )  # (B, H, K, d) or (B, H, K, 1)
            weights = _attention_weights(query, key, lse)  # (B, H, K, 1 + S)
            sharp = weights[..., :1] * among + weights[..., 1:] @ value
            num_tokens = entry.value.shape[2] + value.shape[2]
            blurred = (entry.value.sum(dim=2, keepdim=True) + value.sum(dim=2, keepdim=True)) / num_tokens
        else:
            batch = torch.arange(len(tokens), device=tokens.device)[:, None]
            rows = tokens[batch, chosen]
            weights = _attention_weights(self._heads(parts.query, normed[batch, chosen]), key)  # (B, H, K, C + S)
            sharp, blurred = weights @ value, value.mean(dim=2, keepdim=True)
        return rows, weights, sharp.transpose(1, 2), blurred.transpose(1, 2)

    def _blur_greedily(
        self,
        rows: torch.Tensor,
        sharp: torch.Tensor,
        blurred: torch.Tensor,
        logits: torch.Tensor,
        chosen: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Order (B, K, H), most important head first, and the class's log-odds (B, K, H) after each blurring."""
        parts = self.layer_parts(self.num_layers)
        _, others = _split_off(logits, chosen)
        others = others.logsumexp(dim=-1)  # (B, K): blurring a class's head changes no other class's logit
        is_blurred = torch.zeros(*chosen.shape, self.num_heads, dtype=torch.bool, device=chosen.device)
        order, odds = [], []
        for _ in range(self.num_heads):
            sharp_heads = (~is_blurred).nonzero()[:, -1].view(*chosen.shape, -1)  # (B, K, rest), ascending
            candidates = is_blurred[:, :, None] | nn.functional.one_hot(sharp_heads, self.num_heads).bool()
            mixed = torch.where(candidates[..., None], blurred[:, :, None], sharp[:, :, None])  # (B, K, rest, H, d)
            z = self._residual(parts, rows[:, :, None], mixed.flatten(-2))  # (B, K, rest, D)
            # Log-odds order heads as the probability does, but do not all round to 1 for a class that is certain
            candidate_odds = _at_least_float32(self._score(z)) - others[..., None]  # (B, K, rest)
            best, position = candidate_odds.max(dim=-1, keepdim=True)
            head = sharp_heads.gather(-1, position)  # (B, K, 1)
            is_blurred = is_blurred.scatter(-1, head, True)
            order.append(head)
            odds.append(best)
        return torch.cat(order[::-1], dim=-1), torch.cat(odds, dim=-1)

    # What the layers are made of

    def layer_parts(self, layer: int) -> LayerParts:
        """The parts of layer 1..N, looked up at each use: quantisation and adapters put others in their places."""
        module = self.backbone.get_submodule(self._layers_path)[layer - 1]
        return LayerParts(
            **{
                name: nn.Identity() if path is None else module.get_submodule(path)
                for name, path in self._part_paths.items()
            }
        )

    def _drop_path(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Factors (B, 1, 1) for the two residual branches of a layer: 0 drops an image's branch, the rest make up."""
        rate = self.config.drop_path_rate * (layer - 1) / max(self.num_layers - 1, 1)
        if not self.training or rate == 0.0:
            return None, None
        keep = x.new_full((2, len(x), 1, 1), 1 - rate)
        attention, mlp = torch.bernoulli(keep) / keep
        return attention, mlp

    def _drop_patches(self, image: torch.Tensor) -> torch.Tensor:
        """Image tokens (B, S, D), in training with a part of the patches: [CLS], and others for each image."""
        if not self.training or self.config.patch_dropout == 0.0:
            return image
        batch_size, num_patches, hidden_size = len(image), image.shape[1] - 1, image.shape[2]
        num_kept = max(1, round(num_patches * (1 - self.config.patch_dropout)))
        kept = torch.rand(batch_size, num_patches, device=image.device).argsort(dim=1)[:, :num_kept] + 1
        kept = pad(kept, (1, 0))  # [CLS] comes first
        return image.gather(1, kept[..., None].expand(-1, -1, hidden_size))

    def _residual(
        self,
        parts: LayerParts,
        x: torch.Tensor,
        attended: torch.Tensor,
        drop: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    ) -> torch.Tensor:
        """The rest of a layer, row by row: x (..., D) enters it, attended (..., D) is what its heads gathered."""
        x = x + _scaled(parts.scale1(parts.output(attended)), drop[0])
        if _may_reuse_memory(x) and drop[1] is None:
            x = x.contiguous()
            for rows in x.view(-1, x.shape[-1]).split(max(1, _CHUNK // x.shape[-1])):
                rows += parts.scale2(parts.mlp(parts.norm2(rows)))
            return x
        return x + _scaled(parts.scale2(parts.mlp(parts.norm2(x))), drop[1])

    def _heads(self, projection: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, S, D) -> (B, H, S, d)

    def _grid(self, image_size: tuple[int, int] | torch.Size) -> tuple[int, int]:
        patch_height, patch_width = _pair(self.config.backbone_config.patch_size)
        return image_size[0] // patch_height, image_size[1] // patch_width

    # Prompts

    def _agnostic(self, layer: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Keys and values (1, H, P, d) of a layer's class-agnostic prompts, if it has any."""
        index = layer - self.config.first_prompted_layer
        if self.agnostic_prompts is None or not 0 <= index < len(self.agnostic_prompts):
            return None, None
        parts, prompts = self.layer_parts(layer), self.agnostic_prompts[index]

        def compute() -> tuple[torch.Tensor, ...]:
            normed = parts.norm1(self.prompt_dropout(prompts)[None])  # (1, P, D)
            return self._heads(parts.key, normed), self._heads(parts.value, normed)

        key, value = self._once(layer, prompts, (parts.norm1, parts.key, parts.value), compute)
        return key, value

    def _entry(self) -> EntryPrompts:
        """The class prompts as they are to the layer in which they enter."""
        parts = self.layer_parts(self.config.class_prompt_layer)

        def compute() -> tuple[torch.Tensor, ...]:
            tokens = self.prompt_dropout(self.class_prompts)[None]  # (1, C, D)
            normed = parts.norm1(tokens)
            query, key, value = (self._heads(part, normed) for part in (parts.query, parts.key, parts.value))
            return tokens, query, key, value, *_attend_among(query, key, value)

        modules = (parts.norm1, parts.query, parts.key, parts.value)
        return EntryPrompts(*self._once(self.config.class_prompt_layer, self.class_prompts, modules, compute))

    def _once(
        self,
        layer: int,
        prompts: torch.Tensor,
        modules: tuple[nn.Module, ...],
        compute: Callable[[], tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        """What `compute` makes of a layer's prompts and modules: kept from the last time where it must be the same."""
        device = prompts.device.type
        changing = self.training or torch.is_grad_enabled() or torch.is_autocast_enabled(device)
        # On an accelerator the comparison would wait for the device, and computing prompts anew costs next to nothing
        if changing or _is_recorded() or device != "cpu" or not all(map(_depends_on_weights_alone, modules)):
            return compute()
        weights = [prompts, *(weight for module in modules for weight in module.parameters())]
        weights.append(torch.tensor([module.eps for module in modules if isinstance(module, nn.LayerNorm)]))
        return self._prompt_cache.get(layer, weights, compute)

    # The layers, in the order in which an image meets them

    def _encode(
        self,
        pixel_values: torch.Tensor | None,
        interpolate_pos_encoding: bool | None,
        attentions: list[torch.Tensor] | None = None,
        hidden_states: list[torch.Tensor] | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What enters layer N: image tokens (B, S, D), after class tokens (B, C, D) if they entered a layer before."""
        if features is None:
            first, tokens = 1, self._embed(pixel_values, interpolate_pos_encoding)
        else:
            first, tokens = self.config.first_prompted_layer, self._check_features(features)
        if hidden_states is not None and torch.is_grad_enabled() and not tokens.requires_grad:
            tokens.requires_grad_()  # who asks for hidden states may want their gradients, frozen embeddings or not
        for layer in range(first, self.num_layers + 1):
            if layer == self.config.first_prompted_layer:
                tokens = self._drop_patches(tokens)
            if hidden_states is not None:
                hidden_states.append(tokens)
            if layer == self.num_layers:
                break
            if layer < self.config.class_prompt_layer:
                tokens = self._checkpointed(self._image_layer, layer, tokens, *self._agnostic(layer))
            else:
                tokens = self._class_layer(layer, tokens, attentions)
        return tokens

    def _checkpointed(self, function: Callable, *args):
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(function, *args)
        return function(*args)

    def _embed(self, pixel_values: Any, interpolate_pos_encoding: bool | None) -> torch.Tensor:
        """E_0, x_0: image tokens (B, S, D), prefix first."""
        config = self.config.backbone_config
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != config.num_channels or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values of shape {shape} and type {pixel_values.dtype}: expected floats of shape "
                f"(batch_size, {config.num_channels}, height, width)."
            )
        if interpolate_pos_encoding is None:
            interpolate_pos_encoding = self._any_image_size
        expected = _pair(config.image_size)
        if not interpolate_pos_encoding and shape[2:] != expected:
            raise ValueError(
                f"pixel_values of {shape[2]} x {shape[3]} pixels: the model expects {expected[0]} x {expected[1]}. "
                "Resize them, or pass interpolate_pos_encoding=True."
            )
        if 0 in self._grid(shape[2:]):
            raise ValueError(f"pixel_values of {shape[2]} x {shape[3]} pixels: smaller than a patch.")
        kwargs = {} if self._any_image_size else {"interpolate_pos_encoding": interpolate_pos_encoding}
        return self.backbone.embeddings(pixel_values.to(self.backbone.dtype), **kwargs)

    def _image_layer(
        self, layer: int, image: torch.Tensor, prompt_key: torch.Tensor | None, prompt_value: torch.Tensor | None
    ) -> torch.Tensor:
        """E_i, x_i (B, S, D) of a layer before the class prompts enter. Its own prompts, if it has any, are keys and
        values (1, H, P, d) that the image tokens attend to besides themselves."""
        parts = self.layer_parts(layer)
        normed = parts.norm1(image)
        query, key, value = (self._heads(part, normed) for part in (parts.query, parts.key, parts.value))
        if prompt_key is None or prompt_value is None:
            attended = scaled_dot_product_attention(query, key, value)
        else:
            attended = _attend_with_prompts(query, key, value, prompt_key, prompt_value)
        return self._residual(parts, image, _merge_heads(attended), self._drop_path(layer, image))

    def _class_layer(
        self, layer: int, tokens: torch.Tensor, attentions: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """[Z_i, E_i, x_i] (B, C + S, D), of layer N only Z_N (B, C, D): a layer from the one on in which the class
        prompts enter. Its attention weights go to `attentions`."""
        with_weights = attentions is not None
        if layer == self.config.class_prompt_layer:
            tokens, weights = self._checkpointed(self._entry_layer, layer, tokens, with_weights, *self._entry())
        else:
            tokens, weights = self._checkpointed(self._flow_layer, layer, tokens, with_weights)
        if attentions is not None:
            attentions.append(weights)
        return tokens

    def _entry_layer(
        self, layer: int, image: torch.Tensor, with_weights: bool, *entry: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layer in which the class prompts enter: image tokens (B, S, D) come in."""
        parts, prompts = self.layer_parts(layer), EntryPrompts(*entry)
        drop, weights = self._drop_path(layer, image), None
        normed = parts.norm1(image)
        key, value = (self._heads(part, normed) for part in (parts.key, parts.value))  # (B, H, S, d)
        if with_weights:
            weights = _attention_weights(prompts.query, _prepend(prompts.key, key))  # (B, H, C, C + S)
            attended = weights @ _prepend(prompts.value, value)  # (B, H, C, d)
        else:
            attended = _attend_from_entry(prompts, key, value)
        classes = self._residual(parts, prompts.tokens, _merge_heads(attended), drop)  # (B, C, D)
        if layer == self.num_layers:
            return classes, weights
        attended = _attend_with_prompts(self._heads(parts.query, normed), key, value, prompts.key, prompts.value)
        image = self._residual(parts, image, _merge_heads(attended), drop)
        return torch.cat([classes, image], dim=1), weights

    def _flow_layer(
        self, layer: int, tokens: torch.Tensor, with_weights: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A layer through which the class prompts flow: class and image tokens (B, C + S, D) come in."""
        parts, weights, num_classes = self.layer_parts(layer), None, self.num_labels
        drop = self._drop_path(layer, tokens)
        normed = parts.norm1(tokens)
        key, value = (self._heads(part, normed) for part in (parts.key, parts.value))  # (B, H, C + S, d)
        if layer == self.num_layers:
            tokens, normed = tokens[:, :num_classes], normed[:, :num_classes]
        query = self._heads(parts.query, normed)  # (B, H, C or C + S, d)
        if with_weights:
            weights = _attention_weights(query[:, :, :num_classes], key)  # (B, H, C, C + S)
            image = scaled_dot_product_attention(query[:, :, num_classes:], key, value)
            attended = torch.cat([weights @ value, image], dim=2)
        else:
            attended = scaled_dot_product_attention(query, key, value)
        return self._residual(parts, tokens, _merge_heads(attended), drop), weights

    def _score(self, classes: torch.Tensor) -> torch.Tensor:
        """s = w . norm(z) + b: (..., D) -> (...)"""
        return self.score_head(self.backbone.get_submodule(self._final_norm_path)(classes)).squeeze(-1)

    # Checks at the door

    def _check_features(self, features: torch.Tensor) -> torch.Tensor:
        hidden_size, shape = self.config.backbone_config.hidden_size, tuple(features.shape)
        if len(shape) != 3 or shape[-1] != hidden_size or not features.is_floating_point():
            raise ValueError(
                f"features of shape {shape} and type {features.dtype}: expected floats of shape (batch_size, tokens, "
                f"{hidden_size}), as frozen_features returns them."
            )
        return features.to(self.backbone.dtype)

    def _check_classes(self, name: str, classes: torch.Tensor, batch_size: int, dims: tuple[int, ...]) -> None:
        integer = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
        if not integer or classes.dim() not in dims or len(classes) != batch_size or not classes.numel():
            raise ValueError(
                f"{name} of shape {tuple(classes.shape)} and type {classes.dtype}: expected integers, for each of the "
                f"{batch_size} images {'one' if dims == (1,) else 'one or more'}."
            )
        wrong = classes[(classes < 0) | (classes >= self.num_labels)]
        if len(wrong):
            raise ValueError(
                f"{name} holds {wrong[0].item()}: expected 0 to {self.num_labels - 1}, as num_labels says."
            )


def _split_off(logits: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, K) of the chosen classes, and all logits with that class's at minus infinity (B, K, C)."""
    others = logits[:, None].expand(-1, chosen.shape[1], -1).scatter(-1, chosen[..., None], -torch.inf)
    return logits.gather(-1, chosen), others


PromptCamForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["PromptCamForImageClassification", "PromptCamPreTrainedModel"]
