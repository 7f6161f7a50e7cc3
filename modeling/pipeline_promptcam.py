"""The `"prompt-cam"` pipeline: a photograph in, labels and the traits that speak for them out."""

from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .images_promptcam import draw_heatmap, load_photograph


class PromptCamPipeline(Pipeline):
    """
    Prompt-CAM pipeline: classifies photographs and shows, for each class asked about, the traits that speak for it.

    A trait is a head of the last layer: the attention of the class's prompt, laid over the photograph. Traits come in
    the order of how much the class's probability needs them (greedy blurring; Chowdhury et al., CVPR 2025).

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import promptcam_hf

    >>> traits = pipeline("prompt-cam", model="path/or/hub-id")
    >>> result = traits("scott_oriole.jpg", top_k=2, top_traits=4)
    >>> result[0]["label"], result[0]["score"]
    >>> result[0]["traits"][0]["heatmap"].show()
    ```

    The image processor must show the model the whole photograph: one that crops is refused.
    """

    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = True  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    model: Any
    image_processor: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "rank_heads"):
            raise ValueError(f"{type(self.model).__name__} is no Prompt-CAM model; expected one of type 'promptcam'.")
        if self.image_processor is None:
            raise ValueError("The prompt-cam pipeline needs an image processor: pass image_processor=...")
        if getattr(self.image_processor, "do_center_crop", None):
            raise ValueError(
                "The image processor crops (do_center_crop=True), so maps would not lie over the whole photograph; "
                "expected one that resizes only."
            )

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """
        Explain photographs.

        Args:
            inputs: A path, URL, `PIL.Image.Image` or array (`(height, width[, channels])` of `uint8`, or of floats in
                [0, 1]), a dictionary that holds one of these as `"image"`, or a list, dataset or generator of them.
            top_k (`int`, *optional*, defaults to 1):
                How many classes to explain, the most probable first.
            classes (`list[str | int]`, *optional*):
                Names or indices of the classes to explain instead, whatever they score.
            top_traits (`int`, *optional*, defaults to 4):
                How many traits to give a class, the most important first; all heads if there are fewer.
            heatmaps (`bool`, *optional*, defaults to `True`):
                Whether to draw; otherwise every `"heatmap"` is `None`.
            batch_size (`int`, *optional*, defaults to 1): Photographs to a forward pass.
            timeout (`float`, *optional*): Seconds to wait for a URL. By default no limit.

        Returns:
            For a photograph a list of explanations, for several of them a list (or, for a generator or dataset, an
            iterator) of such lists. An explanation is a dictionary:

            - **label** (`str`), **score** (`float`): the class, and its probability in [0, 1].
            - **num_sufficient** (`int`): how many of the most important heads suffice for the photograph to be
              classified so; 0 if it is not, or if it still is with all heads blurred.
            - **traits** (`list[dict]`): **rank** (`int`, from 1), **head** (`int`, from 0), **map** (`numpy.ndarray`,
              float32, `(grid_height, grid_width)`, attention in [0, 1]) and **heatmap** (`PIL.Image.Image`: the map
              over the photograph, as large as it).

        Raises:
            ValueError: If a photograph cannot be read, or an argument does not fit the model.
        """
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        if type(inputs).__module__.startswith("datasets."):  # which transformers takes for a single input
            inputs = (row for row in inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(  # type: ignore[override]
        self,
        top_k: int | None = None,
        classes: list[str | int] | str | int | None = None,
        top_traits: int | None = None,
        heatmaps: bool | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, value in (("top_k", top_k), ("top_traits", top_traits)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: expected a whole number from 1.")
        if top_k is not None and classes is not None:
            raise ValueError(f"top_k={top_k} and classes={classes!r} both choose the classes to explain: pass one.")
        forward: dict[str, Any] = {}
        if top_k is not None:
            forward["top_k"] = min(top_k, self.model.config.num_labels)
        if classes is not None:
            forward["classes"] = [self._class_index(name) for name in np.atleast_1d(np.array(classes, dtype=object))]
        given = {"top_traits": top_traits, "heatmaps": heatmaps}
        postprocess = {name: value for name, value in given.items() if value is not None}
        return {} if timeout is None else {"timeout": timeout}, forward, postprocess

    def _class_index(self, name: str | int) -> int:
        label2id, num_labels = self.model.config.label2id, self.model.config.num_labels
        if isinstance(name, str):
            if name in label2id:
                return label2id[name]
            plain = {label.lower().replace(" ", "_"): label for label in label2id}
            near = get_close_matches(name.lower().replace(" ", "_"), plain, n=3)
            hint = " or ".join(repr(plain[label]) for label in near) or f"one of {num_labels} names in id2label"
            raise ValueError(f"classes: the model knows no class {name!r}; expected {hint}.")
        if not 0 <= name < num_labels:
            raise ValueError(f"classes: {name} is out of range; expected 0 to {num_labels - 1}.")
        return int(name)

    def preprocess(self, inputs: Any, timeout: float | None = None) -> dict[str, Any]:  # type: ignore[override]
        photograph = load_photograph(inputs, timeout=timeout)
        pixel_values = self.image_processor(images=photograph, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, "photograph": photograph}

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], top_k: int = 1, classes: list[int] | None = None
    ) -> dict[str, Any]:
        pixel_values = model_inputs["pixel_values"]
        chosen = None if classes is None else torch.tensor([classes] * len(pixel_values))
        ranking = self.model.rank_heads(pixel_values, chosen, top_k)
        return {**ranking, "photograph": model_inputs["photograph"]}

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Any], top_traits: int = 4, heatmaps: bool = True
    ) -> list[dict[str, Any]]:
        scores = model_outputs["logits"][0].softmax(-1)
        order, maps = model_outputs["order"][0], model_outputs["trait_maps"][0].float().numpy()
        explanations = []
        for row, index in enumerate(model_outputs["classes"][0].tolist()):
            traits = []
            for rank, head in enumerate(order[row, :top_traits].tolist(), start=1):
                trait_map = maps[row, head]
                heatmap = draw_heatmap(model_outputs["photograph"], trait_map) if heatmaps else None
                traits.append({"rank": rank, "head": head, "map": trait_map, "heatmap": heatmap})
            explanations.append(
                {
                    "label": self.model.config.id2label[index],
                    "score": scores[index].item(),
                    "num_sufficient": model_outputs["num_sufficient"][0, row].item(),
                    "traits": traits,
                }
            )
        return explanations


__all__ = ["PromptCamPipeline"]
