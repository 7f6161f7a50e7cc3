"""What is left out at random in training: residual branches and patches."""

import torch
from torch import nn


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, drop a residual branch for a random part of the images."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_full((len(x), 1, 1), 1 - self.rate)
        return x * (torch.bernoulli(keep) / keep)


class PatchDropout(nn.Module):
    """In training, keep a random part of each image's patches (Liu et al., "PatchDropout", WACV 2023). Prefix tokens
    such as [CLS] stay."""

    def __init__(self, rate: float, num_prefix_tokens: int):
        super().__init__()
        self.rate, self.num_prefix_tokens = rate, num_prefix_tokens

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, S, D), and their rotary positions (1, S, 2 * d) if they have any: those that are kept."""
        if not self.training or self.rate == 0.0:
            return tokens, positions
        batch_size, num_patches = tokens.shape[0], tokens.shape[1] - self.num_prefix_tokens
        num_kept = max(1, round(num_patches * (1 - self.rate)))
        kept = torch.rand(batch_size, num_patches, device=tokens.device).argsort(dim=1)[:, :num_kept, None]

        def keep(x: torch.Tensor) -> torch.Tensor:
            prefix, patches = x.expand(batch_size, -1, -1).tensor_split([self.num_prefix_tokens], dim=1)
            return torch.cat([prefix, patches.gather(1, kept.expand(-1, -1, x.shape[2]))], dim=1)

        return keep(tokens), None if positions is None else keep(positions)
