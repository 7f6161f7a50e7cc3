"""The application from its start to its end."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from promptcam_hf.app.serve import opened_examples, serving

from .test_guard import upload


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


def test_the_photographs_of_a_killed_application_go_at_the_next_start(checkpoint, photograph, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command = [sys.executable, "-m", "promptcam_hf", "app", "--model", checkpoint, "--device", "cpu"]
    other = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True)
    try:
        uploaded = Path(upload(other.stdout.readline().split()[1].rstrip("/"), photograph))
        with serving(checkpoint, host="127.0.0.1", device="cpu"):
            assert uploaded.read_bytes() == photograph.read_bytes()  # the other application runs
    finally:
        other.kill()
        other.communicate(timeout=60)
    assert uploaded.is_file()
    kept = [tmp_path / name / "kept" for name in ("promptcam-app-notes", f"promptcam-app-{'1' * 32}", "elsewhere")]
    for file in kept:
        file.parent.mkdir()
        file.write_text("not of an application")
    link = tmp_path / f"promptcam-app-{'2' * 32}"
    link.symlink_to(kept[2].parent)
    others = [tmp_path / f"{name}.lock" for name in ("promptcam-app-notes", link.name)]
    for lock in others:
        lock.touch()
    with serving(checkpoint, host="127.0.0.1", device="cpu"):
        assert not uploaded.exists()
    assert all(file.is_file() for file in kept)
    assert set(tmp_path.glob("promptcam-app-*")) == {kept[0].parent, kept[1].parent, link, others[0]}
