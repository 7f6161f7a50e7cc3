"""Parquet files that hold photographs, and datasets of the Hub."""

import io
import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptcam_hf.data.photographs import Photographs, find_unreadable
from promptcam_hf.data.splits import load_splits

from ..hub_stand_in import HubStandIn, Repo
from .cases import classes_of, encoded, folder_with, table, write


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            "data/test-00000-of-00001.parquet",
        ),
        (["train.parquet"], "test.parquet"),
        (["train/0000.parquet", "train/0001.parquet"], "test/0000.parquet"),
        (["default/train/0000.parquet"], "default/test/0000.parquet"),
    ],
)
def test_parquet_files_are_found_by_split(tmp_path, train, test):
    for file in train:
        write(tmp_path / "wrens" / file, table(["wren", "auk"]))
    write(tmp_path / "wrens" / test, table(["auk"] * 3 + ["wren"]))
    splits = load_splits(tmp_path / "wrens")
    assert (splits.name, splits.split, splits.names) == ("wrens", "test", ["auk", "wren"])
    assert classes_of(splits.train) == ["wren", "auk"] * len(train)
    assert classes_of(splits.evaluation) == ["auk"] * 3 + ["wren"]
    assert splits.evaluation[2]["image"] == {"bytes": encoded(2), "path": None}


@pytest.mark.skipif(os.name == "nt", reason="no such file names")
def test_a_name_that_could_be_a_pattern_is_none(tmp_path):
    for count, folder in enumerate(("wrens1", "wrens[1]", "wrens*"), start=1):
        for split in ("train", "test"):
            write(tmp_path / folder / f"{split}.parquet", table(["wren", "auk"] * count))
    for count, folder in enumerate(("wrens1", "wrens[1]", "wrens*"), start=1):
        splits = load_splits(tmp_path / folder)
        assert (len(splits.train), len(splits.evaluation)) == (2 * count, 2 * count)
    splits = load_splits(tmp_path / "wrens*" / "train.parquet")
    assert len(splits.train) + len(splits.evaluation) == 6


def test_validation_goes_before_test(tmp_path):
    for split, labels in (("train", ["a", "b"]), ("validation", ["b", "a"]), ("test", ["a"])):
        write(tmp_path / f"{split}.parquet", table(labels))
    splits = load_splits(tmp_path)
    assert (splits.split, classes_of(splits.evaluation)) == ("validation", ["b", "a"])


def test_classes_keep_the_order_they_come_with_and_others_are_sorted(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["wren", "auk"]))
    for split in ("train", "test"):
        rows = {"image": [encoded(0), encoded(1)], "label": [1, 0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "named" / f"{split}.parquet")
        write(tmp_path / "numbered" / f"{split}.parquet", table([10, 9]))
    splits = load_splits(tmp_path / "named")
    assert (splits.names, splits.train["label"][:]) == (["wren", "auk"], [1, 0])
    assert splits.train[0]["image"]["bytes"] == encoded(0)
    for split in ("train", "test"):
        write(tmp_path / "strings" / f"{split}.parquet", table(["10", "9"]))
    assert load_splits(tmp_path / "strings").names == ["9", "10"]
    splits = load_splits(tmp_path / "numbered")
    assert (splits.names, splits.train["label"][:]) == (["9", "10"], [1, 0])


def test_class_without_any_image_is_pointed_out(tmp_path, caplog):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["wren", "kiwi", "auk"]))
    for split in ("train", "test"):
        rows = {"image": [encoded(0), encoded(1)], "label": [0, 2]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert load_splits(tmp_path).names == ["wren", "kiwi", "auk"]
    (record,) = caplog.records
    assert "no images of kiwi" in record.getMessage()


def test_columns_are_found_or_asked_for(tmp_path):
    columns = {
        "img": [encoded(0), encoded(1)],
        "mask": [encoded(2), encoded(3)],
        "note": ["x", "y"],
        "labels": ["a", "b"],
        "genus": ["g", "h"],
    }
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", pa.table(columns))
    splits = load_splits(tmp_path)
    assert (splits.names, splits.train[0]["image"]["bytes"]) == (["a", "b"], encoded(0))
    splits = load_splits(tmp_path, image_column="mask", label_column="genus")
    assert (splits.names, splits.train[0]["image"]["bytes"]) == (["g", "h"], encoded(2))
    assert splits.train.column_names == ["image", "label"]

    listed = "columns: img, mask, note, labels, genus"
    with pytest.raises(ValueError, match=f"no column 'species' for --label-column; {listed}"):
        load_splits(tmp_path, label_column="species")
    with pytest.raises(ValueError, match=f"'note' cannot be used as --image-column; {listed}"):
        load_splits(tmp_path, image_column="note")
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", pa.table(columns).rename_columns(["photo", "mask", "note", "sp", "genus"]))
    with pytest.raises(ValueError, match="no column that is clearly the image; choose one with --image-column"):
        load_splits(tmp_path)
    with pytest.raises(ValueError, match="no column that is clearly the label; choose one with --label-column"):
        load_splits(tmp_path, image_column="photo")


def test_among_several_columns_of_classes_label_is_taken(tmp_path):
    names = datasets.ClassLabel(names=["a", "b"])
    for name, columns in (("clear", ("label", "cat_or_dog")), ("ambiguous", ("fine", "coarse"))):
        features = datasets.Features(image=datasets.Image(), **dict.fromkeys(columns, names))
        rows = {"image": [encoded(0), encoded(1)], columns[0]: [0, 1], columns[1]: [1, 0]}
        for split in ("train", "test"):
            datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / name / f"{split}.parquet")
    assert load_splits(tmp_path / "clear").train["label"][:] == [0, 1]
    with pytest.raises(ValueError, match="several columns that could be the label; choose one with --label-column"):
        load_splits(tmp_path / "ambiguous")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a", "a"], ["a"], "one class only, 'a'"),
        (["a", "b"], ["a", "c"], "no training images of c"),
        (["a", "b"], ["a", None], r"test\[1\] has no label"),
        (["a", "b"], None, "no images in test/ or validation/, and none of train can be held out"),
    ],
)
def test_tables_that_cannot_be_trained_on_are_refused(tmp_path, train, test, message):
    write(tmp_path / "train.parquet", table(train))
    if test is not None:
        write(tmp_path / "test.parquet", table(test))
    with pytest.raises(ValueError, match=message):
        load_splits(tmp_path)


def test_damaged_parquet_file_is_refused(tmp_path):
    write(tmp_path / "train.parquet", "not a table")
    with pytest.raises(ValueError, match=r"holds no parquet files that can be read \(.*Parquet") as error:
        load_splits(tmp_path)
    assert "\n" not in str(error.value)


def test_tables_do_not_make_us_read_files_or_fetch_urls(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(9))
    images = [
        {"bytes": encoded(0), "path": "0.png"},
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": None, "path": "http://127.0.0.1:1/bird.png"},
        {"bytes": None, "path": None},
    ]
    for split in ("train", "test"):
        write(tmp_path / "table" / f"{split}.parquet", pa.table({"image": images, "label": ["a", "b", "a", "b"]}))
    splits = load_splits(tmp_path / "table")
    faults = find_unreadable(splits.train)
    assert sorted(faults) == [1, 2, 3]
    assert all("the table has only its path" in faults[row] for row in (1, 2))
    with pytest.raises(ValueError, match=r"only its path, 'http://127\.0\.0\.1:1/bird\.png'; expected its bytes"):
        Photographs(splits.evaluation, lambda photograph: photograph)[2]


def test_cache_that_cannot_be_written_is_the_reason_given(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "table" / f"{split}.parquet", table(["a", "b"]))
        folder_with(tmp_path / "folder", f"{split}/a/1.png", f"{split}/b/1.png")
    (tmp_path / "file").write_text("in the way")
    environ = os.environ | {"HF_HOME": str(tmp_path / "file" / "home")}
    command = [sys.executable, "-c", LOAD, tmp_path / "folder", tmp_path / "table"]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    folder, of_table = map(json.loads, found.stdout.splitlines())
    assert folder[3] == ["a", "b"]
    assert "set HF_HOME to a folder that can be written" in of_table


# --- The Hub ---

LOAD = """
import json, sys
from promptcam_hf.data.photographs import Photographs
from promptcam_hf.data.splits import load_splits
for data in sys.argv[1:]:
    try:
        splits = load_splits(data)
        photographs = Photographs(splits.train, lambda photograph: photograph.getpixel((0, 0)))
        rows = [(photographs.name(index), *photographs[index].values()) for index in range(len(photographs))]
        print(json.dumps([splits.name, splits.hub_id, splits.split, splits.names, rows]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def test_datasets_of_the_hub(tmp_path):
    tables, photographs = Repo(private=False), Repo(private=False)
    files = {}
    for split in ("train", "validation"):
        file = io.BytesIO()
        pq.write_table(table(["wren", "auk"]), file)
        files[f"data/{split}-00000-of-00001.parquet"] = file.getvalue()
    tables.commit("main", files)
    photographs.commit(
        "main", {f"{split}/{name}/1.png": encoded(ord(name)) for split in ("train", "test") for name in "ab"}
    )
    with HubStandIn() as hub:
        hub.repos |= {"datasets/org/tables": tables, "datasets/org/photographs": photographs}
        command = [sys.executable, "-c", LOAD, "org/tables", "org/photographs", "org/missing"]
        environ = hub.environ(tmp_path / "home")
        found = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
        command[-1:] = ["org/other"]
        offline = environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "other home")}
        without = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=True)
    of_tables, of_photographs, missing = map(json.loads, found.stdout.splitlines())
    rows = [["train[0]", [0, 0, 0], 1], ["train[1]", [1, 0, 0], 0]]
    assert of_tables == ["org/tables", "org/tables", "validation", ["auk", "wren"], rows]
    rows = [["a/1.png", [97, 0, 0], 0], ["b/1.png", [98, 0, 0], 1]]
    assert of_photographs == ["org/photographs", "org/photographs", "test", ["a", "b"], rows]
    assert missing.startswith("org/missing is neither a folder nor a Hub dataset that can be read (")
    for line in map(json.loads, without.stdout.splitlines()):
        assert "Couldn't reach" in line
        assert "\n" not in line
