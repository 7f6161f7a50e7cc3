"""The temperature that makes a model's probabilities as high as it is accurate."""

import torch
from torch.nn.functional import cross_entropy

MAX_STEPS = 100
FEW_IMAGES = 30  # with fewer, all may be right by chance, and a temperature below 1 would make the model too sure


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """
    Fit the temperature T of softmax(logits / T) to images that served for nothing else (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017).

    Minimises the sum of the images' cross-entropies + (log T)^2 / 2: a prior that counts for less the more images there
    are. With fewer than `FEW_IMAGES`, T is not below 1: no answer becomes surer.

    Args:
        logits: Scores `(n, C)`.
        labels: True classes `(n,)`.

    Returns:
        T, greater than 0, or at least 1 if there are few images.
    """
    logits, log_t = logits.double(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(logits / log_t.exp(), labels, reduction="sum") + log_t.square() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(loss)
    temperature = float(log_t.detach().exp())
    return max(temperature, 1.0) if len(labels) < FEW_IMAGES else temperature
