"""Where photographs come from: folders, downloads, parquet files, the Hub."""

import io
import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptcam_hf.data.photographs import Photographs, find_unreadable, load_splits

from ..conftest import SHARED
from ..hub_stand_in import HubStandIn, Repo


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(labels: list, image: str = "image", label: str = "label") -> pa.Table:
    images = [{"bytes": encoded(number), "path": None} for number in range(len(labels))]
    return pa.table({image: images, label: labels})


def write(path, contents: pa.Table | str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(contents, pa.Table):
        pq.write_table(contents, path)
    else:
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def classes_of(split: datasets.Dataset) -> list[str]:
    return split.features["label"].int2str(split["label"][:])


# --- Image folders ----------------------------------------------------------------------------------------------------


def folder_with(root, *files: str):
    for number, name in enumerate(files):
        write(root / name, encoded(number))
    return root


def test_classes_of_a_folder_are_sorted_and_every_photograph_is_found(bird_folder):
    splits = load_splits(bird_folder)
    assert splits.names == sorted(path.name for path in (bird_folder / "train").iterdir())
    assert (len(splits.train), len(splits.evaluation)) == (24, 12)
    assert (splits.name, splits.split, splits.hub_id) == ("photos", "test", None)
    for split in (splits.train, splits.evaluation):
        assert all(splits.names[row["label"]] in row["image"]["path"] for row in split)


@pytest.mark.parametrize("name", ["test", "validation", "val"])
def test_evaluation_set_may_have_any_of_its_names(tmp_path, name):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/b/1.jpg", f"{name}/a/2.jpg", f"{name}/a/3.jpg")
    splits = load_splits(tmp_path)
    assert (len(splits.train), sorted(splits.evaluation["label"]), splits.names) == (2, [0, 0, 1], ["a", "b"])


def test_folder_may_have_any_name_and_other_files_in_it(tmp_path):
    folder = folder_with(tmp_path / "wrens [2020] *", "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/0.png")
    write(folder / "train" / "metadata.csv", "file_name,label\na/1.png,5\nb/1.png,6\n")
    write(folder / "notes.csv", "a,b\n1,2\n")
    splits = load_splits(folder)
    assert (splits.name, splits.names, splits.train.column_names) == (folder.name, ["a", "b"], ["image", "label"])
    assert classes_of(splits.train) == ["a", "b"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no folder 'train'"),
        (["train/a/1.png", "train/b/1.png"], "no images in test/ or validation/"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"], "no training images of c"),
        (["train/1.png", "train/2.png", "test/1.png"], "train holds fewer than two folders"),
        (["train/a/1.png", "test/a/1.png"], "train holds fewer than two folders"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(tmp_path, files, message):
    folder_with(tmp_path, *files)
    with pytest.raises(ValueError, match=message) as error:
        load_splits(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_folder_without_images_and_no_folder_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        load_splits(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        load_splits(tmp_path / "missing")


def test_folder_of_images_has_no_columns_to_choose(bird_folder):
    with pytest.raises(ValueError, match="leave out --image-column and --label-column"):
        load_splits(bird_folder, label_column="species")


def test_links_deeper_folders_and_all_types_are_used(tmp_path, caplog):
    folder = tmp_path / "birds"
    for split in ("train", "test"):
        folder_with(folder, *(f"{split}/{name}" for name in ("__a/1.jfif", "__a/x/2.avif", "b/1", "b/2.jp2")))
        folder_with(tmp_path, f"far/{split}/1.jpg")
        (folder / split / "c").symlink_to(tmp_path / "far" / split)
        folder_with(folder, f"{split}/b/._1.jpg", f"{split}/b/.thumbs/1.jpg")
    splits = load_splits(folder)
    assert splits.names == ["__a", "b", "c"]
    for split in (splits.train, splits.evaluation):
        assert classes_of(split) == ["__a", "__a", "b", "b", "c"]
    assert not caplog.records
    assert len(find_unreadable(splits.train)) == 0


def test_what_is_left_out_is_named(tmp_path, caplog):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "train/.c/1.png")
    folder_with(tmp_path, "train/a/0.jpg.txt", "train/b/Thumbs.db", "test/b/metadata.csv", "test/notes.txt")
    (tmp_path / "train" / "d").mkdir()
    (tmp_path / "train" / "e").symlink_to(tmp_path / "missing")
    splits = load_splits(tmp_path)
    assert (splits.names, len(splits.train), len(splits.evaluation)) == (["a", "b"], 2, 2)
    assert [record.getMessage().replace(str(tmp_path), "") for record in caplog.records] == [
        "/train: hidden folders left out: .c.",
        "/train: links that lead nowhere left out: e.",
        ": 4 files left out (2 with .txt, 1 with .csv, 1 with .db).",
        ": folders without photographs left out: d.",
    ]


def test_class_names_of_folders_and_tables_are_in_one_line(tmp_path):
    folder_with(tmp_path / "folder", "train/a\nb/1.png", "train/c/1.png", "test/a b/1.png")
    splits = load_splits(tmp_path / "folder")
    assert (splits.names, classes_of(splits.evaluation)) == (["a b", "c"], ["a b"])
    for split in ("train", "test"):
        write(tmp_path / "table" / f"{split}.parquet", table(["c\td", "a\nb"]))
        write(tmp_path / "alike" / f"{split}.parquet", table(["c", "a\nb", "a b"]))
    splits = load_splits(tmp_path / "table")
    assert (splits.names, classes_of(splits.train)) == (["a b", "c d"], ["c d", "a b"])
    with pytest.raises(ValueError, match=r"alike: the class names 'a\\nb' and 'a b' look the same"):
        load_splits(tmp_path / "alike")
    folder_with(tmp_path / "folder", "train/a b/1.png")
    with pytest.raises(ValueError, match=r"train: the class names .* look the same"):
        load_splits(tmp_path / "folder")


@pytest.mark.parametrize(("train", "test", "split"), [("Train", "Test", "test"), ("TRAIN", "Valid", "validation")])
def test_case_and_spelling_of_splits_and_letters_do_not_matter(tmp_path, train, test, split):
    folder_with(tmp_path, f"{train}/Te\u0301tras/1.png", f"{train}/b/1.png", f"{test}/T\u00e9tras/1.png")
    splits = load_splits(tmp_path)
    assert (splits.split, splits.names, classes_of(splits.evaluation)) == (
        split,
        ["T\u00e9tras", "b"],
        ["T\u00e9tras"],
    )


def test_two_folders_for_one_split_are_refused(tmp_path):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "validation/a/1.png", "valid/a/1.png")
    with pytest.raises(ValueError, match="two folders for one split, valid and validation"):
        load_splits(tmp_path)


@pytest.mark.parametrize(
    ("layout", "names", "train", "warning"),
    [
        ("all_is_avif", ["Finch", "Jay", "Thrush"], 12, None),
        ("capital", ["Finch", "Jay", "Thrush"], 12, None),
        ("class_starts_with_two_underscores", ["Finch", "Jay", "__unknown"], 12, None),
        ("half_in_a_subfolder", ["Finch", "Jay", "Thrush"], 12, None),
        ("metadata_in_class", ["Finch", "Jay", "Thrush"], 12, "6 files left out (6 with .csv)"),
        ("nfc_and_nfd", ["Finch", "Jay", "T\u00e9tras"], 12, None),
        ("valid", ["Finch", "Jay", "Thrush"], 12, None),
        ("zip_in_class", ["Finch", "Jay", "Thrush"], 12, "1 file left out (1 with .zip)"),
    ],
)
def test_folders_as_people_have_them(caplog, layout, names, train, warning):
    folder = SHARED / "cases" / "layouts" / layout
    if not folder.is_dir():
        pytest.skip("the folders of shared/cases/layouts are not here")
    splits = load_splits(folder)
    assert (splits.names, len(splits.train), len(splits.evaluation)) == (names, train, 2 * len(names))
    assert [record.getMessage() for record in caplog.records] == ([f"{folder}: {warning}."] if warning else [])
    assert find_unreadable(splits.train) == {}


# --- Downloads as they are unpacked -----------------------------------------------------------------------------------


@pytest.fixture
def cub(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    images = ["010.Wren/w1.jpg", "010.Wren/w2.jpg", "002.Auk/a1.jpg", "002.Auk/a2.jpg"]
    for number, image in enumerate(images):
        write(folder / "images" / image, encoded(number))
    write(folder / "images.txt", "".join(f"{number} {image}\n" for number, image in enumerate(images, start=1)))
    write(folder / "image_class_labels.txt", "1 10\n2 10\n3 2\n4 2\n")
    write(folder / "train_test_split.txt", "1 0\n2 1\n3 1\n4 0\n")
    write(folder / "classes.txt", "2 002.Auk\n10 010.Wren\n")
    return folder


def test_cub_has_its_official_split_and_order(cub):
    for folder in (cub, cub.parent):
        splits = load_splits(folder)
        assert (splits.name, splits.split, splits.names) == ("CUB-200-2011", "test", ["Auk", "Wren"])
        for split, images in ((splits.train, ["w2", "a1"]), (splits.evaluation, ["w1", "a2"])):
            assert classes_of(split) == ["Wren", "Auk"]
            assert [path["path"] for path in split["image"]] == [
                str(cub / "images" / name / f"{image}.jpg")
                for name, image in zip(("010.Wren", "002.Auk"), images, strict=True)
            ]


def test_damaged_cub_is_refused(cub):
    (cub / "classes.txt").rename(cub / "classes")
    with pytest.raises(ValueError, match=r"classes\.txt is missing"):
        load_splits(cub)
    (cub / "classes").rename(cub / "classes.txt")
    write(cub / "train_test_split.txt", "1 0\n2 1\n3 1\n")
    with pytest.raises(ValueError, match=r"image 4 of images\.txt has no split"):
        load_splits(cub)
    write(cub / "train_test_split.txt", "1 1\n2 1\n3 1\n4 1\n")
    with pytest.raises(ValueError, match="no images in test/ or validation/; found train"):
        load_splits(cub)
    write(cub / "train_test_split.txt", "1 0\n2\n")
    with pytest.raises(ValueError, match=r"train_test_split\.txt, line 2: 1 columns, expected 2"):
        load_splits(cub)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_in_cub_are_refused(cub):
    (cub / "images" / "010.Wren" / "w2.jpg").unlink()
    os.mkfifo(cub / "images" / "010.Wren" / "w2.jpg")
    write(cub / "images.txt", "1 010.Wren/w1.jpg\n2 010.Wren/w2.jpg\n3 /dev/zero\n4 002.Auk/a2.jpg\n")
    faults = find_unreadable(load_splits(cub).train)
    assert len(faults) == 2
    assert all("not a regular file" in fault for fault in faults.values())


def test_pets_have_their_official_split_and_order(tmp_path):
    write(
        tmp_path / "annotations" / "trainval.txt",
        "#Image CLASS-ID SPECIES BREED\nwheaten_terrier_7 10 2 9\nBengal_3 2 1 1\n",
    )
    write(tmp_path / "annotations" / "test.txt", "Bengal_1 2 1 1\nwheaten_terrier_2 10 2 9\nBengal_20 2 1 1\n")
    splits = load_splits(tmp_path)
    assert (splits.name, splits.split, splits.names) == ("Oxford-IIIT Pet", "test", ["Bengal", "wheaten_terrier"])
    assert splits.train["image"][0]["path"] == str(tmp_path / "images" / "wheaten_terrier_7.jpg")
    assert splits.train["label"][:] == [1, 0]
    assert splits.evaluation["label"][:] == [0, 1, 0]


# --- Parquet files ----------------------------------------------------------------------------------------------------


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
    assert load_splits(tmp_path / "strings").names == ["10", "9"]
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
        (["a", "b"], None, "no images in test/ or validation/; found train"),
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


# --- The Hub ----------------------------------------------------------------------------------------------------------

LOAD = """
import json, sys
from promptcam_hf.data.photographs import Photographs, load_splits
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
