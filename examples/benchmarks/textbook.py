"""Prompt-CAM the textbook way: prompts are concatenated to the sequence, and the backbone's layers are called as they
are, with attention weights computed everywhere. Nothing is skipped and nothing is cached.

It takes the weights of a model, but none of its code. The tests compare numbers with it, the benchmark compares speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy, dropout
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from promptcam_hf import PromptCamForImageClassification


class TextbookPromptCam:
    """The textbook forward pass with the weights of `model`."""

    def __init__(self, model: PromptCamForImageClassification):
        self.model = model
        backbone = model.backbone
        encoder = getattr(backbone, "encoder", getattr(backbone, "model", backbone))  # DINOv3's is its `model`
        self.layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
        norms = [getattr(backbone, name, None) for name in ("layernorm", "norm", "post_layernorm")]
        (self.final_norm,) = (norm for norm in norms if norm is not None)
        self.attentions: list[torch.Tensor] = []  # of every layer, (B, H, P + S, P + S)
        self._blur: tuple[int, list[int]] | None = None  # class and heads, in the last layer

    def __call__(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        """Logits (B, C)."""
        return self.forward(pixel_values, **kwargs)

    def forward(self, pixel_values: torch.Tensor, **embeddings_kwargs) -> torch.Tensor:
        model, config = self.model, self.model.config
        self.attentions = []
        with self._eager():
            sequence = model.backbone.embeddings(pixel_values, **embeddings_kwargs)
            if hasattr(model.backbone, "pre_layrnorm"):  # CLIP
                sequence = model.backbone.pre_layrnorm(sequence)
            layer_kwargs = {"attention_mask": None} if hasattr(self.layers[0], "self_attn") else {}  # CLIP, SigLIP
            if hasattr(model.backbone, "rope_embeddings"):  # DINOv3, which rotates the last tokens, the patches
                layer_kwargs["position_embeddings"] = model.backbone.rope_embeddings(pixel_values)
            for number, layer in enumerate(self.layers, start=1):
                prompts = None
                if number == config.class_prompt_layer:
                    prompts = model.class_prompts
                elif number in range(config.first_prompted_layer, config.class_prompt_layer):
                    sets = model.agnostic_prompts
                    prompts = None if sets is None else sets[number - config.first_prompted_layer]
                if prompts is not None:
                    sequence = torch.cat([prompts.expand(len(sequence), -1, -1), sequence], dim=1)
                sequence = layer(sequence, **layer_kwargs)
                if prompts is not None and number < config.class_prompt_layer:
                    sequence = sequence[:, len(prompts) :]
            sequence = self.final_norm(sequence)
        return model.score_head(sequence[:, : config.num_labels]).squeeze(-1)

    def loss(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self(pixel_values), labels)

    @torch.no_grad()
    def rank_heads(self, pixel_values: torch.Tensor, class_index: int) -> tuple[list[int], list[float], int]:
        """Greedy blurring of one image (1, 3, h, w), a whole forward pass for each candidate: heads, the most important
        first; the class's probability after each blurring, the least important first; how many heads suffice."""
        num_heads = self.model.config.backbone_config.num_attention_heads
        blurred: list[int] = []
        probabilities: list[float] = []
        survived = [self._outcome(pixel_values, class_index, [])[1]]
        while len(blurred) < num_heads:
            best = None
            for head in range(num_heads):
                if head not in blurred:
                    probability, is_class = self._outcome(pixel_values, class_index, [*blurred, head])
                    if best is None or probability > best[0]:
                        best = (probability, is_class, head)
            assert best is not None
            probabilities.append(best[0])
            survived.append(best[1])
            blurred.append(best[2])
        if not survived[0] or all(survived):
            return blurred[::-1], probabilities, 0
        return blurred[::-1], probabilities, num_heads - (survived.index(False) - 1)

    def _outcome(self, pixel_values: torch.Tensor, class_index: int, heads: list[int]) -> tuple[float, bool]:
        self._blur = (class_index, heads)
        try:
            logits = self(pixel_values)[0]
        finally:
            self._blur = None
        return logits.softmax(-1)[class_index].item(), logits.argmax().item() == class_index

    @contextmanager
    def _eager(self) -> Iterator[None]:
        """Have the layers use our attention, which sees every weight."""
        config = self.model.backbone.config
        before = config._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register("textbook_promptcam", self._attention)
        config._attn_implementation = "textbook_promptcam"
        try:
            yield
        finally:
            config._attn_implementation = before

    def _attention(self, module, query, key, value, attention_mask=None, scaling=None, dropout_p=0.0, **kwargs):
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if self._blur is not None and len(self.attentions) == len(self.layers) - 1:
            class_index, heads = self._blur
            scores[:, heads, class_index] = 0.0
        weights = dropout(scores.softmax(dim=-1), kwargs.get("dropout", 0.0), module.training)
        self.attentions.append(weights)
        return (weights @ value).transpose(1, 2).contiguous(), weights
