"""Noisy linear imputation (ROAD; Rong et al., ICML 2022): removed pixels become what their neighbourhood suggests.

A hole of one colour is a cue of its own: its outline says where something was. Here each removed pixel is the weighted
mean of its eight neighbours, removed or not: 1/6 for those that share a side, 1/12 for those at the corners. These are
linear equations with one unknown for each removed pixel. They are solved by conjugate gradients, for all images and
channels at once.

Shapes: B images of c channels and H x W pixels.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import avg_pool2d, interpolate, pad

NOISE = 0.01  # standard deviation, in the units of pixel values
TOLERANCE, MAX_STEPS = 1e-3, 1000


def imputed(
    pixel_values: torch.Tensor, is_removed: torch.Tensor, noise: float = NOISE, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Images without some of their pixels.

    Args:
        pixel_values: `(B, c, H, W)`.
        is_removed: `(B, 1, H, W)`, bool. An image of which all pixels are removed becomes zeros (and noise).
        noise: Standard deviation of the Gaussian noise that is added to removed pixels.
        generator: Of the noise, on the CPU.

    Returns:
        `(B, c, H, W)`. Pixels that are not removed are as they were.
    """
    weights = _sum_of_neighbours(torch.ones_like(pixel_values[:1, :1]))  # (1, 1, H, W), smaller at the border
    known = pixel_values.masked_fill(is_removed, 0)

    def product(x: torch.Tensor) -> torch.Tensor:
        return (weights * x - _sum_of_neighbours(x)).masked_fill(~is_removed, 0)

    right = _sum_of_neighbours(known).masked_fill(~is_removed, 0)
    guess = _from_coarse_to_fine(known, (~is_removed).to(known)).masked_fill(~is_removed, 0)
    solution = _conjugate_gradients(product, right, guess)
    drawn = noise * torch.randn(pixel_values.shape, generator=generator).to(pixel_values)
    return torch.where(is_removed, solution + drawn, pixel_values)


def _sum_of_neighbours(x: torch.Tensor) -> torch.Tensor:
    """The weighted sum of the eight neighbours of each pixel `(..., H, W)`; there is nothing beyond the border."""
    rows = pad(x, (0, 0, 1, 1))
    rows = rows[..., :-2, :] + 2 * x + rows[..., 2:, :]
    columns = pad(rows, (1, 1))
    return (columns[..., :-2] + 2 * rows + columns[..., 2:] - 4 * x) / 12


def _from_coarse_to_fine(known: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What is known `(B, c, H, W)`, of weight `(B, 1, H, W)` above 0, and elsewhere what is known of the surroundings:
    near the solution, and most of all in wide holes, which take conjugate gradients the longest."""
    if weight.all() or max(weight.shape[-2:]) == 1:
        return known
    pooled = [avg_pool2d(values, 2, ceil_mode=True) for values in (known * weight, weight)]
    coarse = _from_coarse_to_fine(pooled[0] / pooled[1].clamp_min(torch.finfo(known.dtype).tiny), pooled[1])
    return torch.where(weight > 0, known, interpolate(coarse, known.shape[-2:], mode="bilinear"))


def _conjugate_gradients(
    product: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor, guess: torch.Tensor
) -> torch.Tensor:
    """The solution of `product(x) = right`, until what is left is at most `TOLERANCE` of each right-hand side."""

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    tiny = torch.finfo(right.dtype).tiny  # where there is nothing to solve
    x, target = guess, TOLERANCE**2 * dot(right, right)
    residual = direction = right - product(x)
    square = dot(residual, residual)
    for _ in range(MAX_STEPS):
        if (square <= target).all():
            break
        moved = product(direction)
        length = square / dot(direction, moved).clamp_min(tiny)
        x, residual = x + length * direction, residual - length * moved
        square, before = dot(residual, residual), square
        direction = residual + square / before.clamp_min(tiny) * direction
    return x
