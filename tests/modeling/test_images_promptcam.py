"""Photographs in and heatmaps out."""

import copy
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageCms, ImageSequence
from promptcam_hf.modeling import images_promptcam
from promptcam_hf.modeling.images_promptcam import (
    COLOUR_MAP,
    draw_heatmap,
    load_photograph,
    over_photographs,
    pixels_of,
)

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import TrainTransform

from ..conftest import SHARED
from .mutations import damaged_exif, damaged_files, outcome


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


def test_unreadable_photographs_are_named_with_the_reason(tmp_path, photograph):
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


def test_arrays_that_are_no_photograph_are_refused():
    for array, reason in (
        (np.full((4, 4, 3), np.nan, np.float32), "pixels that are NaN"),
        (torch.full((3, 4, 4), torch.inf), "pixels that are NaN or infinite"),
        (np.full((4, 4), 1.5), "values run from 1.5 to 1.5, expected floats in"),
        (np.zeros((4, 4, 7), np.uint8), r"shape is \(4, 4, 7\)"),
        (np.zeros((4, 4, 3), np.int64), "type is int64, expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (Image.new("RGB", (0, 4)), "has no pixels"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_photograph(array)
    with pytest.raises(ValueError, match="keys 'label'"):
        load_photograph({"label": 3})
    with pytest.raises(ValueError, match=r"expected a path, URL, io\.BytesIO, PIL image or array"):
        load_photograph(5)


# Values of other than 8 bits, and other colours


def gradient() -> np.ndarray:
    """Grey from 0 to 255 (16, 16), float32."""
    return np.arange(256, dtype=np.float32).reshape(16, 16)


def png_of_16_bits(colours: np.ndarray) -> bytes:
    """A PNG file of 16-bit colours (height, width, 3), which Pillow cannot write."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in colours)
    header = struct.pack(">IIBBBBB", colours.shape[1], colours.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.filterwarnings("ignore:Photographs that do not say")
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_white_is_found_from_the_values(tmp_path, bits):
    values, expected = gradient() * (2**bits - 1) / 255, np.repeat(gradient()[..., None], 3, axis=2)
    for array in (values.astype(np.uint16), values.astype(np.int32), values.astype(np.float32)):
        Image.fromarray(array).save(tmp_path / "grey.tif")
        np.testing.assert_allclose(np.asarray(load_photograph(tmp_path / "grey.tif")), expected, atol=1)
    colours = np.stack([values, values[::-1], values.T], axis=-1).astype(np.uint16)
    (tmp_path / "colours.png").write_bytes(png_of_16_bits(colours))
    expected = np.stack([gradient(), gradient()[::-1], gradient().T], axis=-1)
    for source in (tmp_path / "colours.png", io.BytesIO(png_of_16_bits(colours))):
        np.testing.assert_allclose(np.asarray(load_photograph(source)), expected, atol=1)


def test_white_is_what_the_file_declares_and_a_guess_is_pointed_out(tmp_path):
    Image.fromarray((gradient() * 4).astype(np.uint16)).save(tmp_path / "a.tif", tiffinfo={281: 2040})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.asarray(load_photograph(tmp_path / "a.tif"))[..., 0]
    np.testing.assert_allclose(found, gradient() / 2, atol=1)
    Image.fromarray((gradient() * 4).astype(np.uint16)).save(tmp_path / "b.tif")
    with pytest.warns(UserWarning, match="do not say which value is white: 1023 was taken"):
        load_photograph(tmp_path / "b.tif")


def test_colours_are_read_by_their_profile(tmp_path):
    # sRGB with red and green exchanged
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"tmp0"), (b"gXYZ", b"rXYZ"), (b"tmp0", b"gXYZ")):
        profile = profile.replace(old, new, 1)
    profile = profile.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    image = Image.new("RGB", (4, 4), (250, 20, 30))
    for name in ("a.png", "a.tif"):
        image.save(tmp_path / name, icc_profile=profile)
        np.testing.assert_allclose(load_photograph(tmp_path / name).getpixel((0, 0)), (20, 250, 30), atol=3)
    image.save(tmp_path / "damaged.png", icc_profile=profile[:200])
    assert load_photograph(tmp_path / "damaged.png").getpixel((0, 0)) == (250, 20, 30)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(image, to_lab).save(tmp_path / "lab.tif")
    np.testing.assert_allclose(load_photograph(tmp_path / "lab.tif").getpixel((0, 0)), (250, 20, 30), atol=6)


@pytest.mark.filterwarnings("ignore:Photographs that do not say")
@pytest.mark.parametrize(("reference", "same_as_it", "atol"), [
    ("grey16.png", ["grey12in16.tif", "grey16.tif", "grey_int32.tif", "grey_float01.tif", "grey_float255.tif"], 1.5),
    ("ext.bmp", ["rgb12in16.tif", "rgb16.png", "rgb16.tif", "lab.tif", "ext.jp2", "ext.tga", "ext.ppm"], 1.5),
    ("ext.bmp", ["adobe_rgb_icc.jpg", "ext.avif", "ext.jfif", "ext.webp", "exif_bad9.jpg", "ycbcr.tif"], 4),
])  # fmt: skip
def test_pictures_of_a_bird_in_every_format_are_alike(reference, same_as_it, atol):
    folder = SHARED / "cases" / "formats"
    if not folder.is_dir():
        pytest.skip("the photographs of shared/cases/formats are not here")
    expected = np.asarray(load_photograph(folder / reference)).astype(float)
    if int(PIL.__version__.split(".")[0]) < 13:  # which reads no such file
        same_as_it = [name for name in same_as_it if name != "ycbcr.tif"]
    for name in same_as_it:
        found = np.asarray(load_photograph(folder / name)).astype(float)
        assert np.abs(found - expected).mean() < atol, name


# Damage


def test_damaged_photographs_are_read_or_refused():
    outcomes = [outcome(content) for _, content in damaged_files(300, seed=0)]
    assert 50 < outcomes.count("read") < 250


def test_damaged_exif_costs_no_pixels():
    for name, content in damaged_exif(150, seed=0):
        assert outcome(content) == "read" or name == "AVIF"  # which Pillow itself may not open
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "a maker of cameras"
    damaged = bytearray(tags.tobytes())
    place = damaged.index(struct.pack(">HH", 0x010F, 2))
    damaged[place + 4 : place + 12] = b"\xff" * 8  # where the name of the maker is, and how long
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=bytes(damaged))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_photograph(file).size == (20, 40)


def test_copied_and_pickled_pictures_are_read(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        for make in (copy.copy, copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image)), Image.Image.copy):
            assert load_photograph(make(Image.open(tmp_path / name))).getpixel((2, 2))[0] > 240


def test_animations_stay_at_their_frame(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        animation = Image.open(tmp_path / name)
        seen = []
        for frame in ImageSequence.Iterator(animation):
            assert load_photograph(frame).getpixel((2, 2))[0] > 240
            seen.append(frame.convert("RGB").getpixel((2, 2)).index(max(frame.convert("RGB").getpixel((2, 2)))))
        assert seen == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            load_photograph(path)


def test_names_are_in_one_line(tmp_path):
    (tmp_path / "a\nb.jpg").write_text("no photograph")
    with pytest.raises(ValueError, match=r"a\\nb\.jpg: not an image") as error:
        load_photograph(tmp_path / "a\nb.jpg")
    assert len(str(error.value).splitlines()) == 1


# Large photographs


def test_limit_for_scans_can_be_raised(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    with pytest.raises(ValueError, match=r"too large .*PIL\.Image\.MAX_IMAGE_PIXELS sets the limit"):
        load_photograph(tmp_path / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert load_photograph(tmp_path / "scan.png").size == (100, 100)


def test_jpegs_are_read_at_no_more_than_the_size_needed(tmp_path):
    image = Image.radial_gradient("L").resize((800, 640)).convert("RGB")
    image.save(tmp_path / "a.jpg")
    for size, expected in ((None, (800, 640)), (640, (800, 640)), (300, (400, 320)), (100, (200, 160)), (1, (100, 80))):
        assert load_photograph(tmp_path / "a.jpg", size=size).size == expected
    small = np.asarray(load_photograph(tmp_path / "a.jpg", size=100)).astype(float)
    np.testing.assert_allclose(small, np.asarray(image.reduce(4)), atol=8)


MEASURE = """
import resource, sys
import numpy as np
from PIL import Image
from promptcam_hf.modeling.images_promptcam import draw_heatmap, load_photograph
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
draw_heatmap(load_photograph(sys.argv[1]), np.ones((14, 14), np.float32))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_large_transparent_image_takes_little_more_than_its_pixels(tmp_path):
    side = 5000
    Image.new("P", (side, side)).save(tmp_path / "large.gif", transparency=0)
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "large.gif"], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 16 * side**2  # bytes; a picture takes 4 a pixel, and there are 3 at a time


# Downloads


@pytest.fixture
def answering():
    """Serves given bytes again and again until the other side hangs up; the function returns the URL."""
    servers = []

    def serve(first: bytes, then: bytes = b"", pause: float = 0.0) -> str:
        class Handler(StreamRequestHandler):
            def handle(self):
                self.rfile.readline()
                try:
                    self.wfile.write(first)
                    while then:
                        self.wfile.write(then)
                        time.sleep(pause)
                except OSError:
                    pass

        server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/bird.jpg"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((OK + b"\r\n", b"x" * 65536), "more than 1 MiB"),
        ((OK + b"\r\n", b"x", 0.01), "not complete after 0\\.2 seconds"),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",), "cannot be fetched"),
        ((b"HTTX nonsense\r\n\r\n",), "cannot be fetched"),
        ((OK + b"Content-Length: 900\r\n\r\nab",), "not an image"),
        ((b"HTTP/1.1 404 Not Found\r\n\r\n",), "Not Found"),
    ],
)
def test_downloads_end(answering, monkeypatch, answer, reason):
    monkeypatch.setattr(images_promptcam, "MAX_DOWNLOAD", 1 << 20)
    url = answering(*answer)
    with pytest.raises(ValueError, match=reason) as error:
        load_photograph(url, timeout=0.2 if len(answer) == 3 else None)
    assert str(error.value).startswith(url)


def test_addresses_that_are_none_are_refused():
    for url in ("http://127.0.0.1:1/a b", "http://[bird", "http://", "http://127.0.0.1:port/", "data:image/png;x"):
        with pytest.raises(ValueError, match="cannot be"):
            load_photograph(url)


# Heatmaps


def test_grids_are_laid_over_the_photographs_without_the_padding():
    """By hand, for a photograph that takes the middle half of 4 patches: between two patches, the nearer one weighs
    more, and the padding beyond them nothing."""
    grids = torch.full((4, 2, 4, 4), 100.0)
    grids[0, :, 1], grids[0, :, 2] = 1.0, 5.0  # wide
    grids[1, :, :, 1], grids[1, :, :, 2] = 1.0, 5.0  # tall
    grids[2] = torch.rand(4, 4)  # square
    grids[3, :, 1], grids[3, :, 2] = 1.0, 5.0  # its edge is in a patch
    shares = torch.tensor([[1, 0.5], [0.5, 1], [1, 1], [1, 0.7]])
    found = over_photographs(grids, shares)
    steps = torch.tensor([1.0, 2.0, 4.0, 5.0])
    torch.testing.assert_close(found[0], steps[:, None].expand(2, 4, 4))
    torch.testing.assert_close(found[1], steps.expand(2, 4, 4))
    assert found[2].equal(grids[2])
    # The centres of its cells are at 0.45, 1.15, 1.85 and 2.55
    edges = torch.tensor([1 + 0.55 * 99, 1 + 0.15 * 4, 1 + 0.85 * 4, 5 + 0.55 * 95])
    torch.testing.assert_close(found[3], edges[:, None].expand(2, 4, 4))
    assert over_photographs(grids, torch.ones(4, 2)) is grids
    # Of a line of pixels, half is in each of the two patches in the middle
    found = over_photographs(grids[:1], torch.tensor([[1.0, 1e-5]]))
    torch.testing.assert_close(found.mean(dim=-2), grids[:1, :, 1:3].mean(dim=-2))


def test_long_photographs_are_padded_at_a_smaller_size(monkeypatch):
    monkeypatch.setattr(images_promptcam, "MAX_PADDED", 64)
    processor = new_image_processor(32, keep_aspect=True)
    tracemalloc.start()
    for size in ((3000, 1), (1, 3000), (3000, 300)):
        pixels = pixels_of(processor, Image.new("RGB", size, (255, 0, 0)))
        assert pixels.shape == (1, 3, 32, 32)
        view = TrainTransform(processor)(Image.new("RGB", size))
        assert view.shape == (3, 32, 32)
    (_, peak), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    assert peak < 3000**2


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


def test_heatmaps_are_drawn_in_bands_without_seams():
    photograph = Image.new("RGB", (2000, 700), (60, 90, 120))
    trait_map = np.random.default_rng(0).random((7, 5), dtype=np.float32)
    smooth = np.asarray(Image.fromarray(trait_map / trait_map.max()).resize((2000, 700), Image.Resampling.BICUBIC))
    smooth = smooth.clip(0, 1)
    opacity = 0.35 + 0.45 * smooth[..., None]
    expected = np.asarray(photograph) * (1 - opacity) + COLOUR_MAP[np.round(smooth * 255).astype(np.uint8)] * opacity
    np.testing.assert_allclose(np.asarray(draw_heatmap(photograph, trait_map)), expected, atol=3)
