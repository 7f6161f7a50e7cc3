"""From scores to probabilities: every probability that is shown is computed here."""

from typing import Any

import torch

from .attention_promptcam import at_least_float32


def probabilities(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """
    The probabilities of the classes: softmax of the scores over the model's temperature (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017).

    Args:
        logits: Scores `(..., num_labels)`; minus infinity for classes that are left out (see `keep_only`).
        config: The model's configuration.

    Returns:
        Probabilities `(..., num_labels)`, float32 or more, that add up to 1.
    """
    return (at_least_float32(logits) / config.temperature).softmax(dim=-1)


def keep_only(logits: torch.Tensor, only: list[int] | None) -> torch.Tensor:
    """Scores `(..., num_labels)` in which all classes but those of the labels `only` are at minus infinity, so that
    they have no probability and the others share all of it. None keeps all."""
    if only is None:
        return logits
    kept = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    kept[only] = True
    return logits.masked_fill(~kept, -torch.inf)
