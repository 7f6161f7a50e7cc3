"""A linear probe on a frozen backbone, and methods that show where it looks: the alternatives to Prompt-CAM.

`examples/benchmarks/traits.py` describes the methods and compares them. Shapes: B images of H x W pixels, S tokens
of size D, C classes, heads of size d, M maps on a grid of h x w patches.
"""

from functools import reduce
from typing import NamedTuple

import torch
from captum.attr import LayerActivation, LayerGradCam, LayerGradientXActivation
from promptcam_hf.modeling.backbone_promptcam import pair
from torch import nn
from torch.nn.functional import cross_entropy, normalize, scaled_dot_product_attention
from tqdm.auto import tqdm

from promptcam_hf import PromptCamForImageClassification

SIMILAR_CLASSES, FINER_GAMMA = 3, 0.6  # of Finer-CAM, as in the paper
PENALTIES = [10.0**exponent for exponent in range(-5, 1)]


def logistic_regression(features: torch.Tensor, labels: torch.Tensor, num_classes: int, penalty: float) -> nn.Linear:
    """The linear classifier of features `(n, D)` with labels `(n,)` that minimises mean cross-entropy + penalty / 2 *
    |weight|^2."""
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
    """
    Train a linear classifier, with the penalty that is best on a held-out fifth of the photographs.

    Args:
        features: `(views, n, D)`, of n photographs.
        labels: `(n,)`.
        num_classes: Number of classes.

    Returns:
        The classifier, of features that are not standardised, and its penalty.
    """
    rows, labels = features.flatten(0, 1).double(), labels.repeat(len(features))
    mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
    rows = (rows - mean) / std
    held_out = torch.arange(len(rows), device=rows.device) % features.shape[1] % 5 == 0  # with all views
    losses = {}
    for penalty in tqdm(PENALTIES, desc="penalties for the probe"):
        linear = logistic_regression(rows[~held_out], labels[~held_out], num_classes, penalty)
        losses[penalty] = cross_entropy(linear(rows[held_out]), labels[held_out]).item()
    penalty = min(PENALTIES, key=losses.__getitem__)
    linear = logistic_regression(rows, labels, num_classes, penalty)
    with torch.no_grad():  # fold the standardisation into the classifier
        linear.weight /= std
        linear.bias -= linear.weight @ mean
    return linear.to(features).requires_grad_(False), penalty


class Walk(NamedTuple):
    """The intermediate results of B images on their way through the backbone."""

    attentions: list[torch.Tensor]  # attention weights (B, heads, S, S) of each layer
    cls: torch.Tensor  # (B, D): [CLS] as it enters the last layer
    sharp: torch.Tensor  # (B, heads, d): the output of each head of the last layer for [CLS]
    blurred: torch.Tensor  # (B, heads, d): the same if the head attended to all tokens equally


class LinearProbe(nn.Module):
    """
    A linear classifier on [CLS] of a frozen backbone, which computes scores `(B, C)` for images `(B, 3, H, W)`, and
    methods that map where it looks, `(B, M, h, w)`, for images and classes `(B,)`.

    Args:
        model: A Prompt-CAM on the backbone. Its prompts are not used.
        classifier: D -> C.
    """

    def __init__(self, model: PromptCamForImageClassification, classifier: nn.Linear):
        super().__init__()
        self.model, self.classifier = model, classifier
        self.patches = nn.Identity()  # where captum finds the last layer's patches, laid out as in a CNN
        self.last_walk: tuple[torch.Tensor, bool, torch.Tensor, list[torch.Tensor]] | None = None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        walk = self.walk(pixel_values)
        return self.classify(walk.cls, walk.sharp)

    def from_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores `(B, C)` from the tokens `(B, S, D)` that enter the last layer."""
        modules = self.model.layer_parts(self.model.num_layers)
        normed = modules.norm1(tokens)
        query, key, value = (
            projection(x).unflatten(-1, (self.model.num_heads, -1)).transpose(1, 2)
            for projection, x in ((modules.query, normed[:, :1]), (modules.key, normed), (modules.value, normed))
        )
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2)  # (B, 1, heads, d)
        return self.classify(tokens[:, 0], attended[:, 0])

    def walk(self, pixel_values: torch.Tensor) -> Walk:
        tokens, attentions = self.entering_last_layer(pixel_values)
        normed = self.model.layer_parts(self.model.num_layers).norm1(tokens)
        patches = self.on_grid(normed.transpose(1, 2), pixel_values)  # (B, D, h, w)
        patches = self.patches(patches.requires_grad_(torch.is_grad_enabled())).flatten(2).transpose(1, 2)
        normed = torch.cat([normed[:, : -patches.shape[1]], patches], dim=1)
        attention, value = self.attend(self.model.num_layers, normed)
        return Walk([*attentions, attention], tokens[:, 0], (attention @ value)[:, :, 0], value.mean(2))

    @torch.no_grad()
    def entering_last_layer(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The tokens `(B, S, D)` that enter the last layer, and the attention weights of the layers before. Several
        methods ask for the same images in turn, so those of the last ones are kept."""
        is_autocast = torch.is_autocast_enabled(pixel_values.device.type)
        known = self.last_walk
        if known is None or known[0] is not pixel_values or known[1] != is_autocast:
            tokens, attentions = self.model.backbone.embeddings(pixel_values), []
            for layer in range(1, self.model.num_layers):
                attention, value = self.attend(layer, self.model.layer_parts(layer).norm1(tokens))
                tokens = self.rest_of_layer(layer, tokens, (attention @ value).transpose(1, 2))
                attentions.append(attention)
            self.last_walk = known = pixel_values, is_autocast, tokens, attentions
        return known[2:]

    def attend(self, layer: int, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The attention weights `(B, heads, S, S)` of a layer, and its values `(B, heads, S, d)`."""
        modules = self.model.layer_parts(layer)
        query, key, value = (
            projection(normed).unflatten(-1, (self.model.num_heads, -1)).transpose(1, 2)
            for projection in (modules.query, modules.key, modules.value)
        )  # (B, heads, S, d)
        return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1), value

    def rest_of_layer(self, layer: int, x: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """The output `(..., D)` of a layer, from its input `(..., D)` and the output of its heads `(..., heads, d)`."""
        modules = self.model.layer_parts(layer)
        x = x + modules.scale1(modules.output(heads.flatten(-2)))
        return x + modules.scale2(modules.mlp(modules.norm2(x)))

    def classify(self, cls: torch.Tensor, heads: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """Scores `(..., C)`, from a layer's input `(..., D)` and the output of its heads `(..., heads, d)`, as if that
        layer were the last one. Default: the one that is."""
        output = self.rest_of_layer(self.model.num_layers if layer is None else layer, cls, heads)
        return self.classifier(self.model.backbone.layernorm(output))

    def on_grid(self, tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Values of all tokens `(B, M, S)` -> those of the patches `(B, M, h, w)`."""
        patch_height, patch_width = pair(self.model.config.backbone_config.patch_size)
        grid = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
        return tokens[..., -grid[0] * grid[1] :].unflatten(-1, grid)

    @torch.no_grad()
    def cls_attention(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        walk = self.walk(pixel_values)
        maps = self.on_grid(walk.attentions[-1][:, :, 0], pixel_values)
        return maps.gather(1, self.rank_heads(walk, classes)[..., None, None].expand_as(maps))

    def rank_heads(self, walk: Walk, classes: torch.Tensor) -> torch.Tensor:
        """Heads `(B, heads)`, the most important first, by greedy blurring: first the head is blurred that leaves the
        class most probable, which is the least important one; then, in addition, the next one; and so on."""
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
        return LayerGradCam(self, self.patches).attribute(pixel_values, classes, relu_attributions=True).detach()

    def finer_cam(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        similar = self.similar_classes(classes)

        def margin(pixel_values: torch.Tensor) -> torch.Tensor:  # (B,)
            logits = self(pixel_values)
            return logits.gather(1, classes[:, None])[:, 0] - FINER_GAMMA * logits.gather(1, similar).mean(1)

        return LayerGradCam(margin, self.patches).attribute(pixel_values, relu_attributions=True).detach()

    def similar_classes(self, classes: torch.Tensor) -> torch.Tensor:
        """The classes whose weights are most similar to those of the given ones (B,), by cosine: (B, 3)."""
        weights = normalize(self.classifier.weight, dim=-1)
        similarity = (weights[classes] @ weights.T).scatter(1, classes[:, None], -torch.inf)  # (B, C)
        return similarity.topk(min(SIMILAR_CLASSES, len(weights) - 1)).indices

    def layer_cam(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        gradient = LayerGradientXActivation(self, self.patches, multiply_by_inputs=False)
        activation = LayerActivation(self, self.patches).attribute(pixel_values)  # (B, D, h, w)
        weighted = gradient.attribute(pixel_values, classes).relu() * activation
        return weighted.sum(1, keepdim=True).relu().detach()

    @torch.no_grad()
    def legrad(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        tokens, maps = self.model.backbone.embeddings(pixel_values), []
        for layer in range(1, self.model.num_layers + 1):
            attention, value = self.attend(layer, self.model.layer_parts(layer).norm1(tokens))
            of_cls = attention[:, :, :1].requires_grad_()  # the output for [CLS] depends on no other row
            with torch.enable_grad():
                scores = self.classify(tokens[:, 0], (of_cls @ value)[:, :, 0], layer)
                (gradient,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), of_cls)
            maps.append(self.on_grid(gradient.relu().mean(1), pixel_values))  # (B, 1, h, w)
            tokens = self.rest_of_layer(layer, tokens, (attention @ value).transpose(1, 2))
        mean = torch.stack(maps).mean(0)
        low, high = mean.amin((-2, -1), keepdim=True), mean.amax((-2, -1), keepdim=True)
        return (mean - low) / (high - low)


def rolled_out(attentions: list[torch.Tensor]) -> torch.Tensor:
    """
    Attention roll-out (Abnar and Zuidema, ACL 2020).

    Args:
        attentions: Attention weights `(B, heads, S, S)` of each layer.

    Returns:
        How much each token (row) consists of each input token (column), `(B, S, S)`. Rows sum to 1.
    """
    layers = [attention.mean(1) + torch.eye(attention.shape[-1], device=attention.device) for attention in attentions]
    return reduce(lambda flow, layer: layer / 2 @ flow, layers[1:], layers[0] / 2)
