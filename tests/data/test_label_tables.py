"""Photographs in files, and a table that names their classes."""

import json

import pyarrow as pa
import pytest

from promptcam_hf.data.photographs import find_unreadable
from promptcam_hf.data.splits import load_splits

from .cases import classes_of, folder_with, write

FILES = [f"{name}_{number}.png" for name in ("Finch", "Jay") for number in range(4)]
ROWS = [(file, file.split("_")[0], "test" if file.endswith("3.png") else "train") for file in FILES]


def csv_of(rows, header: str, separator: str = ",") -> str:
    return "\n".join([header, *(separator.join(row) for row in rows)]) + "\n"


def check(splits) -> None:
    """The photographs of ROWS with their classes and splits."""
    for split, side in ((splits.train, "train"), (splits.evaluation, "test")):
        found = [(row["image"]["path"].rsplit("/", 1)[-1], splits.names[row["label"]]) for row in split]
        assert found == [(file, name) for file, name, of_row in ROWS if of_row == side]
        assert find_unreadable(split) == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", csv_of(ROWS, "image,label,split")),
        ("my birds.CSV", csv_of(ROWS, "File Name,Scientific_Name,Subset")),
        ("labels.tsv", csv_of(ROWS, "filename\tspecies\tsplit", "\t")),
        ("excel.csv", "\ufeff" + csv_of(ROWS, "Path;Class;Set", ";").replace("\n", "\r\n")),
        ("metadata.csv", csv_of([(f, n, s.upper()) for f, n, s in ROWS], "file_name,label,split")),
        (
            "metadata.jsonl",
            "\n".join(json.dumps(dict(zip(("file_name", "label", "split"), r, strict=True))) for r in ROWS),
        ),
        ("labels.parquet", pa.table(dict(zip(("image", "label", "split"), zip(*ROWS, strict=True), strict=True)))),
        ("odd names.csv", csv_of(ROWS, "bird picture,species,split")),
        ("without_endings.csv", csv_of([(f[:-4], n, s) for f, n, s in ROWS], "id,breed,split")),
        ("utf-16.csv", csv_of(ROWS, "image,label,split").encode("utf-16")),
        ("paths.csv", csv_of([(f"C:\\here\\{f}"[8:], n, s) for f, n, s in ROWS], "image,label,split")),
    ],
)
def test_tables_of_all_kinds(tmp_path, name, content):
    folder = folder_with(tmp_path / "photos", *FILES)
    write(folder / name, content)
    check(load_splits(folder))
    check(load_splits(folder / name))


def test_photographs_may_be_in_folders_beside_the_table(tmp_path):
    folder_with(tmp_path, *(f"images/site {number % 2}/{file}" for number, file in enumerate(FILES)))
    write(tmp_path / "labels.csv", csv_of(ROWS, "image,label,split"))
    check(load_splits(tmp_path))
    write(
        tmp_path / "labels.csv",
        csv_of([(f"site {i % 2}/{f}", n, s) for i, (f, n, s) in enumerate(ROWS)], "f,label,split"),
    )
    check(load_splits(tmp_path, image_column="f"))


def test_splits_may_be_those_of_the_folders_or_the_tables(tmp_path):
    inside = tmp_path / "inside"
    for file, _, split in ROWS:
        folder_with(inside, f"{split}_images/{file}")
        folder_with(tmp_path / "flat", file)
        folder_with(tmp_path / "kaggle", f"{split}/{file}")
    for split in ("train", "test"):
        rows = [(file, name) for file, name, side in ROWS if side == split]
        write(inside / f"{split}_images" / "metadata.csv", csv_of(rows, "file_name,label"))
        write(tmp_path / "flat" / f"{split}.csv", csv_of(rows, "file_name,label"))
    write(tmp_path / "kaggle" / "all.csv", csv_of([(f"{s}/{f}", n) for f, n, s in ROWS], "image,label"))
    for folder in ("inside", "flat", "kaggle"):
        check(load_splits(tmp_path / folder))


def test_columns_may_be_named_and_near_misses_are_explained(tmp_path):
    folder_with(tmp_path, *FILES)
    write(tmp_path / "labels.csv", csv_of([(*row, "x") for row in ROWS], "photo_of_bird,Taxon rank,part,label"))
    named = {"image_column": "photo_of_bird", "label_column": "Taxon rank", "split_column": "part"}
    check(load_splits(tmp_path / "labels.csv", **named))
    with pytest.raises(
        ValueError, match=r"no column 'Taxon_rank' for --label-column; columns: .*did you mean 'Taxon rank'\?$"
    ):
        load_splits(tmp_path, label_column="Taxon_rank")
    with pytest.raises(ValueError, match=r"no column 'parts' for --split-column; .*did you mean 'part'\?$"):
        load_splits(tmp_path / "labels.csv", split_column="parts")
    write(tmp_path / "labels.csv", csv_of([row[:2] for row in ROWS], "photo_of_bird,rank"))
    with pytest.raises(
        ValueError, match=r"no column that is clearly the label; choose one with --label-column \(columns: ph"
    ):
        load_splits(tmp_path / "labels.csv")


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path):
    folder_with(tmp_path, *FILES, "other.png")
    rows = [*ROWS, ROWS[0], ("other.png", "", "train"), ("gone.png", "Jay", "train")]
    write(tmp_path / "labels.csv", csv_of(rows, "image,label,split"))
    splits = load_splits(tmp_path)
    assert [note.removeprefix(str(tmp_path)) for note in splits.notes] == [
        "/labels.csv: rows without a class left out: 1.",
        "/labels.csv: repeated rows left out: 1.",
        ": left out 1 photograph that labels.csv does not name (other.png).",
    ]
    faults = find_unreadable(splits.train)  # for --on-bad-image to decide
    assert ["gone.png" in fault and "no such file" in fault for fault in faults.values()] == [True]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("Finch_9.png", "Finch", "train")],
            r"none of its photographs is in .*; did you mean 'Finch_\d\.png'\?$",
        ),
        ([("https://birds.org/1.png", "Finch", "train")], r"row 1: 'https://birds\.org/1\.png' is an address"),
        (
            [("same.png", "Finch", "train")],
            r"row 1: 'same\.png' may be a/same\.png, b/same\.png; expected the path from",
        ),
        (
            [("Finch_0.png", "Finch", "later")],
            r"row 1: the split 'later' is unknown; expected train, validation or test",
        ),
        ([("", "Finch", "train")], r"row 1: the column 'image' is empty"),
        (
            [("Finch_0.png", "Finch", "train"), ("Finch_0.png", "Jay", "train")],
            r"Finch_0\.png is 'Finch' in train, and 'Jay' in train; expected one class and one split for each",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, rows, message):
    folder_with(tmp_path, *FILES, "a/same.png", "b/same.png")
    write(tmp_path / "labels.csv", csv_of(rows, "image,label,split"))
    with pytest.raises(ValueError, match=message) as error:
        load_splits(tmp_path / "labels.csv")
    assert "\n" not in str(error.value)


def test_several_tables_and_damaged_ones_are_refused(tmp_path):
    folder_with(tmp_path, *FILES)
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, csv_of(ROWS, "image,label,split"))
    with pytest.raises(ValueError, match=r"has several tables of labels: a\.csv, b\.csv; pass one of them as --data"):
        load_splits(tmp_path)
    for name, content in (("c.jsonl", "[1]\n"), ("d.parquet", "no table"), ("e.jsonl", "{")):
        write(tmp_path / name, content)
        with pytest.raises(ValueError, match=f"{name}.* (cannot be read as a table|is no parquet file)"):
            load_splits(tmp_path / name)


def test_groups_of_a_table_stay_together(tmp_path):
    folder_with(tmp_path, *FILES)
    rows = [(file, name, f"{name}{number // 2}") for number, (file, name, _) in enumerate(ROWS)]
    for header, group_by in (("image,label,group", None), ("image,label,bird id", "bird id")):
        write(tmp_path / "labels.csv", csv_of(rows, header))
        splits = load_splits(tmp_path, group_by=group_by)
        assert classes_of(splits.evaluation) == ["Finch", "Finch", "Jay", "Jay"]
        first, second = (int(row["image"]["path"][-5]) // 2 for row in splits.evaluation.select([0, 1]))
        assert first == second
    with pytest.raises(ValueError, match=r"no column 'bird_id' for --group-by; columns: .*did you mean 'bird id'\?$"):
        load_splits(tmp_path, group_by="bird_id")
    with pytest.raises(ValueError, match="--group-by label: this is the column of the images or classes"):
        load_splits(tmp_path / "labels.csv", group_by="label")
    assert load_splits(tmp_path, training=False).split == "all"
