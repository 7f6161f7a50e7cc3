"""Photographs in and heatmaps out."""

import os
from io import BytesIO
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps

URL_SCHEMES = ("http://", "https://", "data:image/")

# Matplotlib's "inferno" (van der Walt and Smith, CC0): lightness rises evenly, so that equal steps of a map look equal
_INFERNO = ["000004", "210c4a", "57106e", "8a226a", "bc3754", "e35933", "f98c0a", "f9c932", "fcffa4"]
_ANCHORS = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO])
# 256 sRGB colours (256, 3), uint8
COLOUR_MAP = (
    np.stack(
        [np.interp(np.arange(256), np.linspace(0, 255, len(_ANCHORS)), channel) for channel in _ANCHORS.T], axis=-1
    )
    .round()
    .astype(np.uint8)
)


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
