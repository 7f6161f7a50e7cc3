"""The `"prompt-cam"` pipeline: a photograph in, labels and the traits that speak for them out."""

import os
from difflib import get_close_matches
from io import BytesIO
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import Pipeline

URL_SCHEMES = ("http://", "https://", "data:image/")


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
        native_size = self.model.config.backbone_config.image_size
        native_size = (native_size, native_size) if isinstance(native_size, int) else tuple(native_size)
        other_size = tuple(pixel_values.shape[-2:]) != native_size
        chosen = None if classes is None else torch.tensor([classes] * len(pixel_values))
        ranking = self.model.rank_heads(pixel_values, chosen, top_k, interpolate_pos_encoding=other_size or None)
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


# --- Photographs ------------------------------------------------------------------------------------------------------


def load_photograph(source: Any, timeout: float | None = None) -> Image.Image:
    """
    Read a photograph as a person would see it: upright (EXIF orientation), 8-bit RGB; 16-bit values scaled, transparent
    pixels on white, of an animation the first frame.

    Args:
        source: A path, URL, `PIL.Image.Image` or array (`(height, width[, channels])` or, if a tensor,
            `([channels,] height, width)`, of `uint8`, or of floats in [0, 1]), or a dictionary that holds one of these
            as `"image"`.
        timeout: Seconds to wait for a URL. By default no limit.

    Returns:
        The photograph, of mode `"RGB"`.

    Raises:
        ValueError: If it cannot be read; the message names it, what was found, and what is expected.
    """
    if isinstance(source, dict):
        if "image" not in source:
            raise ValueError(f"A dictionary with keys {', '.join(map(repr, source))}: expected the key 'image'.")
        source = source["image"]
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"This {type(source).__name__}"
    name = name if len(name) <= 200 else f"{name[:60]}..."
    try:
        if isinstance(source, (np.ndarray, torch.Tensor)):
            return _from_array(source)
        image = source if isinstance(source, Image.Image) else Image.open(_open(source, timeout))
        image.seek(0)
        upright = ImageOps.exif_transpose(image)
        return _to_rgb(image if upright is None else upright)
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{name}: not an image that can be read; expected JPEG, PNG, TIFF, WebP or the like."
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: refused, too large ({error}).") from None
    except (URLError, TimeoutError) as error:
        raise ValueError(f"{name}: cannot be fetched ({getattr(error, 'reason', error)}).") from None
    except (OSError, SyntaxError, EOFError, ValueError, TypeError) as error:
        raise ValueError(f"{name}: cannot be read as an image ({error}).") from None


def _open(source: Any, timeout: float | None) -> Any:
    if isinstance(source, str) and source.startswith(URL_SCHEMES):
        with urlopen(Request(source, headers={"User-Agent": "promptcam-hf"}), timeout=timeout) as response:
            return BytesIO(response.read())
    if isinstance(source, (str, os.PathLike)):
        if not os.path.exists(source):
            raise ValueError("no such file")
        if os.path.isdir(source):
            raise ValueError("it is a folder")
        if os.path.getsize(source) == 0:
            raise ValueError("the file is empty")
        return source
    raise TypeError("expected a path, URL, PIL image or array")


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.movedim(0, -1) if array.dim() == 3 and array.shape[0] in (1, 3, 4) else array).numpy()
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"its shape is {array.shape}, expected (height, width) or (height, width, channels)")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        return _to_rgb(Image.fromarray(_from_floats(array)))
    if array.dtype != np.uint8:
        raise ValueError(f"its type is {array.dtype}, expected uint8, or floats in [0, 1]")
    return _to_rgb(Image.fromarray(array))


def _from_floats(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError("it has pixels that are NaN or infinite")
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"its values run from {array.min():.3g} to {array.max():.3g}, expected floats in [0, 1]")
    return np.round(array * 255).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        image = Image.fromarray(_from_floats(np.asarray(image)))
    elif image.mode.startswith("I"):  # 16 bits and more, which `convert` would clip to white
        values = np.asarray(image)
        image = Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# --- Heatmaps ---------------------------------------------------------------------------------------------------------


def draw_heatmap(photograph: Image.Image, trait_map: np.ndarray) -> Image.Image:
    """
    Lay a trait map over its photograph: the more attention, the lighter and the more opaque.

    Args:
        photograph: The photograph, of mode `"RGB"` and any size.
        trait_map: Attention `(grid_height, grid_width)`, 0 or more, over the whole photograph. Its largest value gets
            the lightest colour, so that maps compare in shape and not in strength.

    Returns:
        An image of the photograph's size.
    """
    strength = np.asarray(trait_map, dtype=np.float32)
    strength = strength / max(float(strength.max()), 1e-30)
    smooth = Image.fromarray(strength).resize(photograph.size, Image.Resampling.BICUBIC)
    strength = np.asarray(smooth).clip(0.0, 1.0)
    colour = COLOUR_MAP[np.round(strength * 255).astype(np.uint8)].astype(np.float32)  # (height, width, 3)
    opacity = 0.35 + 0.45 * strength[..., None]
    blend = np.asarray(photograph, dtype=np.float32) * (1 - opacity) + colour * opacity
    return Image.fromarray(blend.round().astype(np.uint8))


def _colour_map() -> np.ndarray:
    """256 sRGB colours `(256, 3)`, uint8, from dark violet through red and orange to light yellow: lightness rises in
    equal steps and chroma stays within the gamut, in OKLab (Ottosson, 2020), so equal steps of a map look equal."""
    step = np.linspace(0.0, 1.0, 256)
    lightness, hue = 0.16 + 0.80 * step, np.radians(290.0 + 175.0 * step)
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    colours = np.zeros((256, 3))
    for chroma in np.linspace(0.0, 0.21, 64):  # the largest that a screen can show
        lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
        linear = ((lab @ to_lms.T) ** 3) @ to_rgb.T
        shown = ((linear >= 0) & (linear <= 1)).all(axis=-1)
        colours[shown] = linear[shown]
    srgb = np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours.clip(0) ** (1 / 2.4) - 0.055)
    return np.round(srgb * 255).astype(np.uint8)


COLOUR_MAP = _colour_map()

__all__ = ["PromptCamPipeline"]
