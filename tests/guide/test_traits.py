"""`promptcam traits`, from photographs to tables."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptcam_hf.guide.names import read_names, write_names
from promptcam_hf.guide.occurrences import Shard
from promptcam_hf.guide.traits import make_traits

from ..command_line import promptcam


def rows(file) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_tables_agree_with_each_other(traits, bird_folder):
    folder, result = traits
    occurrences = pq.read_table(folder / "occurrences.parquet").to_pylist()
    assert result.unreadable == result.lost_names == []
    for row in occurrences[::7]:
        width, height = Image.open(row["photograph"]).size
        assert 0 < row["x"] < width
        assert 0 < row["y"] < height
        assert row["class"] in row["photograph"]
        assert row["split"] in row["photograph"]
        assert 0 <= row["distance"] <= 2
    by_photograph = {}
    for row in occurrences:
        by_photograph.setdefault(row["photograph"], []).append(row["rank"])
    assert all(ranks == [1, 2, 3] for ranks in by_photograph.values())

    listed = rows(folder / "traits.csv")
    assert [int(row["trait"]) for row in listed] == list(range(1, result.results["num_traits"] + 1))
    for row in listed:
        shown_on = {x["photograph"] for x in occurrences if x["trait"] == int(row["trait"])}
        assert int(row["photographs"]) == len(shown_on)
        assert {x["part"] for x in occurrences if x["trait"] == int(row["trait"])} <= {int(row["part"])}
        assert (folder / "crops" / f"trait_{row['trait']}.jpg").is_file() == bool(shown_on)
    shares = rows(folder / "class_traits.csv")
    frequent = {(row["class"], row["trait"]) for row in shares if float(row["share"]) >= 0.25}
    assert frequent == {(name, row["trait"]) for row in listed for name in row["classes"].split("; ") if name}


def test_results_are_measured_on_test_photographs(traits):
    folder, result = traits
    results = json.loads((folder / "results.json").read_text())
    assert results == result.results
    assert results["split"] == "test"
    found = results["consistency"]
    assert found["consistency"] == pytest.approx(found["peaks"] - found["random_patches"], abs=2e-4)
    for kind in ("parts", "traits"):
        assert 0 < results[kind]["chance_purity"] <= 1
        assert results[kind]["purity"] >= results[kind]["chance_purity"]
    assert 0 <= results["on_background"] <= 1
    heads = rows(folder / "consistency.csv")
    weights = [int(row["photographs"]) for row in heads]
    mean = np.average([float(row["peaks"]) for row in heads], weights=weights)
    assert mean == pytest.approx(results["consistency"]["peaks"], abs=1e-3)


def test_a_run_goes_on_where_it_was(traits, birds_model, bird_folder, tmp_path):
    folder = tmp_path / "traits"
    shutil.copytree(traits[0], folder)
    (folder / ".complete").unlink()
    (folder / "features" / "test_00000.npz").unlink()  # killed before these photographs were done
    before = (folder / "features" / "train_00000.npz").stat().st_mtime_ns
    result = make_traits(birds_model, bird_folder, folder, num_workers=0, progress=False)
    assert (folder / "features" / "train_00000.npz").stat().st_mtime_ns == before
    again, first = (Shard.load(x / "features" / "test_00000.npz") for x in (folder, traits[0]))
    np.testing.assert_array_equal(again.row, first.row)
    np.testing.assert_allclose(again.features, first.features, atol=0.02)
    assert result.results["num_traits"] == traits[1].results["num_traits"]


def test_another_clustering_keeps_the_names_and_needs_no_second_look(traits, birds_model, bird_folder, tmp_path):
    folder = tmp_path / "traits"
    shutil.copytree(traits[0], folder)
    count = traits[1].results["num_traits"]
    write_names(folder, {trait: f"name {trait}" for trait in range(1, count + 1)}, count)
    shard = (folder / "features" / "train_00000.npz").stat().st_mtime_ns
    result = make_traits(birds_model, bird_folder, folder, parts=2, looks=1, num_workers=0, progress=False)
    assert (folder / "features" / "train_00000.npz").stat().st_mtime_ns == shard
    assert result.results["num_traits"] == 2
    kept = read_names(folder, 2).values()
    lost = [row["name"] for row in rows(folder / "names_without_trait.csv")] if result.lost_names else []
    assert lost == result.lost_names
    assert sorted([*kept, *lost]) == sorted(f"name {trait}" for trait in range(1, count + 1))
    assert len(list((folder / "crops").iterdir())) <= 2


def test_photographs_that_cannot_be_read_are_left_out(birds_model, bird_folder, tmp_path):
    data = tmp_path / "photos"
    shutil.copytree(bird_folder, data)
    (data / "parts.json").unlink(missing_ok=True)
    bad = sorted(data.glob("test/*/*.jpg"))[0]
    bad.write_text("not an image")
    command = ["traits", "--model", birds_model, "--data", data, "--output-dir", tmp_path / "traits", "--parts", 3]
    result = promptcam(*command)
    assert result.exit_code == 0, result.output
    assert f"{bad.name}: not an image that can be read" in result.output
    assert "traits of 3 parts" in result.output
    assert "against masks" not in result.output


def test_what_cannot_work_is_told_in_a_line(birds_model, bird_folder, traits, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    options = {"num_workers": 0, "progress": False}
    with pytest.raises(ValueError, match="exists and is not empty; expected a new or empty folder"):
        make_traits(birds_model, bird_folder, tmp_path, **options)
    with pytest.raises(ValueError, match="parts=0: expected 1 or more"):
        make_traits(birds_model, bird_folder, tmp_path / "new", parts=0, **options)
    folder = tmp_path / "traits"
    shutil.copytree(traits[0], folder)
    (folder / "names.csv").write_text("trait,name\n99,red crown\n")
    with pytest.raises(ValueError, match="there is no trait '99'"):
        make_traits(birds_model, bird_folder, folder, **options)
    assert (folder / "names.csv").read_text() == "trait,name\n99,red crown\n"
