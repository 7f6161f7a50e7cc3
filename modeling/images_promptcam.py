"""Photographs in and heatmaps out."""

import os
import warnings
from base64 import b64encode
from collections.abc import Sequence
from http.client import HTTPException
from io import BytesIO
from struct import unpack_from
from sys import byteorder
from time import monotonic
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageCms

URL_SCHEMES = ("http://", "https://", "data:image/")
MAX_DOWNLOAD = 1 << 28  # bytes
MAX_PADDED = 8192  # pixels of the side of a square, which takes 200 MB

_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> `Image.Transpose` that makes it upright


def _colours(anchors: str) -> np.ndarray:
    """256 sRGB colours (256, 3) between anchors at equal distances."""
    given = np.array([list(bytes.fromhex(colour)) for colour in anchors.split()])
    channels = [np.interp(np.arange(256), np.linspace(0, 255, len(given)), channel) for channel in given.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


# Matplotlib's "inferno" (van der Walt and Smith, CC0): lightness rises evenly, so that equal steps of a map look equal
COLOUR_MAP = _colours("000004 210c4a 57106e 8a226a bc3754 e35933 f98c0a f9c932 fcffa4")
# "managua" of the Scientific Colour Maps (Crameri, MIT; Crameri et al., Nature Communications 2020), reversed: blue,
# dark, yellow. Lightness rises evenly to both sides, and people of any colour vision can tell the sides apart
TWO_COLOURS = _colours("81e7ff 6baada 5775b3 4c457f 572949 813939 b16243 d89353 ffcf67")


def load_photograph(source: Any, timeout: float | None = None, size: int | None = None) -> Image.Image:
    """
    Read a photograph as a person would see it: upright (EXIF orientation), 8-bit sRGB; transparent pixels on white, of
    an animation the first frame. Of more than 8 bits, white is the largest value that a TIFF file declares (tags 258,
    281, 341), or else that of the fewest usual bits that hold all its values.

    Args:
        source: A path, URL, `io.BytesIO`, `PIL.Image.Image` or array (`(height, width[, channels])` or, if a tensor,
            `([channels,] height, width)`, of `uint8`, or of floats in [0, 1]), or a dictionary that holds one of these
            as `"image"`.
        timeout: Seconds until a download, of at most 256 MiB, has to be complete. Default: 60.
        size: Let JPEG files be read faster, at 1/2, 1/4 or 1/8, with no side shorter than this. Default: the full size.

    Returns:
        The photograph, of mode `"RGB"`.

    Raises:
        ValueError: If it cannot be read; the message names it, what was found, and what is expected.
    """
    if isinstance(source, dict):
        if "image" not in source:
            raise ValueError(f"A dictionary with keys {', '.join(map(repr, source))}: expected the key 'image'.")
        source = source["image"]
    kind = "file" if isinstance(source, BytesIO) else type(source).__name__
    name = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else f"This {kind}"
    name = name if len(name) <= 200 else f"{name[:60]}..."
    name = name if name.isprintable() else repr(name)[1:-1]
    try:
        if isinstance(source, (np.ndarray, torch.Tensor)):
            return _from_array(source)
        if isinstance(source, Image.Image):
            return _read(source)
        file = _open(source, 60 if timeout is None else timeout)
        with Image.open(file) as image:
            if size is not None:
                image.draft(None, (size, size))
            return _read(image, file)
    except Exception as error:  # Pillow raises errors of any type for damaged files
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        problem = f"cannot be read as an image ({reason})"
        if isinstance(error, Image.UnidentifiedImageError):
            problem = "not an image that can be read; expected JPEG, PNG, TIFF, WebP or the like"
        elif isinstance(error, Image.DecompressionBombError):
            problem = f"refused, too large ({reason}); PIL.Image.MAX_IMAGE_PIXELS sets the limit"
        elif isinstance(error, (URLError, TimeoutError, ConnectionError, HTTPException)):
            problem = f"cannot be fetched ({reason})"
        raise ValueError(f"{name}: {problem}.") from None


def _open(source: Any, timeout: float) -> Any:
    if isinstance(source, BytesIO):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError("expected a path, URL, io.BytesIO, PIL image or array")
    if not str(source).startswith(URL_SCHEMES):
        if not os.path.isfile(source):  # to read a pipe or a device might never end
            is_there, is_folder = os.path.exists(source), os.path.isdir(source)
            raise ValueError("it is a folder" if is_folder else "not a regular file" if is_there else "no such file")
        if os.path.getsize(source) == 0:
            raise ValueError("the file is empty")
        return source
    end, content = monotonic() + timeout, BytesIO()
    with urlopen(Request(str(source), headers={"User-Agent": "promptcam-hf"}), timeout=timeout) as response:
        while part := response.read1(1 << 16):
            content.write(part)
            if content.tell() > MAX_DOWNLOAD or monotonic() > end:
                raise URLError(f"more than {MAX_DOWNLOAD >> 20} MiB, or not complete after {timeout:g} seconds")
    return content


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.movedim(0, -1) if array.dim() == 3 and array.shape[0] in (1, 3, 4) else array).numpy()
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"its shape is {array.shape}, expected (height, width) or (height, width, channels)")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    array = _to_8_bits(array, {}) if np.issubdtype(array.dtype, np.floating) else array
    if array.dtype != np.uint8:
        raise ValueError(f"its type is {array.dtype}, expected uint8, or floats in [0, 1]")
    return _to_srgb(Image.fromarray(array), None)


def _read(image: Image.Image, file: Any = None) -> Image.Image:
    try:
        frame = image.tell()
    except AttributeError:  # a copied or pickled picture: without a file, and without other frames
        frame = 0
    if frame:  # the first one, but leave the caller's picture as it is
        image.seek(0)
        try:
            return _read(image)
        finally:
            image.seek(frame)
    tags, tiles = dict(getattr(image, "tag_v2", {})), getattr(image, "tile", [])
    modes = str([tile.args for tile in tiles])
    try:
        image.load()
    except Exception:
        if image.format != "TIFF" or getattr(image, "tile", []):  # else all pixels are read, and its EXIF is damaged
            raise
    pixels = image
    if image.mode[0] in "IF":
        pixels = Image.fromarray(_to_8_bits(np.asarray(image), tags))
    elif file and image.mode == "RGB" and ";16" in modes and np.max(image.getextrema()) < 64:
        pixels = Image.fromarray(_to_8_bits(_with_lower_bytes(image, file), tags))
    pixels = _to_srgb(pixels, image.info.get("icc_profile"))
    turn = _TURNS.get(_orientation(image))
    return pixels if turn is None else pixels.transpose(Image.Transpose(turn))


def _orientation(image: Image.Image) -> Any:
    """EXIF orientation, 1 to 8; None if there is none, or it is damaged."""
    try:
        return image.getexif()[0x0112]
    except Exception:
        pass
    try:  # other tags may be damaged, at which Pillow below 13 stops
        exif = image.info["exif"].removeprefix(b"Exif\0\0")
        order = "<" if exif[:2] == b"II" else ">"
        (start,) = unpack_from(f"{order}L", exif, 4)
        (count,) = unpack_from(f"{order}H", exif, start)
        tags = [unpack_from(f"{order}HHLH", exif, start + 2 + 12 * number) for number in range(count)]
        return next((value for tag, kind, _, value in tags if (tag, kind) == (0x0112, 3)), None)
    except Exception:
        return None


def _with_lower_bytes(image: Image.Image, file: Any) -> np.ndarray:
    """16-bit colours. Pillow keeps their upper bytes; read in the other byte order, their lower bytes."""
    lower: Any = Image.open(file)
    with lower:
        for index, tile in enumerate(lower.tile):
            mode, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args
            order = "L" if mode[-1] == "B" or (mode[-1] == "N" and byteorder == "big") else "B"
            lower.tile[index] = tile._replace(args=(mode[:-1] + order, *rest))
        return np.asarray(image) * np.uint16(256) + np.asarray(lower)


def _to_8_bits(values: np.ndarray, tags: dict[int, Any]) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are NaN or infinite")
    is_float, least, most = values.dtype.kind == "f", values.min(), values.max()
    if is_float and (least < 0 or 1 < most < 16 or most >= 2**16):
        raise ValueError(f"its values run from {least:.3g} to {most:.3g}, expected floats in [0, 1] or [0, 255]")
    declared = [np.max(tags[tag]) for tag in (341, 281) if tag in tags] + [2 ** np.max(tags.get(258, 16)) - 1]
    usual = ([1] if is_float else []) + [2**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 32)]
    white: Any = next((white for white in declared if most <= white not in (2**16 - 1, 2**32 - 1)), None)
    if white is None and (white := next(white for white in usual if most <= white)) not in (1, 2**16 - 1):
        warnings.warn(f"Photographs that do not say which value is white: {white} was taken.", stacklevel=2)
    return (values.clip(0, white) * np.float32(255 / white)).round().astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if 0 in image.size:
        raise ValueError("it has no pixels")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        flat = Image.new("RGB", image.size, "white")
        rows = 1 + 2**20 // image.width  # a few at a time, as RGBA takes four bytes a pixel
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
            flat.paste(band, (0, top), band)
        image = flat
    is_lab = image.mode == "LAB"
    if is_lab or profile:
        image = image if image.mode in ("L", "CMYK", "LAB") else image.convert("RGB")
        try:
            given = ImageCms.createProfile("LAB") if is_lab else ImageCms.ImageCmsProfile(BytesIO(profile or b""))
            if "sRGB" not in ImageCms.getProfileDescription(given):
                srgb = ImageCms.createProfile("sRGB")
                image = ImageCms.profileToProfile(image, given, srgb, outputMode="RGB") or image
        except Exception:  # a damaged profile, or one of another kind of image
            pass
    return image.convert("RGB")


def reduced(photograph: Image.Image, side: int) -> Image.Image:
    """A copy of a photograph with no side longer than `side` pixels."""
    small = photograph.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    """The content of an image file. Format and options are Pillow's, such as `"PNG"`, or `"JPEG"` and `quality=85`."""
    file = BytesIO()
    picture.save(file, format=format, **options)
    return file.getvalue()


def data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG in a `data:` URI, so that a page needs no files beside it."""
    return f"data:image/jpeg;base64,{b64encode(encoded(picture, 'JPEG', quality=88)).decode()}"


def pads_to_square(image_processor: Any) -> bool:
    """Whether an image processor keeps the aspect ratio: it pads photographs to a square, before it resizes them, as
    `LlavaImageProcessor` of transformers does. The photograph is in the middle."""
    return bool(getattr(image_processor, "do_pad", None)) and hasattr(image_processor, "pad_to_square")


def paddable(photograph: Image.Image) -> Image.Image:
    """The photograph, reduced if it is so long that its square would take too much memory."""
    return photograph if max(photograph.size) <= MAX_PADDED else reduced(photograph, MAX_PADDED)


def pixels_of(image_processor: Any, photograph: Image.Image, **options: Any) -> torch.Tensor:
    """Pixel values `(1, channels, height, width)` of a photograph; `options` are the image processor's."""
    photograph = paddable(photograph) if pads_to_square(image_processor) else photograph
    return image_processor(images=photograph, return_tensors="pt", **options)["pixel_values"]


def photograph_shares(image_processor: Any, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """
    How much of what a model sees is the photograph, and not padding.

    Args:
        image_processor: The model's.
        sizes: Widths and heights of B photographs.

    Returns:
        Shares of width and height `(B, 2)`, float32, in (0, 1]: 1 and 1 if the image processor does not pad.
    """
    sides = torch.tensor(sizes, dtype=torch.float32)
    return sides / sides.amax(-1, keepdim=True) if pads_to_square(image_processor) else torch.ones_like(sides)


def over_photographs(grids: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """
    Lay grids of patches over the photographs alone, without their padding. A value of the result is that of the patches
    at its place in the photograph, linear between the centres of patches. Patches of padding alone play no part.

    Args:
        grids: Values over what the model sees, such as trait maps, `(B, ..., grid_height, grid_width)`.
        shares: Of `photograph_shares`, `(B, 2)`.

    Returns:
        Values over the photographs, of the same shape; the given ones where nothing is padded.
    """
    if bool((shares == 1).all()):
        return grids
    width_shares, height_shares = shares.to(grids.device).T
    rows, columns = _cells(grids.shape[-2], height_shares), _cells(grids.shape[-1], width_shares)
    return torch.einsum("byj,b...jk,bxk->b...yx", rows, grids.float(), columns).to(grids.dtype)


def _cells(number: int, shares: torch.Tensor) -> torch.Tensor:
    """Weights `(B, cells, patches)` of a number of patches in a row for as many cells, which divide the share `(B,)` in
    the middle of the row."""
    patches = torch.arange(number, dtype=shares.dtype, device=shares.device)
    middle, shares = (number - 1) / 2, shares[:, None]
    first = ((1 - shares) * number / 2 + 1e-3).floor()  # patch with some of the photograph; 1e-3: rounding
    first = first.clamp_max((number - 1) // 2)
    centres = middle + (patches - middle) * shares  # of the cells (B, cells), in patches from the centre of the first
    centres = centres.maximum(first).minimum(number - 1 - first)
    return (1 - (centres[..., None] - patches).abs()).clamp_min(0)


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
    return _overlay(photograph, strength / max(float(strength.max()), 1e-30), (0.0, 1.0), COLOUR_MAP, 0.35)


def draw_comparison(photograph: Image.Image, signed_map: np.ndarray, scale: float | None = None) -> Image.Image:
    """
    Lay a map of two signs over its photograph, which becomes grey: yellow where it is positive, blue where it is
    negative, dark where it is about 0.

    Args:
        photograph: The photograph, of mode `"RGB"` and any size.
        signed_map: Values `(grid_height, grid_width)` of any sign, over the whole photograph.
        scale: The absolute value that gets the lightest colour, so that several maps compare in strength. Default: the
            largest of the map.

    Returns:
        An image of the photograph's size.
    """
    signed = np.asarray(signed_map, dtype=np.float32)
    scale = float(np.abs(signed).max()) if scale is None else scale
    return _overlay(photograph.convert("L").convert("RGB"), signed / max(scale, 1e-30), (-1.0, 1.0), TWO_COLOURS, 0.2)


def _overlay(
    photograph: Image.Image, values: np.ndarray, span: tuple[float, float], colours: np.ndarray, opacity_at_0: float
) -> Image.Image:
    """Colours laid over a photograph: values (grid_height, grid_width) in `span` choose among them, and the farther a
    value is from 0, the more opaque its colour, up to 0.8."""
    grid, (width, height), picture = Image.fromarray(values), photograph.size, Image.new("RGB", photograph.size)
    rows = 1 + 2**18 // width  # a few at a time, as floats take many bytes a pixel
    for top, bottom in ((top, min(top + rows, height)) for top in range(0, height, rows)):
        box = (0, top * grid.height / height, grid.width, bottom * grid.height / height)
        smooth = grid.resize((width, bottom - top), Image.Resampling.BICUBIC, box)
        strength = np.asarray(smooth).clip(*span)
        place = (strength - span[0]) / (span[1] - span[0])
        colour = colours[np.round(place * 255).astype(np.uint8)].astype(np.float32)  # (rows, width, 3)
        opacity = opacity_at_0 + (0.8 - opacity_at_0) * np.abs(strength[..., None])
        band = np.asarray(photograph.crop((0, top, width, bottom)), dtype=np.float32)
        picture.paste(Image.fromarray((band * (1 - opacity) + colour * opacity).round().astype(np.uint8)), (0, top))
    return picture
