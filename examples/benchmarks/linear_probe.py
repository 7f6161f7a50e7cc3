"""A linear probe on a frozen backbone, and methods that say where it looks: what one would use without Prompt-CAM.

`examples/benchmarks/traits.py` says what the methods are, and compares them. Shapes: B images of H x W pixels, S tokens
of size D, C classes, heads of size d, M maps on a grid of h x w patches.
"""

from functools import reduce
from typing import NamedTuple

import torch
from captum.attr import LayerActivation, LayerGradCam, LayerGradientXActivation
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from promptcam_hf import PromptCamForImageClassification

PENALTIES = [10.0**exponent for exponent in range(-5, 1)]


def logistic_regression(features: torch.Tensor, labels: torch.Tensor, num_classes: int, penalty: float) -> nn.Linear:
    """The classifier of features `(n, D)`, of classes `(n,)`, whose mean cross-entropy + penalty / 2 * |weight|^2 is
    least."""
    linear = nn.Linear(features.shape[1], num_classes).to(features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(
        linear.parameters(), max_iter=2000, tolerance_grad=1e-6, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(linear(features), labels) + penalty / 2 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(loss)
    return linear


def fit_probe(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[nn.Linear, float]:
    """The classifier and its penalty, of features `(views, n, D)` of n photographs of classes `(n,)`."""
    rows, labels = features.flatten(0, 1).double(), labels.repeat(len(features))
    mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
    rows = (rows - mean) / std
    held_out = torch.arange(len(rows), device=rows.device) % features.shape[1] % 5 == 0  # photographs, with all views
    losses = {}
    for penalty in tqdm(PENALTIES, desc="penalties of the probe"):
        linear = logistic_regression(rows[~held_out], labels[~held_out], num_classes, penalty)
        losses[penalty] = cross_entropy(linear(rows[held_out]), labels[held_out]).item()
    penalty = min(PENALTIES, key=losses.__getitem__)
    linear = logistic_regression(rows, labels, num_classes, penalty)
    with torch.no_grad():  # takes features that are not standardised
        linear.weight /= std
        linear.bias -= linear.weight @ mean
    return linear.to(features).requires_grad_(False), penalty


class Walk(NamedTuple):
    """What is seen on the way of B images through the backbone."""

    attentions: list[torch.Tensor]  # of each layer (B, heads, S, S)
    cls: torch.Tensor  # (B, D): [CLS] as it enters the last layer
    sharp: torch.Tensor  # (B, heads, d): what each head gathers for it there
    blurred: torch.Tensor  # (B, heads, d): what a head would that attends to all tokens alike


class LinearProbe(nn.Module):
    """A linear classifier on [CLS] of a frozen backbone, images `(B, 3, H, W)` -> scores `(B, C)`, and what is said
    about where it looks, images and classes `(B,)` -> maps `(B, M, h, w)`."""

    def __init__(self, model: PromptCamForImageClassification, classifier: nn.Linear):
        super().__init__()
        self.model, self.classifier = model, classifier
        self.patches = nn.Identity()  # the last layer's patches pass through it, laid out as captum knows them of CNNs

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        walk = self.walk(pixel_values)
        return self.classify(walk.cls, walk.sharp)

    def walk(self, pixel_values: torch.Tensor) -> Walk:
        tokens, attentions = self.model.backbone.embeddings(pixel_values), []  # (B, S, D)
        for layer in range(1, self.model.num_layers + 1):
            parts = self.model.layer_parts(layer)
            normed = parts.norm1(tokens)
            if layer == self.model.num_layers:
                patches = self.patches(self.on_grid(normed.transpose(1, 2), pixel_values))  # (B, D, h, w)
                patches = patches.flatten(2).transpose(1, 2)
                normed = torch.cat([normed[:, : -patches.shape[1]], patches], dim=1)
            query, key, value = (
                part(normed).unflatten(-1, (self.model.num_heads, -1)).transpose(1, 2)
                for part in (parts.query, parts.key, parts.value)
            )  # (B, heads, S, d)
            attentions.append((query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1))
            attended = (attentions[-1] @ value).transpose(1, 2)  # (B, S, heads, d)
            if layer < self.model.num_layers:
                tokens = self.rest_of_layer(layer, tokens, attended)
        return Walk(attentions, tokens[:, 0], attended[:, 0], value.mean(2))

    def rest_of_layer(self, layer: int, x: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """What leaves a layer, of what enters it `(..., D)` and what its heads gather `(..., heads, d)`."""
        parts = self.model.layer_parts(layer)
        x = x + parts.scale1(parts.output(heads.flatten(-2)))
        return x + parts.scale2(parts.mlp(parts.norm2(x)))

    def classify(self, cls: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Scores `(..., C)`, of what enters the last layer `(..., D)` and what its heads gather `(..., heads, d)`."""
        return self.classifier(self.model.backbone.layernorm(self.rest_of_layer(self.model.num_layers, cls, heads)))

    def on_grid(self, tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Of something of all tokens `(B, M, S)` that of the patches `(B, M, h, w)`."""
        return self.model.trait_maps(tokens[:, :, None], tuple(pixel_values.shape[-2:]))[:, 0]

    @torch.no_grad()
    def cls_attention(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        walk = self.walk(pixel_values)
        maps = self.on_grid(walk.attentions[-1][:, :, 0], pixel_values)
        return maps.gather(1, self.rank_heads(walk, classes)[..., None, None].expand_as(maps))

    def rank_heads(self, walk: Walk, classes: torch.Tensor) -> torch.Tensor:
        """Heads `(B, heads)`, the most important first: the least important one is blurred without which the class
        stays most probable, and then the next one too, and so on."""
        (num_images, num_heads, _), device = walk.sharp.shape, walk.sharp.device
        images, one = torch.arange(num_images, device=device), torch.eye(num_heads, dtype=torch.bool, device=device)
        is_blurred = torch.zeros(num_images, num_heads, dtype=torch.bool, device=device)
        order = []
        for _ in range(num_heads):
            candidates = (is_blurred[:, None] | one)[..., None]  # (B, candidates, heads, 1)
            heads = torch.where(candidates, walk.blurred[:, None], walk.sharp[:, None])  # (B, candidates, heads, d)
            log_probability = self.classify(walk.cls[:, None], heads).log_softmax(-1)[images, :, classes]
            order.append(log_probability.masked_fill(is_blurred, -torch.inf).argmax(-1))
            is_blurred[images, order[-1]] = True
        return torch.stack(order[::-1], dim=1)

    @torch.no_grad()
    def cls_attention_mean(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return self.on_grid(self.walk(pixel_values).attentions[-1][:, :, 0].mean(1, keepdim=True), pixel_values)

    @torch.no_grad()
    def roll_out(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return self.on_grid(rolled_out(self.walk(pixel_values).attentions)[:, :1], pixel_values)

    def grad_cam(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        pixel_values = pixel_values.clone().requires_grad_()  # all weights are frozen
        return LayerGradCam(self, self.patches).attribute(pixel_values, classes, relu_attributions=True).detach()

    def layer_cam(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        pixel_values = pixel_values.clone().requires_grad_()
        gradient = LayerGradientXActivation(self, self.patches, multiply_by_inputs=False)
        activation = LayerActivation(self, self.patches).attribute(pixel_values)  # (B, D, h, w)
        weighted = gradient.attribute(pixel_values, classes).relu() * activation
        return weighted.sum(1, keepdim=True).relu().detach()


def rolled_out(attentions: list[torch.Tensor]) -> torch.Tensor:
    """How much `(B, S, S)` of each token, a row, comes from which token of the first layer; of attention weights
    `(B, heads, S, S)` of each layer. Rows sum to 1."""
    layers = [attention.mean(1) + torch.eye(attention.shape[-1], device=attention.device) for attention in attentions]
    return reduce(lambda flow, layer: layer / 2 @ flow, layers[1:], layers[0] / 2)
