"""Which heads a class needs: greedy blurring (Section 3.3 of the paper).

Shapes: B images, C classes of which K are chosen, S image tokens, H heads of size d, D = H * d.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.utils import ModelOutput

from .attention_promptcam import attention_weights


@dataclass
class PromptCamHeadRanking(ModelOutput):
    """
    Output of [`~PromptCamForImageClassification.rank_heads`]. `...` is `(batch_size,)` or `(batch_size, num_classes)`,
    like the classes that were asked for.

    Args:
        order (`torch.LongTensor` of shape `(..., num_heads)`):
            Heads, counted from 0, most important first.
        blurred_probability (`torch.FloatTensor` of shape `(..., num_heads)`):
            The class's probability, in [0, 1], after each blurring: first with only the least important head blurred
            (`order[..., -1]`), last with all heads blurred.
        num_sufficient (`torch.LongTensor` of shape `(...)`):
            How many of the most important heads suffice for the image to be classified as this class: those that are
            still sharp just before the class loses. 0 if it never won, or still wins with all heads blurred.
        classes (`torch.LongTensor` of shape `(...)`):
            The classes that were explained.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            Scores of all classes with no head blurred.
        trait_maps (`torch.FloatTensor` of shape `(..., num_heads, grid_height, grid_width)`):
            Where each head looks, in the order of head numbers: the class prompt's attention to the patches in layer N,
            in [0, 1], not renormalised.
    """

    order: torch.Tensor | None = None
    blurred_probability: torch.Tensor | None = None
    num_sufficient: torch.Tensor | None = None
    classes: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    trait_maps: torch.Tensor | None = None


class LastLayer(NamedTuple):
    """Layer N of a batch of images: what ranking and comparing heads start from."""

    rows: torch.Tensor  # (B, C, D), the class prompts that enter
    query: torch.Tensor  # (B, H, C, d)
    key: torch.Tensor  # (B, H, C + S, d)
    value: torch.Tensor  # (B, H, C + S, d)
    logits: torch.Tensor  # (B, C), float32 at least
    image_size: tuple[int, ...]  # height and width in pixels

    def gather(self, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each image's classes (B, K): rows (B, K, D), attention weights (B, H, K, C + S), and what each head
        gathers (B, K, H, d)."""
        image = torch.arange(classes.shape[0], device=classes.device)[:, None]
        query = self.query.transpose(1, 2)[image, classes].transpose(1, 2)
        weights = attention_weights(query, self.key)
        return self.rows[image, classes], weights, (weights @ self.value).transpose(1, 2)

    @property
    def blurred(self) -> torch.Tensor:
        """What each head would gather if it attended to all tokens equally (B, 1, H, d)."""
        return self.value.mean(dim=2)[:, None]


def rank_heads(model: Any, layer: LastLayer, classes: torch.Tensor | None, top_k: int) -> PromptCamHeadRanking:
    """See [`~PromptCamForImageClassification.rank_heads`]; `layer` is what `last_layer` returns for the images."""
    logits, temperature = layer.logits, model.config.temperature
    scaled = logits / temperature  # (B, C)
    chosen = logits.topk(top_k).indices if classes is None else classes.long()  # (B, K), or (B)
    chosen = chosen if chosen.dim() == 2 else chosen[:, None]
    rows, weights, sharp = layer.gather(chosen)
    # Blurring a class's heads changes no other class's logit
    others = scaled[:, None].expand(-1, chosen.shape[1], -1).scatter(-1, chosen[..., None], -torch.inf)  # (B, K, C)
    total = others.logsumexp(dim=-1)  # (B, K)

    def log_odds(heads: torch.Tensor) -> torch.Tensor:  # (B, K, candidates, D) -> (B, K, candidates)
        return model.score_attended(rows[:, :, None], heads) / temperature - total[..., None]

    order, blurred_log_odds = blur_greedily(sharp, layer.blurred, log_odds)
    sharp_log_odds = scaled.gather(-1, chosen) - total
    num_sufficient = count_sufficient(sharp_log_odds, blurred_log_odds, others.amax(dim=-1) - total)
    maps = model.on_grid(weights, layer.image_size)  # (B, K, H, grid_height, grid_width)
    as_given = (lambda x: x.squeeze(1)) if classes is not None and classes.dim() == 1 else (lambda x: x)
    return PromptCamHeadRanking(
        order=as_given(order),
        blurred_probability=as_given(blurred_log_odds.sigmoid()),
        num_sufficient=as_given(num_sufficient),
        classes=as_given(chosen),
        logits=logits,
        trait_maps=as_given(maps),
    )


def blur_greedily(
    sharp: torch.Tensor, blurred: torch.Tensor, log_odds: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Repeatedly blur the head whose blurring leaves the class most probable (the lowest head number if several do), until
    all are blurred.

    Heads add up before the output projection, so a candidate is a mix of sharp and blurred head outputs, and no
    candidate needs another pass through the network.

    Args:
        sharp: What each head gathers for K classes of B images, `(B, K, H, d)`.
        blurred: What it would gather if it attended to all tokens equally, `(B, 1, H, d)`.
        log_odds: Maps head outputs `(B, K, candidates, H * d)` to log-odds of the class `(B, K, candidates)`. They
            order heads as the class's probability does, but do not all round to 1 when it is certain.

    Returns:
        Heads `(B, K, H)`, most important first, and the log-odds `(B, K, H)` after each blurring.
    """
    num_heads = sharp.shape[2]
    one = torch.eye(num_heads, dtype=torch.bool, device=sharp.device)
    numbers = torch.arange(num_heads, device=sharp.device).expand(sharp.shape[:3])  # (B, K, H)
    is_blurred = one.new_zeros(sharp.shape[:3])  # (B, K, H)
    order, log_odds_after = [], []
    for num_left in range(num_heads, 0, -1):
        heads = numbers.masked_fill(is_blurred, num_heads).sort().values[..., :num_left]  # (B, K, rest), ascending
        candidates = is_blurred[:, :, None] | one[heads]  # (B, K, rest, H)
        mixed = torch.where(candidates[..., None], blurred[:, :, None], sharp[:, :, None])  # (B, K, rest, H, d)
        best, position = log_odds(mixed.flatten(-2)).max(dim=-1, keepdim=True)
        head = heads.gather(-1, position)  # (B, K, 1)
        is_blurred = is_blurred.scatter(-1, head, True)
        order.append(head)
        log_odds_after.append(best)
    return torch.cat(order[::-1], dim=-1), torch.cat(log_odds_after, dim=-1)


def count_sufficient(sharp: torch.Tensor, blurred: torch.Tensor, best_other: torch.Tensor) -> torch.Tensor:
    """How many heads suffice (B, K). The class wins as long as its log-odds, first with no head blurred (B, K) and then
    after each blurring (B, K, H), are no lower than those of the best other class (B, K)."""
    wins = torch.cat([sharp[..., None], blurred], dim=-1) >= best_other[..., None]  # (B, K, 1 + H)
    survived = (wins.logical_not().cumsum(dim=-1) == 0).sum(dim=-1)
    return torch.where(survived > 0, blurred.shape[-1] + 1 - survived, 0)
