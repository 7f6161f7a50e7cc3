"""Prompt-CAM: a frozen Vision Transformer that classifies by where its class prompts look.

Reference: Chowdhury et al., "Prompt-CAM: Making Vision Transformers Interpretable for Fine-Grained Analysis", CVPR 2025
(arXiv 2501.09333). Notation: layers L_1..L_N, patch features E_i, [CLS] token x_i, prompts P, outputs Z at the prompts'
places, logits s[c] = w . z_N^c + b.

The textbook forward pass concatenates prompts and image tokens in every layer. This one computes the same numbers for
less, thanks to three facts (see `_layer`):

1. The output of a class-agnostic prompt is thrown away. Such a prompt needs a key and a value, nothing else.
2. Prompts that enter a layer are the same for every image. They are projected once per batch, or once for many batches
   (see `cached_prompts`).
3. Of layer N, only the class prompts are scored.

Shapes: B images, C classes, P prompts, S image tokens (prefix and patches), H heads of size d, D = H * d.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .attention_promptcam import Prompts, at_least_float32, attend, attend_uniformly, project, with_prompts
from .backbone_promptcam import (
    FINAL_NORM,
    FIRST_NORM,
    LAYERS,
    LayerParts,
    call,
    family_of,
    find,
    new_backbone,
    num_prefix_tokens,
    pair,
    rotary_positions,
    rotate,
)
from .comparison_promptcam import PromptCamComparison, compare, contributions
from .configuration_promptcam import PromptCamConfig
from .dropout_promptcam import DropPath, PatchDropout
from .head_ranking_promptcam import LastLayer, PromptCamHeadRanking, rank_heads
from .pretrained_promptcam import PromptCamPreTrainedModel

# What `cached_prompts` keeps, by the id of each model in such a context: the projected prompts by layer. Every thread
# and task sees its own.
_PROMPT_CACHE: ContextVar[dict | None] = ContextVar("promptcam_prompt_cache", default=None)


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
            the class prompts, `(batch_size, num_labels, hidden_size)`. In training, `patch_dropout` leaves fewer
            patches from the first prompted layer on, here and in `attentions`.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
            For each layer in which class prompts are queries (`class_prompt_layer` to N) the attention weights after
            softmax, `(batch_size, num_heads, num_labels, num_labels + prefix + patches)`, in [0, 1]: rows are class
            prompts, columns are class prompts, [CLS] and the like, patches. `attentions[-1]` is the trait attention,
            which [`~PromptCamForImageClassification.trait_maps`] turns into maps.
        blurred_logits (`torch.FloatTensor` of shape `(batch_size,)`, *optional*, returned with `blurred_classes`):
            Scores of these classes if all heads of their prompt were blurred: if they attended to all tokens equally.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    blurred_logits: torch.Tensor | None = None


class PromptCamForImageClassification(PromptCamPreTrainedModel):
    """
    A frozen Vision Transformer with learned prompts, one for each class, and one score vector that all classes share.
    Because the vector is shared, a class scores high only if its prompt attends to patches that show its traits. The
    attention of its prompt in the last layer, head by head, is a map of those traits.

    The backbone is frozen from construction: its weights get no gradient, and its own dropout stays off in training.
    Whatever the configuration's attention implementation, attention runs through `scaled_dot_product_attention`.
    Forward hooks on the backbone's layers run, with the tokens that enter and leave; those on the backbone itself and
    on its attention do not, since neither is called.

    Args:
        config ([`PromptCamConfig`]): The configuration. Weights are random; use
            [`~PromptCamForImageClassification.from_backbone`] to start from a pre-trained backbone, `from_pretrained`
            to load a trained model.

    Raises:
        ValueError: If the configuration contradicts itself, or the backbone's family is not supported.
    """

    def __init__(self, config: PromptCamConfig):
        super().__init__(config)
        config.validate_architecture()  # again: attributes may have been set since
        backbone_config, num_labels = config.backbone_config, cast(Any, config.num_labels)
        hidden_size = backbone_config.hidden_size
        self.num_labels = num_labels
        self.num_heads = backbone_config.num_attention_heads
        self.num_layers = backbone_config.num_hidden_layers
        self.num_prefix_tokens = num_prefix_tokens(backbone_config)

        self.backbone = new_backbone(backbone_config)
        self.class_prompts = nn.Parameter(torch.empty(num_labels, hidden_size))
        agnostic = torch.empty(config.num_agnostic_layers, config.num_agnostic_prompts, hidden_size)
        self.agnostic_prompts = nn.Parameter(agnostic) if agnostic.numel() else None
        self.prompt_dropout = nn.Dropout(config.prompt_dropout)
        self.patch_dropout = PatchDropout(config.patch_dropout, self.num_prefix_tokens)
        rates = torch.linspace(0, config.drop_path_rate, self.num_layers, device="cpu").tolist()
        self.drop_paths = nn.ModuleList([DropPath(rate) for rate in rates])
        self.score_head = nn.Linear(hidden_size, 1)
        for module in self.backbone.modules():  # marked, since a list would keep alive those that quantisation replaces
            module.is_frozen = True
        self.layer_parts(1)  # fails here if this release of transformers names them otherwise

        self.gradient_checkpointing = False
        self.post_init()
        if config.prompts_only:  # `from_pretrained` does without the backbone's weights, and then fetches them
            self._keys_to_ignore_on_load_missing = {r"^backbone\."}
        self.freeze_backbone()
        self.train(self.training)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        features: torch.Tensor | None = None,
        blurred_classes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> PromptCamImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): True classes, 0 to `num_labels` - 1.
            output_attentions (`bool`, *optional*): Whether to return `attentions`. Their memory is quadratic in the
                number of classes; nothing else is.
            output_hidden_states (`bool`, *optional*): Whether to return `hidden_states`.
            interpolate_pos_encoding (`bool`, *optional*): Whether to interpolate the position embeddings to the size of
                the images. By default only if it differs from the backbone's image size.
            return_dict (`bool`, *optional*): Whether to return a `ModelOutput` (default) or a tuple.
            features (`torch.FloatTensor` of shape `(batch_size, prefix + patches, hidden_size)`, *optional*): Output of
                `frozen_features`, in place of `pixel_values`. `hidden_states` then start there.
            blurred_classes (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Whose `blurred_logits` to return.
            kwargs: Ignored, as by transformers' models: what `Trainer` and other tools pass to every model.

        Raises:
            ValueError: If an argument has the wrong shape, type or range.
        """
        if (pixel_values is None) == (features is None):
            raise ValueError("Expected either pixel_values or features.")
        with_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions: list[torch.Tensor] | None = [] if with_attentions else None
        hidden_states: list[torch.Tensor] | None = [] if with_states else None
        tokens, positions = (
            self._embed(pixel_values, interpolate_pos_encoding) if features is None else self._checked(features)
        )
        labels, blurred_classes = (
            None if classes is None else self._checked_classes(name, classes, tokens, dims=(1,))
            for name, classes in (("labels", labels), ("blurred_classes", blurred_classes))
        )
        if with_states and torch.is_grad_enabled() and not tokens.requires_grad:
            tokens = tokens.detach().requires_grad_()  # who asks for hidden states may want their gradients
        first, prompts = self.config.first_prompted_layer, self._prompts()
        if features is None:
            tokens = self._walk(range(1, first), tokens, positions, {}, hidden_states)
        tokens, positions = self.patch_dropout(tokens, positions)
        layers = range(first, self.num_layers + 1)
        tokens = self._walk(layers, tokens, positions, prompts, hidden_states, attentions, blurred_classes)
        tokens, blurred = (tokens, None) if blurred_classes is None else (tokens[:, :-1], tokens[:, -1])
        logits = self._score(tokens)  # of Z_N: (B, C)
        return PromptCamImageClassifierOutput(
            loss=None if labels is None else cross_entropy(at_least_float32(logits), labels.long().to(logits.device)),
            logits=logits,
            hidden_states=None if hidden_states is None else (*hidden_states, tokens),
            attentions=None if attentions is None else tuple(attentions),
            blurred_logits=None if blurred is None else self._score(blurred),
        )

    def _walk(
        self,
        layers: range,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        prompts: dict[int, torch.Tensor],
        hidden_states: list | None = None,
        attentions: list | None = None,
        blurred_classes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens from layer to layer. What enters each layer, and its attention weights, are added to the lists."""
        for layer in layers:
            if hidden_states is not None:
                hidden_states.append(tokens)
            blurred = blurred_classes if layer == self.num_layers else None
            arguments = (layer, attentions is not None, tokens, positions, prompts.get(layer), blurred)
            if self.gradient_checkpointing and self.training:
                tokens, weights = self._gradient_checkpointing_func(self._layer, *arguments)
            else:
                tokens, weights = self._layer(*arguments)
            if attentions is not None and weights is not None:
                attentions.append(weights)
        return tokens

    def _embed(
        self, pixel_values: Any, interpolate_pos_encoding: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x_0, E_0: image tokens (B, S, D), and their rotary positions, if they have any."""
        config, shape = self.config.backbone_config, tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != config.num_channels or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values of shape {shape} and type {pixel_values.dtype}: expected floats of shape "
                f"(batch_size, {config.num_channels}, height, width)."
            )
        expected = pair(config.image_size)
        if interpolate_pos_encoding is False and shape[2:] != expected:
            raise ValueError(
                f"pixel_values of {shape[2]} x {shape[3]} pixels: the model expects {expected[0]} x {expected[1]}. "
                "Resize them, or pass interpolate_pos_encoding=True."
            )
        if 0 in self.grid(shape[2:]):
            raise ValueError(f"pixel_values of {shape[2]} x {shape[3]} pixels: smaller than a patch.")
        any_size = family_of(config.model_type).any_size
        kwargs = {} if any_size else {"interpolate_pos_encoding": shape[2:] != expected}
        tokens = self.backbone.embeddings(pixel_values.to(self._dtype()), **kwargs)
        tokens = find(self.backbone, FIRST_NORM, optional=True)(tokens)
        return tokens, rotary_positions(self.backbone, shape[2:], tokens)

    def _prompts(self) -> dict[int, torch.Tensor]:
        """The prompts (P, D) by the layer in which they enter."""
        # Unbound at once, so that their gradients are stacked, not added up in a tensor per layer
        agnostic = () if self.agnostic_prompts is None else self.agnostic_prompts.unbind()
        first, last = self.config.first_prompted_layer, self.config.class_prompt_layer
        return dict(enumerate(agnostic, start=first)) | {last: self.class_prompts}

    def _layer(
        self,
        layer: int,
        with_weights: bool,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        prompts: torch.Tensor | None,
        blurred_classes: torch.Tensor | None = None,
        seen: list | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """L_i: [Z_i, x_i, E_i] (B, C + S, D), and the class prompts' attention weights (B, H, C, C + S) if asked for.

        Rows attend to all tokens and prompts. The outputs of class-agnostic prompts are not used, so they are no rows
        (fact 1); of layer N only the class prompts are (fact 3), and a blurred copy of each image's class in
        `blurred_classes` (B), if given. Rows, queries, keys and values are added to `seen`."""
        num_weights = self.num_labels if with_weights and layer >= self.config.class_prompt_layer else 0

        def forward(tokens: torch.Tensor, positions: torch.Tensor | None, prompts: torch.Tensor | None) -> Any:
            parts, batch_size, entering = self.layer_parts(layer), tokens.shape[0], None
            if prompts is not None and layer == self.config.class_prompt_layer < self.num_layers:
                # They flow on to further layers, and so become tokens like all others
                prompts = self.prompt_dropout(prompts).to(tokens.dtype).expand(batch_size, -1, -1)
                tokens = torch.cat([prompts, tokens], dim=1)  # [Z, x, E], (B, C + S, D)
            elif prompts is not None:
                entering = self._projected(layer, prompts)

            normed = parts.norm1(tokens)
            key, value = rotate(self._heads(parts.key, normed), positions), self._heads(parts.value, normed)
            if layer < self.num_layers:
                rows, query = tokens, rotate(self._heads(parts.query, normed), positions)
            elif entering is None:  # the class prompts have entered before
                rows, query = tokens[:, : self.num_labels], self._heads(parts.query, normed[:, : self.num_labels])
            else:
                rows = entering.tokens.expand(batch_size, -1, -1)
                query = cast(torch.Tensor, entering.query).expand(batch_size, -1, -1, -1)
            if seen is not None:
                seen.extend((rows, query, *with_prompts(key, value, entering)))

            attended, weights = attend(query, key, value, entering, num_weights)  # (B, rows, D)
            if blurred_classes is not None:
                image = torch.arange(batch_size, device=rows.device)
                rows = torch.cat([rows, rows[image, blurred_classes][:, None]], dim=1)
                attended = torch.cat([attended, attend_uniformly(value, entering)], dim=1)
            tokens = parts.residual(rows, attended, self.drop_paths[layer - 1])
            return tokens if weights is None else (tokens, weights)

        output = call(find(self.backbone, LAYERS)[layer - 1], forward, tokens, positions, prompts)
        return output if isinstance(output, tuple) else (output, None)

    def _projected(self, layer: int, prompts: torch.Tensor) -> Prompts:
        """Fact 2: prompts (P, D) as the layer in which they enter sees them, from the cache if there is one."""
        is_cached = not (torch.compiler.is_compiling() or self.training or torch.is_grad_enabled())
        cache = (_PROMPT_CACHE.get() or {}).get(id(self)) if is_cached else None
        if cache is None:
            return self._project(layer, prompts)
        device = prompts.device
        autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        key = (layer, device, autocast and torch.get_autocast_dtype(device.type))
        if key not in cache:
            cache[key] = self._project(layer, prompts)
        return cache[key]

    def _project(self, layer: int, prompts: torch.Tensor) -> Prompts:
        parts = self.layer_parts(layer)
        tokens = self.prompt_dropout(prompts)[None].to(parts.norm1.weight.dtype)  # (1, P, D)
        normed = parts.norm1(tokens)
        query = self._heads(parts.query, normed) if layer == self.num_layers else None  # fact 1
        return project(tokens, query, self._heads(parts.key, normed), self._heads(parts.value, normed))

    def layer_parts(self, layer: int) -> LayerParts:
        """The parts of layer 1..N, looked up at each use: quantisation and adapters replace modules."""
        return LayerParts.of(find(self.backbone, LAYERS)[layer - 1])

    def _dtype(self) -> torch.dtype:
        """Of the backbone's arithmetic. Not `backbone.dtype`, which fails in the replicas of `nn.DataParallel`."""
        return find(self.backbone, FINAL_NORM).weight.dtype

    def _heads(self, projection: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, S, D) -> (B, H, S, d)

    def _score(self, classes: torch.Tensor) -> torch.Tensor:
        """s = w . norm(z) + b: (..., D) -> (...)"""
        normed = find(self.backbone, FINAL_NORM)(classes)
        return self.score_head(normed.to(self.class_prompts.dtype)).squeeze(-1)

    @contextmanager
    def cached_prompts(self, cache: dict | None = None) -> Iterator[None]:
        """
        Within this context, project the prompts that enter a layer once, not once per batch, as
        `torch.nn.utils.parametrize.cached` does with parametrised weights. It has no effect in training mode, while
        gradients are recorded, and on other threads. Leave the context before the weights change. Do not
        `yield` within it: the caller would then be in it, too. Nested contexts of one model share what they keep.

        Args:
            cache (`dict`, *optional*): Where to keep the projected prompts, for contexts that follow. Default: they
                are gone when the context is left.
        """
        caches = _PROMPT_CACHE.get() or {}
        token = _PROMPT_CACHE.set({id(self): {} if cache is None else cache} | caches)
        try:
            yield
        finally:
            _PROMPT_CACHE.reset(token)

    def frozen_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Walk images through the layers before the first that gets prompts. The result depends on nothing that is
        trained, so it can be stored and passed to `forward(features=...)`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, prefix + patches, hidden_size)`.
        """
        features = self._walk(range(1, self.config.first_prompted_layer), *self._embed(pixel_values), prompts={})
        return features.contiguous()  # SigLIP's are not, and these are to be stored

    def states_without_prompts(self, features: torch.Tensor) -> list[torch.Tensor]:
        """The tokens (B, S, D) that would enter each layer from the first prompted one to that in which class prompts
        enter, if there were no prompts, from `frozen_features`."""
        layers = range(self.config.first_prompted_layer, self.config.class_prompt_layer)
        entering: list[torch.Tensor] = []
        last = self._walk(layers, *self._checked(features), prompts={}, hidden_states=entering)
        return [*entering, last]

    def trait_maps(self, attention: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """
        Arrange the class prompts' attention on the patch grid.

        Args:
            attention (`torch.FloatTensor`, `(batch_size, num_heads, num_labels, num_labels + prefix + patches)`):
                One of a model output's `attentions`, usually the last.
            image_size (`tuple[int, int]`, *optional*):
                Height and width in pixels of the `pixel_values` it comes from. Defaults to the backbone's image size.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels, num_heads, grid_height, grid_width)`: the map of
            every class and head, values in [0, 1], not renormalised.

        Raises:
            ValueError: If the number of columns is not the one of images of this size.
        """
        image_size = pair(image_size or self.config.backbone_config.image_size)
        height, width = self.grid(image_size)
        num_columns = self.num_labels + self.num_prefix_tokens + height * width
        if attention.dim() != 4 or attention.shape[-1] != num_columns:
            raise ValueError(
                f"attention of shape {tuple(attention.shape)}: expected (batch, heads, classes, {num_columns}) for the "
                f"{height} x {width} patch grid. Is image_size, the height and width of pixel_values, right?"
            )
        return self.on_grid(attention, image_size)

    def on_grid(self, values: torch.Tensor, image_size: tuple[int, ...]) -> torch.Tensor:
        """The columns of patches of (B, H, K, C + S), for images of `image_size` pixels: (B, K, H, grid_height,
        grid_width)."""
        height, width = self.grid(image_size)
        patches = values[..., -height * width :]  # prompts and prefix tokens come first
        return patches.unflatten(-1, (height, width)).transpose(1, 2)

    def grid(self, image_size: tuple[int, ...]) -> tuple[int, int]:
        """Height and width, in patches, of an image of this height and width in pixels."""
        patch_height, patch_width = pair(self.config.backbone_config.patch_size)
        return image_size[0] // patch_height, image_size[1] // patch_width

    @torch.no_grad()
    def rank_heads(
        self, pixel_values: torch.Tensor, classes: torch.Tensor | None = None, top_k: int = 1
    ) -> PromptCamHeadRanking:
        """
        Rank the heads by how much a class's probability needs them: greedy blurring (Section 3.3 of the paper), with
        the original implementation's definition of a blurred head (the class prompt's scores in layer N are set to
        zero, so that it attends to all tokens equally). No head needs another pass through the network.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            classes (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, num_classes)`, *optional*):
                The class or classes to explain for each image. Defaults to the `top_k` that score highest.
            top_k (`int`, *optional*, defaults to 1): How many classes to explain if `classes` is not given.

        Returns:
            [`PromptCamHeadRanking`]

        Raises:
            ValueError: If an argument has the wrong shape, type or range.
        """
        if classes is not None:
            classes = self._checked_classes("classes", classes, pixel_values, dims=(1, 2))
        elif not 1 <= top_k <= self.num_labels:
            raise ValueError(f"top_k={top_k}: expected 1 to {self.num_labels}, the number of classes.")
        return rank_heads(self, self.last_layer(pixel_values), classes, top_k)

    @torch.no_grad()
    def contributions(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """
        What each patch gives to a class's logit through each head: attention weight x <gradient of the logit by what
        the head gathers, value of the patch>, as `comparison_promptcam.py` defines it. The gradient is averaged on the
        way from heads that gather nothing to what they gather (integrated gradients).

        Summed over all heads and all tokens, [CLS] and prompts included, contributions are the difference between the
        logit and what it would be if the heads gathered nothing, but for the error of averaging over few points. They
        are of layer N alone: attention weights stay as they are, and what earlier layers mixed into a patch counts as
        the patch.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            classes (`torch.LongTensor` of shape `(batch_size, num_classes)`): Classes of each image.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_classes, num_heads, grid_height, grid_width)`, in units of
            the logit, of any sign; float32 at least.

        Raises:
            ValueError: If an argument has the wrong shape, type or range.
        """
        classes = self._checked_classes("classes", classes, pixel_values, dims=(2,))
        layer = self.last_layer(pixel_values)
        return contributions(self, layer, *layer.gather(classes.long()))

    @torch.no_grad()
    def compare(
        self, pixel_values: torch.Tensor, a: torch.Tensor | None = None, b: torch.Tensor | None = None
    ) -> PromptCamComparison:
        """
        What, on each image, speaks for class a and against class b: the difference of their
        [`~PromptCamForImageClassification.contributions`]. It costs little more than a forward pass.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            a (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, num_classes)`, *optional*):
                The class or classes to explain for each image. Defaults to the one that scores highest.
            b (`torch.LongTensor` of the same shape, *optional*):
                What to compare them with. Defaults to the runner-up of each, the other class that scores highest,
                which also takes the place of a class that would be compared with itself.

        Returns:
            [`PromptCamComparison`]

        Raises:
            ValueError: If an argument has the wrong shape, type or range.
        """
        if a is None and b is not None:
            raise ValueError("b is given without a: expected both, or a alone, or none.")
        a, b = (
            None if classes is None else self._checked_classes(name, classes, pixel_values, dims=(1, 2))
            for name, classes in (("a", a), ("b", b))
        )
        if a is not None and b is not None and a.shape != b.shape:
            raise ValueError(f"a of shape {tuple(a.shape)}, b of shape {tuple(b.shape)}: expected the same shape.")
        return compare(self, self.last_layer(pixel_values), a, b)

    def last_layer(self, pixel_values: torch.Tensor) -> LastLayer:
        """What layer N computes of images (B, channels, height, width)."""
        last, prompts = self.num_layers, self._prompts()
        seen: list[torch.Tensor] = []
        tokens, positions = self._embed(pixel_values)
        tokens = self._walk(range(1, last), tokens, positions, prompts)
        z, _ = self._layer(last, False, tokens, positions, prompts.get(last), seen=seen)
        rows, query, key, value = seen
        return LastLayer(rows, query, key, value, at_least_float32(self._score(z)), tuple(pixel_values.shape[-2:]))

    def score_attended(self, rows: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Logits (...) of class prompts from their rows (..., D) of layer N and what their heads gathered (..., D)."""
        return at_least_float32(self._score(self.layer_parts(self.num_layers).residual(rows, attended)))

    def _checked(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features, and the rotary positions of images of the model's own size, or of square ones, if they have any."""
        hidden_size, shape = self.config.backbone_config.hidden_size, tuple(features.shape)
        if len(shape) != 3 or shape[-1] != hidden_size or not features.is_floating_point():
            raise ValueError(
                f"features of shape {shape} and type {features.dtype}: expected floats of shape (batch_size, tokens, "
                f"{hidden_size}), as frozen_features returns them."
            )
        features = features.to(self._dtype())
        if not family_of(self.config.backbone_config.model_type).rotary:
            return features, None
        size, num_prefix = pair(self.config.image_size), self.num_prefix_tokens
        expected = num_prefix + math.prod(self.grid(size))
        if shape[1] != expected:  # of crops to train on, for example
            side = math.isqrt(max(shape[1] - num_prefix, 0))
            height, width = pair(self.config.backbone_config.patch_size)
            size = (side * height, side * width)
        positions = cast(torch.Tensor, rotary_positions(self.backbone, size, features))
        if shape[1] != positions.shape[1]:
            raise ValueError(
                f"features of {shape[1]} tokens: expected {expected}, those of images of the model's image size, or "
                "those of square images, since this backbone's layers need the patches' positions."
            )
        return features, positions

    def _checked_classes(self, name: str, classes: Any, images: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        """Classes of each image."""
        classes = torch.as_tensor(classes, device=images.device)
        integer = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
        if not integer or classes.dim() not in dims or classes.shape[0] != images.shape[0] or 0 in classes.shape[1:]:
            raise ValueError(
                f"{name} of shape {tuple(classes.shape)} and type {classes.dtype}: expected integers, for each of the "
                f"{len(images)} images {'one' if dims == (1,) else 'one or more'}."
            )
        if torch.compiler.is_compiling():  # a graph has no values yet
            return classes
        wrong = classes[(classes < 0) | (classes >= self.num_labels)]
        if len(wrong):
            raise ValueError(f"{name} holds {wrong[0].item()}: expected 0 to {self.num_labels - 1} (num_labels).")
        return classes


PromptCamForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["PromptCamForImageClassification"]
