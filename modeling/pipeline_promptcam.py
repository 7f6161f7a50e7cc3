"""The `"prompt-cam"` pipeline: a photograph in, labels and the traits that speak for them out."""

from collections.abc import Callable, Iterable, Sized
from difflib import get_close_matches
from numbers import Integral, Number
from typing import Any, cast
from unicodedata import normalize

import torch
from torch.utils.data import Subset
from transformers import Pipeline

from .comparison_promptcam import compare
from .explanations_promptcam import Explanations
from .head_ranking_promptcam import LastLayer, rank_heads
from .hub_promptcam import PushedWithoutLocalPaths
from .images_promptcam import (
    draw_comparison,
    draw_heatmap,
    load_photograph,
    over_photographs,
    photograph_shares,
    pixels_of,
    reduced,
)
from .probabilities_promptcam import keep_only, probabilities

MAPS = ("trait_maps", "compared_maps", "compared_contributions", "compared_shared")


class PromptCamPipeline(PushedWithoutLocalPaths, Pipeline):
    """Classifies photographs and shows, for each class asked about, the traits that speak for it. A trait is a head of
    the last layer: the attention of the class's prompt. Traits are in the order of how much the class's probability
    needs them (greedy blurring; Chowdhury et al., CVPR 2025).

    ```python
    >>> traits = pipeline("prompt-cam", model="path/or/hub-id")
    >>> result = traits("scott_oriole.jpg", top_k=2, top_traits=4)
    >>> result[0]["traits"][0]["heatmap"].show()
    ```
    """

    _load_processor = _load_feature_extractor = _load_tokenizer = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    model: Any
    image_processor: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "rank_heads"):
            raise ValueError(f"{type(self.model).__name__} is not a Prompt-CAM model; expected type 'promptcam'.")
        if self.image_processor is None:
            raise ValueError("The prompt-cam pipeline needs an image processor: pass image_processor=...")
        if getattr(self.image_processor, "do_center_crop", None):
            raise ValueError(
                "The image processor crops (do_center_crop=True); maps must lie over the whole photograph."
            )

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Explain photographs.

        Args:
            inputs: A path, URL, `PIL.Image.Image` or array (`(height, width[, channels])` of `uint8`, or of floats in
                [0, 1]), a dictionary that holds one of these as `"image"`, or a list, dataset or generator of them.
            top_k (`int`, *optional*, defaults to 1): How many classes to explain, the most probable first.
            classes (`list[str | int]`, *optional*): Names or labels of the classes to explain instead.
            only (`list[str | int]`, *optional*): Names or labels of the classes that can be the answer, such as the
                species of a region, two or more. Their probabilities add up to 1.
            compare_with (`str` or `int`, *optional*): Name or label of the class to compare the explained classes with,
                or `"auto"`: each with its runner-up, the other class that scores highest. The runner-up also takes the
                place of a class that would be compared with itself.
            top_traits (`int`, *optional*, defaults to 4): How many traits per class, the most important first.
            heatmaps (`bool` or `int`, *optional*, defaults to `True`): Whether to draw; if not, every `"heatmap"` is
                `None`. Heatmaps are as large as the photograph; a number is the longest side they may have, in pixels.
            batch_size (`int`, *optional*, defaults to 1): Photographs per forward pass.
            timeout (`float`, *optional*, defaults to 60): Seconds until a download has to be complete.

        Returns:
            For a photograph a list of explanations, which a notebook shows, and which `to_json` turns into JSON (see
            `Explanations`); for a list of photographs a list of such lists; for a dataset or generator an iterable of
            such lists, and the model must not change meanwhile. An explanation is a dictionary:

            - **label** (`str`), **score** (`float`): the class, and its probability in [0, 1].
            - **num_sufficient** (`int`): how many of the most important heads suffice for the photograph to be
              classified so; 0 if it is not, or if it still is with all heads blurred.
            - **traits** (`list[dict]`): **rank** (from 1), **head** (from 0), **map** (`numpy.ndarray`, float32,
              `(grid_height, grid_width)`, attention in [0, 1]), **heatmap** (`PIL.Image.Image` of its size), and where
              the trait is, in pixels of the photograph: **peak** (`[x, y]`) and **box** (`[left, top, right, bottom]`).
            - **comparison** (`dict`, with `compare_with`): what speaks for this class, a, and against the other, b.
              Maps have the same shape as above and are in units of the logit (see `PromptCamComparison`). In heatmaps,
              yellow speaks for a, blue for b. **label** and **score** of b; **num_sufficient**: how many of a's most
              important heads suffice for a to score at least as high as b; **map** and **heatmap**: the sum over all
              heads; **own**, **other**, **shared**: the maps of what speaks for a, for b, and for both; **traits**:
              the heads that speak most for a and against b, with the same keys as above; the places are those of what
              speaks for a.

        Raises:
            ValueError: If a photograph cannot be read, or an argument does not fit the model.
            FloatingPointError: If the model's scores are not finite.
        """
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        if type(inputs).__module__.startswith("datasets."):  # which transformers takes for a single input
            inputs = Subset(cast(Any, inputs), range(len(inputs))) if isinstance(inputs, Sized) else iter(inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(  # type: ignore[override]
        self, top_k=None, classes=None, only=None, compare_with=None, top_traits=None, heatmaps=None, timeout=None
    ):
        for name, value in (("top_k", top_k), ("top_traits", top_traits)):
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more.")
        if top_k is not None and classes is not None:
            raise ValueError(f"top_k={top_k} and classes={classes!r} both choose the classes to explain: pass one.")
        if heatmaps is not None and (not isinstance(heatmaps, Integral) or heatmaps < 0):
            raise ValueError(f"heatmaps={heatmaps!r}: expected True, False or a number of pixels.")
        forward: dict[str, Any] = {"prompts": {}}  # a cache for each call: weights may change between calls
        if top_k is not None:
            forward |= {"top_k": min(top_k, self.model.config.num_labels), "classes": None}  # not the pipeline's own
        if classes is not None:
            forward["classes"] = class_labels("classes", classes, self.model.config)
        if only is not None:
            forward["only"] = class_labels("only", only, self.model.config, at_least=2)
        if compare_with is not None:
            forward["compare_with"] = rival_label(compare_with, self.model.config)
        preprocess = {k: v for k, v in (("heatmaps", heatmaps), ("timeout", timeout)) if v is not None}
        return preprocess, forward, {} if top_traits is None else {"top_traits": top_traits}

    def preprocess(self, inputs: Any, timeout: float | None = None, heatmaps: bool | int = True):  # type: ignore[override]
        photograph = load_photograph(inputs, timeout=timeout)
        pixel_values = pixels_of(self.image_processor, photograph)
        shown = (photograph if heatmaps is True else reduced(photograph, heatmaps)) if heatmaps else None
        shares = photograph_shares(self.image_processor, [photograph.size])
        return {"pixel_values": pixel_values, "shares": shares, "size": photograph.size, "photograph": shown}

    def _forward(self, model_inputs, prompts=None, top_k: int = 1, classes=None, only=None, compare_with=None):  # type: ignore[override]
        with self.model.cached_prompts(prompts):
            layer = self.model.last_layer(model_inputs["pixel_values"])
        check_finite(layer.logits, model_inputs["pixel_values"])
        outputs = rank_and_compare(self.model, layer, model_inputs["shares"], top_k, classes, only, compare_with)
        return {**outputs, "size": model_inputs["size"], "photograph": model_inputs["photograph"]}

    def postprocess(self, model_outputs: dict[str, Any], top_traits: int = 4):  # type: ignore[override]
        photograph = model_outputs["photograph"]
        explanations = explanations_from(model_outputs, 0, self.model.config, top_traits, photograph)
        return Explanations(explanations, model_outputs["size"], photograph)


def rank_and_compare(
    model: Any,
    layer: LastLayer,
    shares: torch.Tensor,
    top_k: int = 1,
    classes: list[int] | None = None,
    only: list[int] | None = None,
    compare_with: int | str | None = None,
) -> dict[str, Any]:
    """
    What the model's `rank_heads` says of the same classes of all images, and, with `compared_` before each name, what
    its `compare` says.

    Args:
        model: The model.
        layer: What its `last_layer` returns for the images.
        shares: Of `photograph_shares`. All maps lie over the photographs: see `over_photographs`.
        top_k, classes, only, compare_with: As for the pipeline, but labels instead of names. The scores of classes that
            `only` leaves out are minus infinity.
    """
    layer = layer._replace(logits=keep_only(layer.logits, only))
    most = model.config.num_labels if only is None else len(set(only))
    batch_size, device = len(layer.logits), layer.logits.device
    chosen = None if classes is None else torch.tensor([classes] * batch_size, device=device)
    ranking = rank_heads(model, layer, chosen, min(top_k, most))
    outputs = dict(ranking)
    if compare_with is not None:
        a: Any = ranking.classes
        b = None if isinstance(compare_with, str) else torch.full_like(a, compare_with)
        comparison = compare(model, layer, a, b)
        outputs |= {f"compared_{name}": value for name, value in comparison.items()}
    return outputs | {name: over_photographs(outputs[name], shares) for name in MAPS if name in outputs}


def check_finite(logits: torch.Tensor, pixel_values: torch.Tensor) -> None:
    """Raise a `FloatingPointError` if scores are not finite, and say why."""
    if not logits.isfinite().all():
        broken = "weights" if pixel_values.isfinite().all() else "image processor's mean or standard deviation"
        raise FloatingPointError(f"The model's scores are not finite: bad {broken}.")


def explanations_from(
    outputs: dict[str, Any], image: int, config: Any, top_traits: int, photograph: Any = None
) -> list[dict[str, Any]]:
    """
    The explanations of an image, as the pipeline returns them.

    Args:
        outputs: Of `rank_and_compare`, on the CPU.
        image: Number of the image in the batch.
        config: The model's configuration.
        top_traits: How many traits per class, at most.
        photograph: What to draw heatmaps over; None for none.
    """
    scores = probabilities(outputs["logits"][image], config)
    order, maps = outputs["order"][image], outputs["trait_maps"][image].float().numpy()
    explanations = []
    for row, index in enumerate(outputs["classes"][image].tolist()):
        traits = _traits(order[row, :top_traits].tolist(), maps[row], photograph, draw_heatmap)
        label, score = config.id2label[index], scores[index].item()
        sufficient = outputs["num_sufficient"][image, row].item()
        explanation = {"label": label, "score": score, "num_sufficient": sufficient, "traits": traits}
        if "compared_maps" in outputs:
            explanation["comparison"] = comparison_of(outputs, image, row, top_traits, config, photograph)
        explanations.append(explanation)
    return explanations


def comparison_of(
    outputs: dict[str, Any], image: int, row: int, top_traits: int, config: Any, photograph: Any = None
) -> dict[str, Any]:
    """A comparison as explanations hold it, of the class in this row. Arguments are those of `explanations_from`."""
    rival = outputs["compared_b"][image, row].item()
    maps = outputs["compared_maps"][image, row].float()  # (H, grid_height, grid_width)
    own, other = outputs["compared_contributions"][image, row].float().sum(1).numpy()
    order = maps.sum((-2, -1)).argsort(descending=True, stable=True)[:top_traits].tolist()
    whole = maps.sum(0).numpy()
    return {
        "label": config.id2label[rival],
        "score": probabilities(outputs["logits"][image], config)[rival].item(),
        "num_sufficient": outputs["compared_num_sufficient"][image, row].item(),
        "map": whole,
        "heatmap": None if photograph is None else draw_comparison(photograph, whole),
        "own": own,
        "other": other,
        "shared": outputs["compared_shared"][image, row].float().sum(0).numpy(),
        "traits": _traits(order, maps.numpy(), photograph, draw_comparison),
    }


def _traits(heads: list[int], maps: Any, photograph: Any, draw: Callable) -> list[dict[str, Any]]:
    """Traits as explanations hold them, from heads in their order and the maps (H, grid_height, grid_width) of all."""
    return [
        {
            "rank": rank,
            "head": head,
            "map": maps[head],
            "heatmap": None if photograph is None else draw(photograph, maps[head]),
        }
        for rank, head in enumerate(heads, start=1)
    ]


def class_labels(argument: str, classes: Any, config: Any, at_least: int = 1) -> list[int]:
    """The labels of classes, from their names or labels, or one of them; each once.

    Raises:
        ValueError: If the model does not know a class, or fewer than `at_least` are named by `argument`.
    """
    classes = classes.tolist() if isinstance(classes, torch.Tensor) else classes
    given = [classes] if isinstance(classes, (str, Number)) else list(classes)
    labels = list(dict.fromkeys(_class_label(name, config) for name in given))
    if len(labels) < at_least:
        expected = "one class" if at_least == 1 else f"{at_least} classes"
        raise ValueError(f"{argument}={classes!r}: expected {expected} or more.")
    return labels


def alike_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of classes by their `loose_name`."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(loose_name(name), []).append(name)
    return alike


def loose_name(name: str) -> str:
    """What two spellings of a class have in common that differ in case, underscores for spaces, or Unicode's forms."""
    return normalize("NFC", name).lower().replace(" ", "_")


def rival_label(compare_with: str | int, config: Any) -> int | str:
    """The label of the class to compare with, or "auto"."""
    return "auto" if compare_with == "auto" else _class_label(compare_with, config)


def _class_label(name: Any, config: Any) -> int:
    if isinstance(name, str) and name in config.label2id:
        return config.label2id[name]
    if isinstance(name, str):
        alike, loose = alike_names(config.label2id), loose_name(name)
        if len(alike.get(loose, [])) == 1:
            return config.label2id[alike[loose][0]]
        near = [loose] if loose in alike else get_close_matches(loose, alike, n=3)
        hint = " or ".join(repr(label) for key in near for label in alike[key])
        raise ValueError(
            f"The model knows no class {name!r}; expected {hint or f'one of {config.num_labels} names in id2label'}."
        )
    if not isinstance(name, Integral) or isinstance(name, bool) or name not in range(config.num_labels):
        raise ValueError(f"No class has the label {name!r}; expected 0 to {config.num_labels - 1}, or a name.")
    return int(name)
