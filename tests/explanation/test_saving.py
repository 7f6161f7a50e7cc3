import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from promptcam_hf.modeling.images_promptcam import draw_heatmap

from promptcam_hf.explanation.explain import explain
from promptcam_hf.explanation.saving import safe_labels


@pytest.fixture(scope="module")
def picture(photograph, tmp_path_factory):
    """Wider than high, and larger than the model's images."""
    path = tmp_path_factory.mktemp("photo") / "bird.png"
    Image.open(photograph).resize((96, 60)).save(path)
    return path


def record(folder):
    (line,) = (folder / "explanations.jsonl").read_text().splitlines()
    return json.loads(line)


def run(picture, checkpoint, out, save, **options):
    explain(picture, checkpoint, out, save=save, device="cpu", progress=False, **options)
    return record(out)


def test_maps_as_numbers_are_those_of_the_record(checkpoint, picture, tmp_path):
    line = run(picture, checkpoint, tmp_path, ["maps"], format="npy", top_traits=2)
    (explanation,) = line["explanations"]
    assert line["files"] == [
        f"maps/bird/{explanation['label']}_trait{trait['rank']}_head{trait['head']}_map.npy"
        for trait in explanation["traits"]
    ]
    for file, trait in zip(line["files"], explanation["traits"], strict=True):
        np.testing.assert_array_equal(np.load(tmp_path / file), np.array(trait["map"], np.float32))


def test_heads_are_all_heads_and_the_sheet_shows_the_first(checkpoint, picture, tmp_path):
    line = run(picture, checkpoint, tmp_path / "all", ["heads"], format="npy", size="photograph", top_traits=1)
    assert sorted(trait["head"] for trait in line["explanations"][0]["traits"]) == [0, 1, 2, 3]
    assert [np.load(tmp_path / "all" / file).shape for file in line["files"]] == [(60, 96)] * 4
    explain(picture, checkpoint, tmp_path / "one", top_traits=1, device="cpu", progress=False)
    sheets = [Image.open(tmp_path / name / "bird.png").size for name in ("all", "one")]
    assert sheets[0] == sheets[1]


@pytest.mark.parametrize(("size", "expected"), [(None, (96, 60)), ("grid", (4, 4))])
def test_pictures(checkpoint, picture, tmp_path, size, expected):
    line = run(picture, checkpoint, tmp_path, ["maps", "overlay"], top_traits=1, size=size)
    (trait,) = line["explanations"][0]["traits"]
    a_map, overlay = (tmp_path / file for file in line["files"])
    assert Image.open(a_map).size == expected
    wanted = draw_heatmap(Image.open(picture).convert("RGB"), np.array(trait["map"], np.float32))
    assert Image.open(overlay).tobytes() == wanted.tobytes()
    light = np.asarray(Image.open(a_map).convert("L"), np.float32)
    row, column = np.unravel_index(light.argmax(), light.shape)
    y, x = np.unravel_index(np.argmax(trait["map"]), (4, 4))
    assert (row * 4 // light.shape[0], column * 4 // light.shape[1]) == (y, x)


def test_pdf_and_svg(checkpoint, picture, tmp_path):
    for format, start in (("pdf", b"%PDF"), ("svg", b"<svg")):
        line = run(picture, checkpoint, tmp_path / format, ["overlay"], format=format, top_traits=1)
        content = (tmp_path / format / line["files"][0]).read_bytes()
        assert content.startswith(start)
        if format == "svg":
            assert re.search(rb'<svg [^>]*width="96" height="60"', content)


def test_regions_are_in_the_record_and_in_a_table(checkpoint, picture, tmp_path):
    line = run(picture, checkpoint, tmp_path, ["regions"], top_k=2, top_traits=2)
    with open(tmp_path / "regions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    traits = [(item["label"], trait) for item in line["explanations"] for trait in item["traits"]]
    assert [(row["photograph"], row["label"], int(row["head"])) for row in rows] == [
        (str(picture), label, trait["head"]) for label, trait in traits
    ]
    for row, (_, trait) in zip(rows, traits, strict=True):
        assert [float(row[name]) for name in ("peak_x", "peak_y")] == trait["peak"]
        assert [float(row[name]) for name in ("left", "top", "right", "bottom")] == trait["box"]
        left, top, right, bottom = trait["box"]
        assert 0 <= left <= trait["peak"][0] <= right <= 96
        assert 0 <= top <= trait["peak"][1] <= bottom <= 60


def test_what_is_there_stays_unless_it_is_of_an_earlier_run(checkpoint, picture, tmp_path):
    run(picture, checkpoint, tmp_path, ["maps", "regions"], top_traits=2)
    (tmp_path / "maps" / "bird" / "mine.png").write_text("mine")
    with pytest.raises(ValueError, match="exists; choose another folder"):
        run(picture, checkpoint, tmp_path, ["maps"])
    line = run(picture, checkpoint, tmp_path, ["maps"], format="npy", top_traits=1, overwrite=True)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted(["bird.png", "explanations.jsonl", "maps/bird/mine.png", *line["files"]])
    (tmp_path / "explanations.jsonl").write_text('{"files": ["../mine", "maps/../../mine", "/mine", 3]}\nno json\n')
    run(picture, checkpoint, tmp_path, [], overwrite=True)
    assert (tmp_path / "maps" / "bird" / "mine.png").read_text() == "mine"


def test_tables_and_folders_of_others_stay(checkpoint, picture, tmp_path):
    (tmp_path / "regions.csv").write_text("mine")
    (tmp_path / "maps").mkdir()
    run(picture, checkpoint, tmp_path, [])
    run(picture, checkpoint, tmp_path, [], overwrite=True)
    assert (tmp_path / "regions.csv").read_text() == "mine"
    assert (tmp_path / "maps").is_dir()
    for file in ("explanations.jsonl", "bird.png"):
        (tmp_path / file).unlink()
    for save in ("regions", "maps"):
        with pytest.raises(ValueError, match=f"{save}.* exists; choose another folder"):
            run(picture, checkpoint, tmp_path, [save])


def test_saved_pictures_are_not_explained_nor_replaced_as_photographs(checkpoint, picture, tmp_path):
    shutil.copy(picture, tmp_path / "bird.jpg")
    line = run(tmp_path, checkpoint, tmp_path / "out", ["maps", "overlay"], top_traits=1)
    assert run(tmp_path, checkpoint, tmp_path / "out", ["maps"], top_traits=1, overwrite=True)["photograph"] == str(
        tmp_path / "bird.jpg"
    )
    photograph = tmp_path / "out" / line["files"][0]
    before = photograph.read_bytes()
    (tmp_path / "out" / "explanations.jsonl").unlink()
    with pytest.raises(ValueError, match="is one of the photographs"):
        explain([tmp_path / "bird.jpg", photograph], checkpoint, tmp_path / "out", save=["maps"], overwrite=True)
    assert photograph.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save": ["map"]}, "save=map: expected maps, heads, overlay or regions"),
        ({"save": ["overlay"], "format": "npy"}, "An overlay is a picture, and cannot be saved as npy"),
    ],
)
def test_options_that_do_not_fit(checkpoint, picture, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        explain(picture, checkpoint, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_labels_in_file_names():
    names = ["Scott's Oriole", "a/b", "a:b", "Wren", "wren", "鷦鷯"]
    safe = safe_labels(names)
    assert list(safe.values()) == ["Scott_s_Oriole", "a_b_1", "a_b_2", "Wren_3", "wren_4", "鷦鷯"]
