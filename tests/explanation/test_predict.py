import csv
import io
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptcam_hf.explanation.predict import predict

from ..command_line import promptcam

NAMES = ["Baltimore_Oriole", "Hooded_Oriole", "Orchard_Oriole", "Scott_Oriole", "Indigo_Bunting"]


@pytest.fixture(scope="module")
def photographs(bird_folder, tmp_path_factory):
    """Three photographs, one of which cannot be read."""
    bad = tmp_path_factory.mktemp("bad") / "bad.jpg"
    bad.write_text("no image")
    paths = sorted(bird_folder.glob("test/*/*.jpg"))
    return [paths[0], bad, paths[1]]


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(newline="")))
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def test_every_format_has_the_same_rows(checkpoint, photographs, tmp_path):
    tables = {}
    for suffix in ("csv", "json", "jsonl", "parquet"):
        path = tmp_path / f"predictions.{suffix}"
        result = predict(photographs, checkpoint, path, top_k=2, batch_size=2, device="cpu", progress=False)
        assert (result.num_photographs, list(result.errors)) == (3, [str(photographs[1])])
        tables[suffix] = read(path)
        assert [row["photograph"] for row in tables[suffix]] == [str(path) for path in photographs]
    assert tables["json"] == tables["jsonl"]
    for row, other, line in zip(tables["json"], tables["parquet"], tables["csv"], strict=True):
        assert list(row) == list(other)
        assert (row["label"], row["level"], row["top_labels"], row["error"]) == (
            other["label"],
            other["level"],
            other["top_labels"],
            other["error"],
        )
        assert (line["label"], line["error"]) == (row["label"] or "", row["error"] or "")
        if row["error"] is None:
            assert other["top_scores"] == pytest.approx(row["top_scores"])
            assert [float(line["score_1"]), float(line["score_2"])] == pytest.approx(row["top_scores"], rel=1e-4)
            assert [line["label_1"], line["label_2"]] == row["top_labels"]
    assert tables["csv"][1]["label_1"] == tables["csv"][1]["score"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"predictions.{suffix}" for suffix in tables)


def test_classes_of_a_region_and_groups(checkpoint, photographs, tmp_path):
    (tmp_path / "region.txt").write_text("Hooded_Oriole\nIndigo_Bunting\n")
    out = tmp_path / "out.json"
    result = predict(photographs[0], checkpoint, out, only=tmp_path / "region.txt", device="cpu", progress=False)
    assert result.only == ["Hooded_Oriole", "Indigo_Bunting"]
    (row,) = read(out)
    assert sorted(row["top_labels"]) == result.only
    assert sum(row["top_scores"]) == pytest.approx(1)
    # Above the probability of any class, so that only groups and "unknown" are left
    options = {"unknown_below": row["score"] / 2 + 0.5, "overwrite": True, "device": "cpu", "progress": False}
    predict(photographs[0], checkpoint, out, only=tmp_path / "region.txt", **options)
    assert read(out)[0] | {"label": None} == row | {"label": None, "level": "unknown"}
    probability = predict_one(checkpoint, photographs[0], tmp_path)
    (first, best), (second, next_best), *others = sorted(probability.items(), key=lambda item: -item[1])
    groups = {first: "probable", second: "probable"} | {name: "rest" for name, _ in others}
    (tmp_path / "genus.csv").write_text("\n".join(["class,group", *(",".join(item) for item in groups.items())]))
    options |= {"roll_up": tmp_path / "genus.csv", "unknown_below": best + next_best / 2}
    predict(photographs[0], checkpoint, out, **options)
    (row,) = read(out)
    assert (row["label"], row["level"]) == ("probable", "group")
    assert row["score"] == pytest.approx(best + next_best, rel=1e-4)


def predict_one(checkpoint, photograph, folder):
    predict(photograph, checkpoint, folder / "one.json", device="cpu", progress=False)
    (row,) = read(folder / "one.json")
    return dict(zip(row["top_labels"], row["top_scores"], strict=True))


def test_names_of_any_kind_and_lists(checkpoint, photographs, tmp_path, monkeypatch):
    names = ['a,b".jpg', "鷦鷯.jpg", os.fsdecode(b"not-utf8-\xff.jpg"), "@at.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(photographs[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    listing = b"\xef\xbb\xbf" + b"\r\n".join(map(os.fsencode, [*names, names[0], "", "missing.jpg"]))
    (tmp_path / "list.txt").write_bytes(listing)
    for suffix in ("csv", "json", "parquet"):
        result = predict("@list.txt", checkpoint, f"out.{suffix}", device="cpu", progress=False)
        assert (result.num_photographs, list(result.errors)) == (5, ["missing.jpg"])
    with open("out.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row["photograph"] for row in csv.DictReader(file)] == [*names, "missing.jpg"]
    assert [row["photograph"] for row in read(tmp_path / "out.json")] == [*names, "missing.jpg"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listing)))
    assert predict(["-", "@at.jpg"], checkpoint, "in.csv", device="cpu", progress=False).num_photographs == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "out.xlsx"}, r"out\.xlsx: expected a name that ends in \.csv, \.json, \.jsonl or \.parquet"),
        ({"output": "nowhere/out.csv"}, r"nowhere/out\.csv: there is no folder nowhere"),
        ({"output": "there.csv"}, r"there\.csv exists; choose another name, or overwrite it \(--overwrite\)"),
        ({"output": "there.csv", "only": "there.csv", "overwrite": True}, r"there\.csv is one of the inputs"),
        ({"photographs": "@none.txt"}, r"none\.txt: the list of photographs cannot be read"),
        ({"photographs": "@empty.txt"}, r"empty\.txt lists no photographs"),
        ({"photographs": []}, "No photographs given"),
        ({"photographs": "nowhere/"}, "nowhere: no such file or folder"),
        ({"photographs": "nowhere/*.jpg"}, "no such file, and no files that match this pattern"),
        ({"roll_up": "there.csv"}, r"there\.csv: its first line is mine; expected class,group"),
        ({"unknown_below": 2}, r"unknown_below=2: expected a probability"),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more"),
    ],
)
def test_arguments_that_do_not_fit(checkpoint, photographs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("mine\n")
    (tmp_path / "empty.txt").write_text("\n")
    given = {"photographs": photographs[0], "model": checkpoint, "output": "out.csv", "device": "cpu"} | arguments
    with pytest.raises(ValueError, match=message):
        predict(**given, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "there.csv"]
    assert (tmp_path / "there.csv").read_text() == "mine\n"


def test_a_table_never_takes_the_place_of_an_input(checkpoint, photographs, tmp_path):
    table = tmp_path / "photographs.parquet"
    pq.write_table(pa.table({"image": [photographs[0].read_bytes()]}), table)
    before = table.read_bytes()
    with pytest.raises(ValueError, match=r"photographs\.parquet is one of the inputs"):
        predict(tmp_path, checkpoint, table, overwrite=True, device="cpu", progress=False)
    assert table.read_bytes() == before


def test_command_prints_a_table_and_errors_elsewhere(checkpoint, photographs, tmp_path, caplog):
    (tmp_path / "region.txt").write_text("Hooded_Oriole\nIndigo_Bunting\nHouse_Wren\n")
    arguments = ["predict", "-", "--model", checkpoint, "--device", "cpu", "--only", tmp_path / "region.txt"]
    listing = "\n".join(map(str, photographs))
    done = promptcam(*arguments, input=listing)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["photograph"] for row in rows] == listing.splitlines()
    assert {row["label"] for row in rows} <= {"Hooded_Oriole", "Indigo_Bunting", ""}
    assert done.exit_code == 1
    assert "does not know 1 of 3 classes: House_Wren" in caplog.text
    assert done.stderr.splitlines()[-2:] == [
        "Only 2 classes could be the answer; probabilities are over these alone.",
        "error: 1 of 3 photographs could not be read.",
    ]
