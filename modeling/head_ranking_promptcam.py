"""Which heads a class needs: greedy blurring (Section 3.3 of the paper)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def rank_heads(
    model: Any, layer: Any, image_size: tuple[int, ...], classes: torch.Tensor | None, top_k: int
) -> PromptCamHeadRanking:
    """See [`~PromptCamForImageClassification.rank_heads`]; `layer` is what `last_layer` returns for the images."""
    logits, temperature = layer.logits, model.config.temperature
    scaled = logits / temperature  # (B, C)
    chosen = logits.topk(top_k).indices if classes is None else classes.long()  # (B, K), or (B)
    chosen = chosen if chosen.dim() == 2 else chosen[:, None]
    rows, weights, sharp = gather(layer, chosen)
    # Blurring a class's heads changes no other class's logit
    others = scaled[:, None].expand(-1, chosen.shape[1], -1).scatter(-1, chosen[..., None], -torch.inf)  # (B, K, C)
    total = others.logsumexp(dim=-1)  # (B, K)

    def log_odds(heads: torch.Tensor) -> torch.Tensor:  # (B, K, candidates, D) -> (B, K, candidates)
        return model.score_attended(rows[:, :, None], heads) / temperature - total[..., None]

    blurred = layer.value.mean(dim=2)[:, None]  # (B, 1, H, d)
    order, blurred_log_odds = blur_greedily(sharp, blurred, log_odds)
    sharp_log_odds = scaled.gather(-1, chosen) - total
    num_sufficient = count_sufficient(sharp_log_odds, blurred_log_odds, others.amax(dim=-1) - total)
    maps = model.on_grid(weights, image_size)  # (B, K, H, grid_height, grid_width)
    results: tuple[torch.Tensor, ...] = (order, blurred_log_odds.sigmoid(), num_sufficient, chosen, maps)
    if classes is not None and classes.dim() == 1:
        results = tuple(result.squeeze(1) for result in results)
    order, probability, num_sufficient, chosen, maps = results
    return PromptCamHeadRanking(order, probability, num_sufficient, chosen, logits, maps)


def gather(layer: Any, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each image's classes (B, K): rows (B, K, D), attention weights (B, H, K, C + S), and what each head gathers
    (B, K, H, d)."""
    rows, query = layer.of_classes(classes)
    weights = attention_weights(query, layer.key)
    return rows, weights, (weights @ layer.value).transpose(1, 2)


def blur(model: Any, layer: Any, classes: torch.Tensor, is_blurred: torch.Tensor) -> torch.Tensor:
    """
    The scores of all classes while some heads of one class are blurred. Blurring a class's heads changes no other
    class's score.

    Args:
        model: The model.
        layer: What `last_layer` returns for the images.
        classes: The class of each image whose heads are blurred, `(B,)`.
        is_blurred: Which of its heads are, `(B, H)`, bool.

    Returns:
        Logits `(B, C)`.
    """
    rows, _, sharp = gather(layer, classes[:, None])  # (B, 1, D), (B, 1, H, d)
    mixed = torch.where(is_blurred[:, None, :, None], layer.value.mean(dim=2)[:, None], sharp)
    return layer.logits.scatter(-1, classes[:, None], model.score_attended(rows, mixed.flatten(-2)))


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
