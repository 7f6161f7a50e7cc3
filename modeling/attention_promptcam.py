"""Attention over prompts and image tokens.

Shapes: B images, H heads of size d, D = H * d; P prompts, S image tokens (prefix and patches), Q queries, K keys.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import maybe_autocast

# From this many class prompts on, their attention to each other is computed once per batch, not once per image
MANY_PROMPTS = 384
# Prompts per block of that computation in training, so that its memory is linear in their number
BLOCK = 2048


class Prompts(NamedTuple):
    """Prompts as they are to the layer in which they enter. They are the same for every image."""

    tokens: torch.Tensor  # (1, P, D)
    query: torch.Tensor | None  # (1, H, P, d); None for class-agnostic prompts, which attend to nothing
    key: torch.Tensor  # (1, H, P, d)
    value: torch.Tensor  # (1, H, P, d)
    among: torch.Tensor | None = None  # (1, H, P, d), what the prompts gather from each other, if they are many
    lse: torch.Tensor | None = None  # (1, H, P, 1), the log-sum-exp of their scores for each other


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prompts: Prompts | None = None, num_weights: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Attention of queries (B, H, Q, d), the prompts' own in the layer in which class prompts enter, to an image's own
    tokens (B, H, S, d) and prompts.

    Returns:
        What the queries gather, (B, Q, D), and the attention weights (B, H, `num_weights`, P + S) of the first
        `num_weights` queries, None if that is 0.
    """
    if prompts is not None and prompts.among is not None and not num_weights:
        return _merge_heads(_attend_from_many(prompts, key, value)), None
    key, value = with_prompts(key, value, prompts)
    if not num_weights:
        return _merge_heads(scaled_dot_product_attention(query, key, value)), None
    weights = attention_weights(query[:, :, :num_weights], key)
    rest = scaled_dot_product_attention(query[:, :, num_weights:], key, value)
    return _merge_heads(torch.cat([weights @ value, rest], dim=2)), weights


def with_prompts(key: torch.Tensor, value: torch.Tensor, prompts: Prompts | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (B, H, P + S, d) of prompts and of each image's tokens."""
    if prompts is None:
        return key, value
    shape = (key.shape[0], -1, -1, -1)
    return torch.cat([prompts.key.expand(shape), key], dim=2), torch.cat([prompts.value.expand(shape), value], dim=2)


def attention_weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Attention weights (B, H, Q, K), in [0, 1]."""
    return _scores(query, key).softmax(dim=-1).to(query.dtype)


def project(tokens: torch.Tensor, query: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> Prompts:
    """Prompts, with their attention to each other if they are many."""
    if query is None or query.shape[2] < MANY_PROMPTS:
        return Prompts(tokens, query, key, value)

    def block(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = _scores(query, key)  # (1, H, block, P)
        lse = scores.logsumexp(dim=-1, keepdim=True)  # (1, H, block, 1)
        return (scores - lse).exp().to(value.dtype) @ value, lse

    blocks = query.split(BLOCK, dim=2)
    if len(blocks) > 1 and torch.is_grad_enabled():
        results = [checkpoint(block, queries, use_reentrant=False) for queries in blocks]
    else:
        results = [block(queries) for queries in blocks]
    among, lse = (torch.cat(result, dim=2) for result in zip(*results, strict=True))
    return Prompts(tokens, query, key, value, among, lse)


def _attend_from_many(prompts: Prompts, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
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


def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Scores (B, H, Q, K) before the softmax, in float32 at least, as fused kernels keep them: scores of a few dozen,
    rounded to half precision, would change the weights by several percent."""
    with maybe_autocast(query.device.type, enabled=False):
        return at_least_float32(query) * query.shape[-1] ** -0.5 @ at_least_float32(key).transpose(-1, -2)


def _merge_heads(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, Q, d) -> (B, Q, D)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
