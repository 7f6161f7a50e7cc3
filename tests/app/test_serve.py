"""What the application shows before any photograph is dropped."""

import shutil

import pytest

from promptcam_hf.app.serve import opened_examples


def test_an_example_that_cannot_be_read_is_left_out(bird_folder, tmp_path, caplog):
    good = next(bird_folder.glob("test/*/*.jpg"))
    for name in ("a.jpg", "c.jpg"):
        shutil.copy(good, tmp_path / name)
    (tmp_path / "b.jpg").write_text("no image")
    assert [name for name, _ in opened_examples(tmp_path)] == ["a", "c"]
    assert [record.getMessage().count("b.jpg") for record in caplog.records] == [1]
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="no photographs there that can be read"):
        opened_examples(tmp_path)
