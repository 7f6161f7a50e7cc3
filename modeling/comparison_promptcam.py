"""What tells one class from another on an image, head by head.

Notation of `modeling_promptcam.py`, for layer N: head h of class a's prompt attends to token p with weight A_a[h, p],
and gathers o_a[h] = sum_p A_a[h, p] v[h, p] of the values v; s_a is the logit. The *contribution* of a patch is what it
gives to s_a through that head, in units of the logit,

    c_a[h, p] = A_a[h, p] <g_a[h], v[h, p]>,

where g_a is the gradient ds_a / do_a, averaged on the way from heads that gather nothing to o_a: integrated gradients
(Sundararajan et al., ICML 2017). Summed over all tokens and heads, they are s_a less what it would be without o_a.
The *comparison* of two classes is m_ab = c_a - c_b: positive where a patch speaks for a and against b.

Shapes: B images, C classes of which K are chosen, H heads of size d, D = H * d, T tokens (class prompts, prefix,
patches).
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast

from .attention_promptcam import at_least_float32
from .head_ranking_promptcam import LastLayer, blur_greedily, count_sufficient

PATH_STEPS = 4  # the gradient is averaged over the middles of so many equal parts of the way


@dataclass
class PromptCamComparison(ModelOutput):
    """
    Output of [`~PromptCamForImageClassification.compare`]. `...` is `(batch_size,)` or `(batch_size, num_classes)`,
    like the classes `a` that were asked for. Maps are in units of the logit.

    Args:
        maps (`torch.FloatTensor` of shape `(..., num_heads, grid_height, grid_width)`):
            The contributions to class a less those to class b: positive where a patch speaks for a and against b,
            negative where it speaks for b and against a.
        shared (`torch.FloatTensor` of shape `(..., num_heads, grid_height, grid_width)`):
            What speaks for both, and so tells neither from the other: the smaller of the two contributions where both
            are positive, 0 elsewhere.
        contributions (`torch.FloatTensor` of shape `(..., 2, num_heads, grid_height, grid_width)`):
            The contributions to a and to b, as [`~PromptCamForImageClassification.contributions`] returns them.
        a, b (`torch.LongTensor` of shape `(...)`):
            The classes that were compared.
        logits (`torch.FloatTensor` of shape `(..., 2)`):
            Scores of a and b.
        num_sufficient (`torch.LongTensor` of shape `(...)`):
            How many of a's most important heads (in the order of
            [`~PromptCamForImageClassification.rank_heads`]) suffice for a to score at least as high as b. 0 if it never
            does, or still does with all heads blurred.
    """

    maps: torch.Tensor | None = None
    shared: torch.Tensor | None = None
    contributions: torch.Tensor | None = None
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    num_sufficient: torch.Tensor | None = None


def compare(model: Any, layer: LastLayer, a: torch.Tensor | None, b: torch.Tensor | None) -> PromptCamComparison:
    """See [`~PromptCamForImageClassification.compare`]; `layer` is what `last_layer` returns for the images."""
    logits = layer.logits  # (B, C)
    as_given = (lambda x: x.squeeze(1)) if a is None or a.dim() == 1 else (lambda x: x)
    a = logits.argmax(dim=-1, keepdim=True) if a is None else a.long().reshape(len(logits), -1)  # (B, K)
    others = logits[:, None].expand(-1, a.shape[1], -1).scatter(-1, a[..., None], -torch.inf)  # (B, K, C)
    runners_up = others.argmax(dim=-1)
    b = runners_up if b is None else b.long().reshape(a.shape)
    b = torch.where(a == b, runners_up, b)

    rows, weights, gathered = layer.gather(torch.cat([a, b], dim=1))
    of_a, of_b = contributions(model, layer, rows, weights, gathered).chunk(2, dim=1)
    rows, gathered = rows[:, : a.shape[1], None], gathered[:, : a.shape[1]]  # of a: blurring a's heads changes only s_a
    _, logits_after = blur_greedily(gathered, layer.blurred, lambda heads: model.score_attended(rows, heads))
    logits_a, logits_b = logits.gather(-1, a), logits.gather(-1, b)
    return PromptCamComparison(
        maps=as_given(of_a - of_b),
        shared=as_given(torch.minimum(of_a, of_b).clamp_min(0)),
        contributions=as_given(torch.stack([of_a, of_b], dim=2)),
        a=as_given(a),
        b=as_given(b),
        logits=as_given(torch.stack([logits_a, logits_b], dim=-1)),
        num_sufficient=as_given(count_sufficient(logits_a, logits_after, logits_b)),
    )


def contributions(
    model: Any, layer: LastLayer, rows: torch.Tensor, weights: torch.Tensor, gathered: torch.Tensor
) -> torch.Tensor:
    """Contributions (B, K, H, grid_height, grid_width) to the classes that were gathered. Only the path from what the
    heads gather to the logits is differentiated: output projection, MLP, norm and score head, for K tokens an image."""
    with torch.inference_mode(False), torch.enable_grad():
        points = (torch.arange(PATH_STEPS, device=gathered.device, dtype=gathered.dtype) + 0.5) / PATH_STEPS
        # Copies, because autograd takes no tensors that were made in inference mode
        rows, path = rows.clone(), (points.view(-1, 1, 1, 1, 1) * gathered).requires_grad_()  # (steps, B, K, H, d)
        logits = model.score_attended(rows, path.flatten(-2))
        (gradient,) = torch.autograd.grad(logits.sum(), path)
    gradient = at_least_float32(gradient).mean(dim=0).transpose(1, 2)  # (B, H, K, d)
    value = at_least_float32(layer.value)
    with maybe_autocast(value.device.type, enabled=False):
        of_tokens = weights * (gradient @ value.transpose(-1, -2))  # (B, H, K, T)
    return model.on_grid(of_tokens, layer.image_size)
