"""The table before training, and photographs that are the same."""

import os
import shutil

import pyarrow as pa
import pytest

from promptcam_hf.data.duplicates import byte_sizes, content_keys
from promptcam_hf.data.overview import overview
from promptcam_hf.data.splits import load_splits

from .cases import encoded, folder_with, table, write


def test_table_of_real_photographs(birds20):
    lines = overview(load_splits(birds20)).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["birds20:", "20", "classes", "train", "test"],
        ["photographs", "589", "600"],
        ["in", "a", "class", "26", "to", "30", "30"],
        ["the", "smallest:"],
    ]
    assert lines[4].split() == ["Yellow_headed_Blackbird", "26", "30"]
    assert len(lines) == 9


def test_left_out_and_divided_are_told(tmp_path):
    folder_with(tmp_path, *(f"{name}/{number}.png" for name in "ab" for number in range(5)), "a/x.txt")
    (tmp_path / os.fsdecode(b".hidden\xff")).mkdir()
    lines = overview(load_splits(tmp_path), ["a/7.png: not an image", "b/8.png: not an image"]).splitlines()
    assert lines[1].split() == ["photographs", "8", "2"]
    assert lines[-4:] == [
        "test was chosen at random from the photographs; split.csv lists both.",
        f"{tmp_path}: hidden folders left out: .hidden\\udcff.",
        f"{tmp_path}: 1 file left out (1 with .txt).",
        "Left out: 2 photographs that cannot be read: a/7.png: not an image, b/8.png: not an image",
    ]


def test_leaks_contradictions_and_duplicates_are_named(tmp_path):
    folder_with(
        tmp_path, *(f"{split}/{name}/{number}.png" for split in ("train", "test") for name in "ab" for number in "12")
    )
    assert not any(word in overview(load_splits(tmp_path)) for word in ("Leak", "Contradiction", "Duplicates"))
    shutil.copy(tmp_path / "train/a/1.png", tmp_path / "test/a/3.png")
    shutil.copy(tmp_path / "train/b/1.png", tmp_path / "train/a/4.png")
    shutil.copy(tmp_path / "test/b/2.png", tmp_path / "test/b/5.png")
    assert overview(load_splits(tmp_path)).splitlines()[-4:] == [
        "Leak: 1 photograph is in both train and test, so the accuracy is too high: train: a/1.png = test: a/3.png",
        "Contradiction: 1 photograph is in two classes: train: a/4.png = train: b/1.png",
        "Duplicates: 1 photograph is more than once in train: train: a/4.png = train: b/1.png",
        "Duplicates: 1 photograph is more than once in test: test: b/2.png = test: b/5.png",
    ]


def test_leaks_in_tables_are_named(tmp_path):
    images = [{"bytes": encoded(number), "path": None} for number in (0, 1, 2)]
    write(tmp_path / "train.parquet", pa.table({"image": images, "label": ["a", "b", "a"]}))
    write(tmp_path / "test.parquet", pa.table({"image": images[2:], "label": ["a"]}))
    assert overview(load_splits(tmp_path)).endswith("too high: train: train[2] = test: test[0]")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_only_photographs_of_one_size_are_read(tmp_path):
    folder_with(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    for path, padding in (("train/a/1.png", b"12"), ("train/b/1.png", b"1"), ("test/a/1.png", b"1")):
        (tmp_path / path).write_bytes(encoded(0) + padding)
    splits = load_splits(tmp_path)
    (tmp_path / "test/b/1.png").unlink()
    os.mkfifo(tmp_path / "test/b/1.png")  # reading it would wait for ever
    (first, second), (third, last) = content_keys([splits.train, splits.evaluation])
    assert (first, last) == (None, None)
    assert second == third is not None
    assert byte_sizes(splits.evaluation)[1] is None


def test_paths_in_tables_are_not_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(0))
    rows = table(["a", "b"]).to_pydict()
    rows["image"][1] = {"bytes": None, "path": str(tmp_path / "secret.png")}
    for split in ("train", "test"):
        write(tmp_path / "table" / f"{split}.parquet", pa.table(rows))
    splits = load_splits(tmp_path / "table")
    assert content_keys([splits.train])[0][1] is None
    assert byte_sizes(splits.train) == [len(encoded(0)), None]
