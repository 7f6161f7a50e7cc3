"""Attention over prompts and image tokens: the textbook form, and a cheaper one for many prompts with the same result.

Shapes: B images, H heads of size d, D = H * d; P prompts, S image tokens (prefix and patches), Q queries, K keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.utils.generic import maybe_autocast

# From this many prompts on, the cheaper form is used; with fewer it gains nothing
MANY_PROMPTS = 384
BLOCK = 1024  # rows at a time in the attention of prompts to each other, so that its memory is linear in their number


class Prompts(NamedTuple):
    """Prompts as the layer in which they enter sees them: the same for every image."""

    tokens: torch.Tensor  # (1, P, D)
    query: torch.Tensor | None  # (1, H, P, d); None for class-agnostic prompts, which attend to nothing
    key: torch.Tensor  # (1, H, P, d)
    value: torch.Tensor  # (1, H, P, d)
    among: torch.Tensor | None = None  # (1, H, P, d), what the prompts gather from each other, if they are many
    lse: torch.Tensor | None = None  # (1, H, P, 1), the log-sum-exp of their scores for each other


def project(tokens: torch.Tensor, query: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> Prompts:
    """Prompts and, if they are many, their attention to each other."""
    if query is None or query.shape[2] < MANY_PROMPTS:
        return Prompts(tokens, query, key, value)
    return Prompts(tokens, query, key, value, *AttentionWithLogSumExp.apply(query, key, value))


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prompts: Prompts | None = None, num_weights: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Attention of queries (B, H, Q, d) to prompts and to their own image's tokens (B, H, S, d). In the layer in which
    class prompts enter, the queries are the prompts'.

    Returns:
        What the queries gather, (B, Q, D), and the attention weights (B, H, `num_weights`, P + S) of the first
        `num_weights` queries, None if that is 0.
    """
    if num_weights:
        key, value = with_prompts(key, value, prompts)
        weights = attention_weights(query[:, :, :num_weights], key)
        rest = scaled_dot_product_attention(query[:, :, num_weights:], key, value)
        return _merge_heads(torch.cat([weights @ value, rest], dim=2)), weights
    if prompts is not None and prompts.among is not None:
        return _merge_heads(_attend_from_many(prompts, key, value)), None

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(query, *with_prompts(key, value, prompts))

    few = prompts is None or prompts.key.shape[2] < MANY_PROMPTS
    gathered = attention(query, key, value) if few else image_by_image(attention, query, key, value)
    return _merge_heads(gathered), None


def attend_uniformly(value: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
    """What a blurred query gathers: the mean (B, 1, D) over prompts and each image's tokens (B, H, S, d)."""
    total, count = value.sum(dim=2, keepdim=True), value.shape[2]
    if prompts is not None:
        total, count = total + prompts.value.sum(dim=2, keepdim=True), count + prompts.value.shape[2]
    return _merge_heads(total / count)


def with_prompts(key: torch.Tensor, value: torch.Tensor, prompts: Prompts | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (B, H, P + S, d) of prompts and of each image's tokens."""
    if prompts is None:
        return key, value
    shape = (key.shape[0], -1, -1, -1)
    return torch.cat([prompts.key.expand(shape), key], dim=2), torch.cat([prompts.value.expand(shape), value], dim=2)


def attention_weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Attention weights (B, H, Q, K), in [0, 1]."""
    return _scores(query, key).softmax(dim=-1).to(query.dtype)


def image_by_image(function: Callable[..., torch.Tensor], *batches: torch.Tensor) -> torch.Tensor:
    """`function(*batches)`; on a CPU, in inference, one image after the other. There, allocating memory for all images
    at once costs more than what is computed in it."""
    is_recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    if batches[0].device.type != "cpu" or batches[0].shape[0] == 1 or is_recorded:
        return function(*batches)
    return torch.cat([function(*image) for image in zip(*(batch.split(1) for batch in batches), strict=True)])


def _attend_from_many(prompts: Any, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What class prompts gather from all prompts and each image's tokens (B, H, S, d): (B, H, P, d).

    Their attention to each other is the same for every image. It enters each image's attention as one more column: with
    the log-sum-exp of the prompts' scores as its score, and what they gather from each other as its value, the softmax
    over [that column, image tokens] is the softmax over [prompts, image tokens]. So the cost of an image is linear in
    the number of prompts.

    Eight more dimensions (fused kernels want a multiple of 8) carry the column. In the queries they hold its score,
    which only the column's key picks up; in the values a one in the column, so that the column's weight comes out.
    """
    head_dim, dtype = key.shape[-1], key.dtype
    score = prompts.lse * head_dim**0.5  # the kernel multiplies by d ** -0.5
    high = score.to(dtype)
    low = (score - high).to(dtype)  # the rest of a float32 score, in half precision
    query = pad(torch.cat([prompts.query, high, low], dim=-1), (0, 6))  # (1, H, P, d + 8)
    column_key = pad(key.new_ones(2), (head_dim, 6)).expand(*key.shape[:2], 1, -1)  # (B, H, 1, d + 8)
    column_value = pad(key.new_ones(1), (head_dim, 7)).expand(*key.shape[:2], 1, -1)  # (B, H, 1, d + 8)
    mixed = scaled_dot_product_attention(
        query.expand(key.shape[0], -1, -1, -1),
        torch.cat([column_key, pad(key, (0, 8))], dim=2),  # (B, H, 1 + S, d + 8)
        torch.cat([column_value, pad(value, (0, 8))], dim=2),  # (B, H, 1 + S, d + 8)
        scale=head_dim**-0.5,
    )
    return mixed[..., :head_dim] + mixed[..., head_dim : head_dim + 1] * prompts.among


class AttentionWithLogSumExp(torch.autograd.Function):
    """Attention (B, H, Q, d) of queries to keys and values (B, H, K, d), and the log-sum-exp (B, H, Q, 1) of the
    scores, for which torch's fused attention has no gradient. The weights are not kept: the backward pass computes them
    again, block by block (Dao et al., "FlashAttention", 2022, Appendix B)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, sums = [], []
        for rows in query.split(BLOCK, dim=2):
            scores = _scores(rows, key)  # (B, H, block, K)
            sums.append(scores.logsumexp(dim=-1, keepdim=True))
            outputs.append(scores.sub_(sums[-1]).exp_().to(value.dtype) @ value)
        return torch.cat(outputs, dim=2), torch.cat(sums, dim=2)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor, grad_lse: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        scale, grad_queries = query.shape[-1] ** -0.5, []
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        # Gradient of a score: weight * (gradient of the weight - what the softmax takes off + gradient of lse)
        offset = (grad_lse - (grad_output * output).sum(dim=-1, keepdim=True)).to(value.dtype)  # (B, H, Q, 1)
        for start in range(0, query.shape[2], BLOCK):
            here = slice(start, start + BLOCK)
            weights = _scores(query[:, :, here], key).sub_(lse[:, :, here]).exp_().to(value.dtype)  # (B, H, block, K)
            grad_value += weights.transpose(-1, -2) @ grad_output[:, :, here]
            grad_scores = (grad_output[:, :, here] @ value.transpose(-1, -2)).add_(offset[:, :, here]).mul_(weights)
            grad_queries.append(grad_scores.mul_(scale) @ key)
            grad_key += grad_scores.transpose(-1, -2) @ query[:, :, here]
        return torch.cat(grad_queries, dim=2), grad_key, grad_value


def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Scores (B, H, Q, K) before the softmax, in float32 at least, as fused kernels keep them: scores of a few dozen,
    rounded to half precision, would change the weights by several percent."""
    with maybe_autocast(query.device.type, enabled=False):
        return at_least_float32(query) * query.shape[-1] ** -0.5 @ at_least_float32(key).transpose(-1, -2)


def _merge_heads(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, Q, d) -> (B, Q, D)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is if its type is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
