"""What tests of the model for every backbone and place where class prompts enter share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptcam_hf import PromptCamForImageClassification

from ..tiny_models import (
    CASES,
    FAMILIES,
    HIDDEN_SIZE,
    assert_close,
    images,
)

all_cases = pytest.mark.parametrize(("family", "layer"), CASES)
all_families = pytest.mark.parametrize("family", FAMILIES)
LABELS = torch.tensor([3, 0])
# Xavier-uniform over the pixels of a patch and the hidden size: 3 * 8 * 8 + 32
PROMPT_BOUND = (6 / (3 * 8**2 + HIDDEN_SIZE)) ** 0.5


def logits_of(model: PromptCamForImageClassification, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(images() if pixel_values is None else pixel_values).logits


def saved(model: PromptCamForImageClassification, path: Path, **kwargs: Any) -> Path:
    model.save_pretrained(path, **kwargs)
    return path


def load(path: Path, **kwargs: Any) -> PromptCamForImageClassification:
    return PromptCamForImageClassification.from_pretrained(path, **kwargs)


def load_with_info(path: Path, **kwargs: Any) -> tuple[PromptCamForImageClassification, dict[str, Any]]:
    return PromptCamForImageClassification.from_pretrained(path, output_loading_info=True, **kwargs)


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def assert_same_logits(a: PromptCamForImageClassification, b: PromptCamForImageClassification) -> None:
    """To rounding: how sums are ordered may depend on where in memory the weights lie."""
    assert_close(logits_of(a), logits_of(b))


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    expected, found = first.state_dict(), second.state_dict()
    assert list(found) == list(expected)
    assert [name for name, weight in expected.items() if not torch.equal(weight, found[name])] == []


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def prompts_and_head(layer: int) -> set[str]:
    agnostic = {"agnostic_prompts"} if layer > 1 else set()
    return {"class_prompts", "score_head.weight", "score_head.bias"} | agnostic


def gradients(model: PromptCamForImageClassification) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one training step, dropout included."""
    model.zero_grad()
    torch.manual_seed(7)
    loss = model(images(), labels=LABELS).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found


def part(model: PromptCamForImageClassification, layer: int, name: str) -> str:
    """Path of a part of layer 1..N within the model, whatever this release of transformers calls it."""
    wanted = getattr(model.layer_parts(layer), name)
    return next(path for path, module in model.named_modules() if module is wanted)


def is_uniform_in(weight: torch.Tensor, bound: float) -> bool:
    """Within the bound, reaching out to it, and as wide as so many values of a uniform distribution are."""
    spread, slack = weight.std() / (bound / 3**0.5), 5 * (0.2 / weight.numel()) ** 0.5
    return bool(0.9 * bound < weight.abs().max() <= bound and abs(spread - 1) < slack)
