"""Uploads as nobody should make them."""

import struct
import tracemalloc
import zipfile

import pytest

from promptcam_hf.app.batch import explain_uploads, find_uploads
from promptcam_hf.explanation.predictor import PromptCamPredictor


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_file_that_lies_about_its_size_does_not_fill_the_memory(tmp_path, method):
    size, bomb = 1 << 25, tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", method) as archive:
        archive.writestr("bird.png", bytes(size))
    bomb.write_bytes(bomb.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    (source,) = find_uploads([str(bomb)])
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, zipfile.BadZipFile)):
            source.image()
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()


def test_bad_photographs_of_the_same_name_are_counted_one_by_one(checkpoint, photograph, tmp_path):
    uploads = [tmp_path / folder / "bird.jpg" for folder in "abc"]
    for upload in uploads:
        upload.parent.mkdir()
        upload.write_bytes(b"no photograph")
    uploads[1].write_bytes(photograph.read_bytes())
    predictor = PromptCamPredictor(checkpoint, maps=2, device="cpu")
    result = explain_uploads(predictor, find_uploads([str(upload) for upload in uploads]), tmp_path, print)
    assert (result.num_photographs, len(result.gallery)) == (3, 1)
    assert result.errors == ["bird.jpg: not an image that can be read; expected JPEG, PNG, TIFF, WebP or the like."] * 2


def test_a_damaged_zip_file_is_named(tmp_path):
    damaged = tmp_path / "birds.zip"
    with zipfile.ZipFile(damaged, "w") as archive:
        archive.writestr("bird.jpg", b"")
    content = bytearray(damaged.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 200  # a version of the format that does not exist
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"^birds\.zip: not a zip file that can be read \("):
        find_uploads([str(damaged)])
