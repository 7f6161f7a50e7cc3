"""Photographs in and heatmaps out."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from promptcam_hf.modeling.images_promptcam import COLOUR_MAP, draw_heatmap, load_photograph


def test_every_kind_of_image_is_read_as_a_person_sees_it(tmp_path):
    half = Image.linear_gradient("L").resize((8, 8))
    grey = np.asarray(half).astype(np.float32)

    def read(image: Image.Image, name: str, **options) -> np.ndarray:
        image.save(tmp_path / name, **options)
        found = load_photograph(tmp_path / name)
        assert (found.mode, found.size) == ("RGB", image.size)
        return np.asarray(found).astype(np.float32)

    rgb = np.repeat(grey[..., None], 3, axis=2)
    for mode, name in (("L", "a.png"), ("RGB", "b.png"), ("P", "c.png"), ("RGBA", "d.png"), ("LA", "e.png")):
        np.testing.assert_allclose(read(half.convert(mode), name), rgb, atol=1)
    np.testing.assert_allclose(read(half.convert("RGB").convert("CMYK"), "f.tif"), rgb, atol=1)
    sixteen = Image.fromarray((grey * 257).astype(np.uint16))
    np.testing.assert_allclose(read(sixteen, "g.png"), rgb, atol=1)
    np.testing.assert_allclose(read(sixteen, "h.tif"), rgb, atol=1)
    np.testing.assert_allclose(read(Image.fromarray(grey / 255), "i.tif"), rgb, atol=1)
    assert read(half.point(lambda value: 255 * (value > 127), "1"), "j.png").max() == 255


def test_transparent_pixels_are_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    image.save(tmp_path / "a.png")
    image.quantize().save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        found = load_photograph(tmp_path / name)
        assert found.getpixel((3, 3)) == (255, 255, 255)
        assert found.getpixel((0, 0)) == (0, 0, 255)


def test_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        red, green, blue = load_photograph(tmp_path / name).getpixel((2, 2))
        assert red > 240
        assert max(green, blue) < 15
    animation = Image.open(tmp_path / "a.gif")
    animation.seek(2)
    assert load_photograph(animation).getpixel((2, 2))[0] > 240


def test_photographs_are_turned_upright_as_their_exif_says(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: the left is up
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    found = load_photograph(tmp_path / "turned.jpg")
    assert found.size == (20, 40)
    assert found.getpixel((10, 5))[0] > 240
    assert found.getpixel((10, 35))[0] < 15


def test_unreadable_photographs_are_named_with_the_reason(tmp_path, photograph, monkeypatch):
    content = photograph.read_bytes()
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, reason in (
        ("missing.jpg", "no such file"),
        ("empty.jpg", "the file is empty"),
        ("text.jpg", "not an image that can be read; expected JPEG"),
        ("cut.jpg", "truncated"),
        ("header.png", "image"),
        (".", "it is a folder"),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            load_photograph(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert len(str(error.value).splitlines()) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"refused, too large .* decompression bomb"):
        load_photograph(photograph)


def test_arrays_that_are_no_photograph_are_refused():
    for array, reason in (
        (np.full((4, 4, 3), np.nan, np.float32), "pixels that are NaN"),
        (torch.full((3, 4, 4), torch.inf), "pixels that are NaN or infinite"),
        (np.full((4, 4), 1.5), "values run from 1.5 to 1.5, expected floats in"),
        (np.zeros((4, 4, 7), np.uint8), r"shape is \(4, 4, 7\)"),
        (np.zeros((4, 4, 3), np.int64), "type is int64, expected uint8"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_photograph(array)
    with pytest.raises(ValueError, match="keys 'label'"):
        load_photograph({"label": 3})
    with pytest.raises(ValueError, match="expected a path, URL, PIL image or array"):
        load_photograph(5)


# Heatmaps


def test_colours_rise_in_lightness_by_equal_steps():
    linear = np.where(COLOUR_MAP <= 10.31, COLOUR_MAP / 12.92 / 255, ((COLOUR_MAP / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    # CIE L*, which no part of the colour map is made from
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    assert (np.diff(lightness[::8]) > 0).all()
    assert np.corrcoef(lightness, np.arange(256))[0, 1] > 0.99
    assert lightness[0] < 10
    assert lightness[-1] > 90


def test_heatmap_is_brightest_where_the_map_is_largest():
    trait_map = np.zeros((4, 8), np.float32)
    trait_map[1, 6] = 0.02
    photograph = Image.new("RGB", (160, 40), (60, 60, 60))
    heatmap = np.asarray(draw_heatmap(photograph, trait_map)).astype(int).sum(-1)
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    assert 10 <= row < 20
    assert 120 <= column < 140
    assert heatmap[:, :80].max() < heatmap.max() / 2


def test_map_of_zeros_is_drawn_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_heatmap(Image.new("RGB", (9, 9)), np.zeros((3, 3), np.float32)).size == (9, 9)
