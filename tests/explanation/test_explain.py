import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import pipeline

from promptcam_hf.cli.explain import explain as command
from promptcam_hf.explanation import explain as module
from promptcam_hf.explanation.drawing import contact_sheet
from promptcam_hf.explanation.explain import explain


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "explanations.jsonl").read_text().splitlines()]


def test_explanations_are_those_of_the_pipeline(checkpoint, bird_folder, tmp_path):
    paths = sorted(bird_folder.glob("test/*/*.jpg"))[:5]
    result = explain(paths, checkpoint, tmp_path, top_k=2, top_traits=3, batch_size=2, device="cpu", progress=False)
    assert (result.record, result.num_written, result.errors) == (tmp_path / "explanations.jsonl", 5, {})
    found = rows(tmp_path)
    assert [row["photograph"] for row in found] == list(map(str, paths))
    pipe = pipeline("prompt-cam", model=str(checkpoint), device="cpu", top_k=2, top_traits=3)
    for path, row in zip(paths, found, strict=True):
        expected = pipe(str(path))
        for explanation, other in zip(row["explanations"], expected, strict=True):
            assert explanation["label"] == other["label"]
            assert explanation["score"] == pytest.approx(other["score"], rel=1e-5)
            assert [trait["head"] for trait in explanation["traits"]] == [trait["head"] for trait in other["traits"]]
            maps = torch.tensor([trait["map"] for trait in explanation["traits"]])
            expected_maps = torch.stack([torch.from_numpy(trait["map"]) for trait in other["traits"]])
            torch.testing.assert_close(maps, expected_maps, rtol=1e-4, atol=1e-6)
        sheet = Image.open(tmp_path / row["sheet"])
        assert sheet.size == contact_sheet(Image.open(path), expected, title=str(path)).size


def test_each_photograph_is_opened_once(checkpoint, bird_folder, tmp_path, monkeypatch):
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda source, *rest: opened.append(source) or open_image(source, *rest))
    explain(bird_folder / "test", checkpoint, tmp_path, progress=False)
    assert sorted(opened) == sorted(bird_folder.glob("test/*/*.jpg"))


def test_unreadable_photographs_do_not_stop_the_others(checkpoint, photograph, tmp_path):
    (tmp_path / "bad.jpg").write_text("not an image")
    paths = [str(tmp_path / "bad.jpg"), str(photograph), str(tmp_path / "missing.jpg")]
    result = explain(paths, checkpoint, tmp_path / "out", progress=False)
    assert result.num_written == 1
    assert list(result.errors) == [paths[0], paths[2]]
    assert ["error" in row for row in rows(tmp_path / "out")] == [True, False, True]
    assert explain(paths[0], checkpoint, tmp_path / "none", progress=False).num_written == 0


@pytest.mark.parametrize(
    ("files", "sheets"),
    [
        (["a/x/1.jpg", "b/x/1.jpg", "b/x/2.png"], ["a_x_1.png", "b_x_1.png", "b_x_2.png"]),
        (["a/1.jpg", "b/2.jpg"], ["1.png", "2.png"]),
        (["bird.jpg", "bird.png"], ["bird.jpg.png", "bird.png.png"]),
        (["a/B.jpg", "b/b.jpg"], ["a_B.png", "b_b.png"]),  # the same file where case does not matter
        (["x/a_b.jpg", "x_a/b.jpg", "y/b.jpg"], ["1_a_b.png", "2_b.png", "3_b.png"]),
    ],
)
def test_folders_are_searched_and_no_two_sheets_have_the_same_name(
    checkpoint, photograph, tmp_path, monkeypatch, files, sheets
):
    monkeypatch.chdir(tmp_path)
    for file in map(Path, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.open(photograph).save(file)
    folders = sorted({Path(file).parts[0] for file in files})
    result = explain(folders, checkpoint, "out", classes=["Scott_Oriole"], progress=False)
    assert result.num_written == len(files)
    found = rows(tmp_path / "out")
    assert sorted(row["sheet"] for row in found) == sheets
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*sheets, "explanations.jsonl"])
    assert {row["explanations"][0]["label"] for row in found} == {"Scott_Oriole"}


@pytest.mark.parametrize("name", ["explanations.jsonl", "bird.png"])
def test_files_are_not_overwritten_unless_asked(checkpoint, photograph, tmp_path, name):
    bird, out = shutil.copy(photograph, tmp_path / "bird.jpg"), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} exists; choose another folder"):
        explain(bird, checkpoint, out, progress=False)
    assert [path.read_text() for path in out.iterdir()] == ["mine"]
    explain(bird, checkpoint, out, overwrite=True, progress=False)
    assert len(rows(out)) == 1
    assert Image.open(out / "bird.png").size


def test_photographs_are_never_overwritten(checkpoint, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "bird.png")
    before = (tmp_path / "bird.png").read_bytes()
    with pytest.raises(ValueError, match=r"bird.png is one of the photographs; choose another folder"):
        explain(tmp_path, checkpoint, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bird.png"]
    assert (tmp_path / "bird.png").read_bytes() == before


def test_an_interrupted_run_leaves_whole_sheets_and_no_record(checkpoint, bird_folder, tmp_path, monkeypatch):
    calls = []

    def interrupt(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return contact_sheet(*arguments, **options)

    monkeypatch.setattr(module, "contact_sheet", interrupt)
    with pytest.raises(KeyboardInterrupt):
        explain(bird_folder / "test", checkpoint, tmp_path, batch_size=2, progress=False)
    assert len(list(tmp_path.iterdir())) == 3
    for sheet in tmp_path.iterdir():
        Image.open(sheet).load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["Scot_Oriole"]}, "the model knows no class 'Scot_Oriole'; .*'Scott_Oriole'"),
        ({"model": "nowhere/at-all"}, r"model=nowhere/at-all: cannot be opened \("),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more"),
        ({"top_traits": 0}, "top_traits=0: expected"),
        ({"photographs": "empty"}, "empty holds no images; expected files such as empty/bird.jpg"),
        ({"photographs": []}, "No photographs to explain"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(checkpoint, photograph, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    given = {"photographs": photograph, "model": checkpoint, "output_dir": "out"} | arguments
    with pytest.raises(ValueError, match=message):
        explain(**given, progress=False)
    assert not Path("out").exists()


def test_command_and_function_have_the_same_defaults():
    options = inspect.signature(command).parameters
    assert {name: options[name].default for name in options} == {
        name: parameter.default
        for name, parameter in inspect.signature(explain).parameters.items()
        if name != "progress"
    }
