"""Attention: each way of computing it against the textbook form, softmax over [prompts, image tokens]."""

import pytest
import torch
from promptcam_hf.modeling import attention_promptcam
from promptcam_hf.modeling.attention_promptcam import (
    MANY_PROMPTS,
    AttentionWithLogSumExp,
    Prompts,
    attend,
    project,
)
from torch.nn.functional import scaled_dot_product_attention

HEADS, HEAD_DIM = 2, 16


def textbook(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prompts: Prompts | None) -> torch.Tensor:
    """In one formula, every weight formed: (B, Q, D)."""
    if prompts is not None:
        key, value = (
            torch.cat([ours.expand(len(theirs), -1, -1, -1), theirs], dim=2)
            for ours, theirs in ((prompts.key, key), (prompts.value, value))
        )
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def tokens(batch_size: int, number: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.randn(batch_size, HEADS, number, HEAD_DIM, dtype=torch.float64)).to(dtype)


def class_prompts(number: int) -> Prompts:
    return project(torch.randn(1, number, HEADS * HEAD_DIM), *(tokens(1, number).requires_grad_() for _ in range(3)))


@pytest.mark.parametrize("number", [3, MANY_PROMPTS, MANY_PROMPTS + 100])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_class_prompts_attend_as_in_the_textbook(number: int, batch_size: int) -> None:
    torch.manual_seed(0)
    prompts, key, value = class_prompts(number), tokens(batch_size, 20), tokens(batch_size, 20)
    assert (prompts.among is not None) == (number >= MANY_PROMPTS)
    query = prompts.query.expand(batch_size, -1, -1, -1)
    expected = textbook(query, key, value, prompts)
    found, weights = attend(query, key, value, prompts)
    assert weights is None
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-9)
    inputs = prompts[1:4]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("number", [3, MANY_PROMPTS])
def test_weights_are_those_of_the_first_queries_and_change_nothing(number: int) -> None:
    torch.manual_seed(0)
    prompts, key, value = class_prompts(number), tokens(2, 20), tokens(2, 20)
    query = prompts.query.expand(2, -1, -1, -1)
    found, weights = attend(query, key, value, prompts, num_weights=2)
    torch.testing.assert_close(found, textbook(query, key, value, prompts), atol=0, rtol=1e-9)
    assert weights.shape == (2, HEADS, 2, number + 20)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, HEADS, 2, dtype=torch.float64))


def test_gradients_of_attention_and_log_sum_exp(monkeypatch) -> None:
    monkeypatch.setattr(attention_promptcam, "BLOCK", 3)
    torch.manual_seed(0)
    inputs = [tokens(2, number).requires_grad_() for number in (7, 5, 5)]
    assert torch.autograd.gradcheck(AttentionWithLogSumExp.apply, inputs)
    output, lse = AttentionWithLogSumExp.apply(*inputs)
    scores = inputs[0] @ inputs[1].transpose(-1, -2) / HEAD_DIM**0.5
    torch.testing.assert_close(output, scores.softmax(dim=-1) @ inputs[2], atol=0, rtol=1e-9)
    torch.testing.assert_close(lse, scores.logsumexp(dim=-1, keepdim=True), atol=0, rtol=1e-9)


@pytest.mark.parametrize("number", [3, MANY_PROMPTS])
def test_image_tokens_attend_to_class_agnostic_prompts(number: int) -> None:
    torch.manual_seed(0)
    prompts = Prompts(torch.empty(0), None, tokens(1, number), tokens(1, number))
    query, key, value = (tokens(3, 20) for _ in range(3))
    expected = textbook(query, key, value, prompts)
    torch.testing.assert_close(attend(query, key, value, prompts)[0], expected, atol=0, rtol=1e-9)
    with torch.no_grad():  # image by image
        torch.testing.assert_close(attend(query, key, value, prompts)[0], expected, atol=0, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_prompts_in_half_precision_are_about_as_exact_as_one_fused_call(dtype: torch.dtype) -> None:
    """Neither scores nor their log-sum-exp may be rounded to half precision before the exponential."""
    torch.manual_seed(0)
    parts = [tokens(1, MANY_PROMPTS, dtype, scale) for scale in (16, 2, 1)]  # scores up to a hundred
    key, value = tokens(3, 90, dtype, 2), tokens(3, 90, dtype)
    prompts = project(torch.empty(0), *parts)
    exact = Prompts(torch.empty(0), *(part.double() for part in parts))
    expected = textbook(exact.query.expand(3, -1, -1, -1), key.double(), value.double(), exact)

    def error(found: torch.Tensor) -> float:
        return (found.double() - expected).pow(2).mean().sqrt().item()

    query = prompts.query.expand(3, -1, -1, -1)
    keys, values = (
        torch.cat([ours.expand(3, -1, -1, -1), theirs], dim=2)
        for ours, theirs in zip(parts[1:], (key, value), strict=True)
    )
    fused = scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
    assert error(attend(query, key, value, prompts)[0]) < 2 * error(fused)
