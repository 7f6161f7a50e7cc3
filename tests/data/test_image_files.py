"""Which files are photographs."""

import subprocess
import sys

import pytest
from PIL import Image

from promptcam_hf.data.image_files import IMAGE_SUFFIXES, find_photographs, is_photograph, left_out

from .cases import encoded, folder_with


def test_all_that_pillow_reads_is_a_photograph(tmp_path):
    suffixes = {".jpg", ".jfif", ".png", ".avif", ".jp2", ".webp", ".tif", ".bmp", ".gif", ".tga", ".ppm", ".ico"}
    assert suffixes <= IMAGE_SUFFIXES
    assert not {".txt", ".csv", ".zip", ".pdf", ".mpg", ".eps", ".npy"} & IMAGE_SUFFIXES
    names = ["a.jpg", "b.PNG", "c.Avif", "bird", "text", "d.jpg.txt", "._e.jpg", ".f.jpg"]
    folder_with(tmp_path, *names)
    (tmp_path / "text").write_text("no photograph")
    (tmp_path / "folder.jpg").mkdir()
    assert [name for name in names if is_photograph(tmp_path / name)] == ["a.jpg", "b.PNG", "c.Avif", "bird"]
    assert not is_photograph(tmp_path / "folder.jpg")
    assert not is_photograph(tmp_path / "missing.jpg")


def test_photographs_are_found_in_subfolders_and_behind_links(tmp_path):
    folder_with(tmp_path, "birds/1.jpg", "birds/deep/er/2.jfif", "birds/.thumbs/3.jpg", "birds/._1.jpg", "far/4.png")
    folder_with(tmp_path, "birds/notes.txt", "birds/deep/list.TXT", "birds/readme", "birds/a.zip", "single.webp")
    (tmp_path / "birds" / "readme").write_text("Birds")
    (tmp_path / "birds" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "birds" / "5.webp").symlink_to(tmp_path / "single.webp")
    (tmp_path / "birds" / "deep" / "circle").symlink_to(tmp_path / "birds")
    found, others = find_photographs(tmp_path / "birds")
    names = ["1.jpg", "5.webp", "deep/er/2.jfif", "far/4.png"]
    assert [str(path.relative_to(tmp_path / "birds")) for path in found] == names
    assert others == {".txt": 2, "no ending": 1, ".zip": 1}
    assert left_out(others) == "4 files left out (2 with .txt, 1 with .zip, 1 with no ending)"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_names_in_other_encodings_are_counted(tmp_path):
    folder_with(tmp_path, "1.png")
    with open(bytes(tmp_path) + b"/M\xe9sange.png", "wb") as file:
        file.write(encoded(1))
    found, others = find_photographs(tmp_path)
    assert ([path.name for path in found], others) == (["1.png"], {"a name that is not UTF-8": 1})


def test_heic_is_read_with_its_extra_and_named_without(tmp_path):
    folder_with(tmp_path, "1.png", "2.heic", "3.HEIC")
    if ".heic" not in IMAGE_SUFFIXES:
        found, others = find_photographs(tmp_path)
        assert len(found) == 1
        message = "2 files left out (2 with .heic); to read HEIC files: pip install 'promptcam-hf[heif]'"
        assert left_out(others).startswith(message)
    # With a stand-in for pillow-heif
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', PngImagePlugin.PngImageFile)\n"
        "    Image.register_extensions('HEIF', ['.heic'])\n"
    )
    code = "from promptcam_hf.data.image_files import *; print(len(find_photographs('.')[0]))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True) == "3\n"


def test_heic_photographs_are_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(tmp_path / "a.heic")
    assert is_photograph(tmp_path / "a.heic")
    assert Image.open(tmp_path / "a.heic").size == (64, 48)
