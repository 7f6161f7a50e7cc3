"""A GPU computes what the CPU computes. Skipped unless CUDA_VISIBLE_DEVICES names a GPU."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from promptcam_hf import PromptCamForImageClassification

from ..tiny_models import FAMILY_CONFIGS, images, tiny_model
from .common import LABELS, all_cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
all_backbones = pytest.mark.parametrize("family", FAMILY_CONFIGS)


def on_both(family: str, *arguments, **kwargs) -> tuple[PromptCamForImageClassification, ...]:
    """The same model in float64, where rounding hides nothing, on the CPU and on the GPU."""
    cpu, gpu = (tiny_model(family, *arguments, **kwargs).double() for _ in range(2))
    return cpu, gpu.cuda()


def assert_same(on_gpu: torch.Tensor, on_cpu: torch.Tensor) -> None:
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-10, rtol=1e-8)


@all_backbones
def test_outputs_and_gradients(family):
    cpu, gpu = on_both(family)
    pixels = images().double()
    found = gpu(pixels.cuda(), labels=LABELS.cuda(), output_attentions=True)
    expected = cpu(pixels, labels=LABELS, output_attentions=True)
    assert_same(found.logits, expected.logits)
    assert_same(found.attentions[-1], expected.attentions[-1])
    found.loss.backward()
    expected.loss.backward()
    for (name, on_gpu), on_cpu in zip(gpu.named_parameters(), cpu.parameters(), strict=True):
        assert (on_gpu.grad is None) == (on_cpu.grad is None), name
        if on_cpu.grad is not None:
            assert_same(on_gpu.grad, on_cpu.grad)


@all_cases
def test_ranking_and_comparison_with_cached_prompts(family, layer):
    cpu, gpu = on_both(family, layer)
    pixels = images(3).double()
    with torch.no_grad(), gpu.cached_prompts():
        for _ in range(2):  # makes the prompts, and uses them
            ranking, wanted = gpu.rank_heads(pixels.cuda(), top_k=3), cpu.rank_heads(pixels, top_k=3)
            assert torch.equal(ranking.order.cpu(), wanted.order)
            assert torch.equal(ranking.num_sufficient.cpu(), wanted.num_sufficient)
            assert_same(ranking.trait_maps, wanted.trait_maps)
            compared, expected = gpu.compare(pixels.cuda()), cpu.compare(pixels)
            assert torch.equal(compared.b.cpu(), expected.b)
            assert_same(compared.maps, expected.maps)


@all_cases
def test_half_precision_stays_near(family, layer):
    cpu, gpu = on_both(family, layer)
    gpu = gpu.float()
    with torch.autocast("cuda", torch.bfloat16):
        loss = gpu(images().cuda(), labels=LABELS.cuda()).loss
    loss.backward()
    expected = cpu(images().double(), labels=LABELS).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)
    found, wanted = gpu.class_prompts.grad.cpu().flatten().double(), cpu.class_prompts.grad.flatten()
    assert torch.cosine_similarity(found, wanted, dim=0) > 0.95
    logits = gpu.bfloat16()(images().cuda().bfloat16()).logits
    assert torch.isfinite(logits).all()


def test_pipeline(checkpoint, photograph):
    on_gpu = pipeline("prompt-cam", model=str(checkpoint), device="cuda", dtype=torch.float64)(str(photograph))
    on_cpu = pipeline("prompt-cam", model=str(checkpoint), device="cpu", dtype=torch.float64)(str(photograph))
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        assert found["label"] == expected["label"]
        assert found["score"] == pytest.approx(expected["score"], rel=1e-6)
        for trait, other in zip(found["traits"], expected["traits"], strict=True):
            assert trait["head"] == other["head"]
            np.testing.assert_allclose(trait["map"], other["map"], rtol=1e-5, atol=1e-8)
