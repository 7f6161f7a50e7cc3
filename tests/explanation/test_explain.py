import inspect
import json
import math
import os
import shutil
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image
from promptcam_hf.modeling.images_promptcam import load_photograph
from transformers import pipeline

from promptcam_hf import PromptCamConfig
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.cli.explain import explain as command
from promptcam_hf.explanation import explain as module
from promptcam_hf.explanation import predictor
from promptcam_hf.explanation.drawing import contact_sheet
from promptcam_hf.explanation.explain import explain
from promptcam_hf.explanation.shards import explain_shards

from ..tiny_models import tiny_model


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
            assert explanation["score"] == pytest.approx(other["score"], rel=1e-4)
            assert [trait["head"] for trait in explanation["traits"]] == [trait["head"] for trait in other["traits"]]
            maps = torch.tensor([trait["map"] for trait in explanation["traits"]])
            expected_maps = torch.stack([torch.from_numpy(trait["map"]) for trait in other["traits"]])
            torch.testing.assert_close(maps, expected_maps, rtol=1e-4, atol=1e-5)
        sheet = Image.open(tmp_path / row["sheet"])
        assert sheet.size == contact_sheet(Image.open(path), expected, title=str(path)).size


def test_each_photograph_is_opened_once(checkpoint, bird_folder, tmp_path, monkeypatch):
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda source, *rest: opened.append(source) or open_image(source, *rest))
    explain(bird_folder / "test", checkpoint, tmp_path, progress=False)
    assert sorted(map(Path, opened)) == sorted(bird_folder.glob("test/*/*.jpg"))


def test_a_folder_that_names_another_class_than_the_answer_is_told(checkpoint, photograph, tmp_path):
    answer = explain(photograph, checkpoint, tmp_path / "own", progress=False)
    label = rows(tmp_path / "own")[0]["explanations"][0]["label"]
    names = [name for name in PromptCamConfig.from_pretrained(checkpoint).label2id if name != label]
    assert answer.num_written == 1
    for folder, is_told in ((label, False), (names[0], True), ("garden", False)):
        (tmp_path / folder).mkdir()
        copy = shutil.copy(photograph, tmp_path / folder)
        page = tmp_path / f"{folder}.html"
        explain(copy, checkpoint, None, html=page, progress=False)
        said = f"Truth: {folder.replace('_', ' ')}, answer: {label.replace('_', ' ')}: {copy}"
        assert (said in page.read_text(encoding="utf-8")) == is_told


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
        (["a/b_c.jpg", "a_b/c.jpg", "x/c.jpg"], ["1_b_c.png", "2_c.png", "3_c.png"]),
        (["a/\u00e9.jpg", "b/e\u0301.jpg"], ["a_\u00e9.png", "b_e\u0301.png"]),  # one name to macOS
        ([f"a/{'x' * 240}.jpg", f"b/{'x' * 240}.jpg"], [f"{number}_{'x' * 25}.png" for number in (1, 2)]),
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


def test_nor_under_another_name(checkpoint, tmp_path):
    """A link, whether hard or not, leads to the same photograph."""
    bird = tmp_path / "photos" / "bird.jpg"
    bird.parent.mkdir()
    Image.new("RGB", (40, 40), "red").save(bird)
    before = bird.read_bytes()
    for make in (os.link, os.symlink):
        (tmp_path / "out").mkdir(exist_ok=True)
        make(bird, tmp_path / "out" / "bird.png")
        with pytest.raises(ValueError, match="is one of the photographs"):
            explain(bird, checkpoint, tmp_path / "out", overwrite=True)
        shutil.rmtree(tmp_path / "out")
    assert bird.read_bytes() == before


def test_photograph_that_is_gone_before_its_overlay_does_not_stop_the_others(checkpoint, bird_folder, tmp_path):
    """Overlays read it again; the server gives each photograph once."""
    served: set[str] = set()

    class Once(SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path in served and self.path.endswith("0.jpg"):
                return self.send_error(404)
            served.add(self.path)
            return super().do_GET()

        def log_message(self, *arguments):
            pass

    folder = next((bird_folder / "test").iterdir())
    names = sorted(path.name for path in folder.iterdir())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Once, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in names]
        result = explain(urls, checkpoint, tmp_path, save=["overlay"], html=tmp_path / "page.html", progress=False)
    finally:
        server.shutdown()
        server.server_close()
    gone = [url for url in urls if url.endswith("0.jpg")]
    assert 0 < len(gone) < len(urls)
    assert list(result.errors) == gone
    assert [row["photograph"] for row in rows(tmp_path) if "error" in row] == gone
    assert (tmp_path / "page.html").read_text().count("cannot be fetched") == len(gone)


def test_contact_sheets_are_not_explained(checkpoint, photograph, tmp_path, monkeypatch):
    """Wherever they lie among the photographs: of this run, of another, of one without a record."""
    birds = tmp_path / "birds"
    for name in ("a.jpg", "sub/b.png", ".hidden/c.jpg", "._d.jpg"):
        (birds / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(photograph).save(birds / name, format="PNG")
    paths = [str(birds / "a.jpg"), str(birds / "sub/b.png")]
    for output_dir, overwrite in (("out", False), ("out", True), ("other", False), (".", False), (".", True)):
        explain(birds, checkpoint, birds / output_dir, overwrite=overwrite, progress=False)
        assert [row["photograph"] for row in rows(birds / output_dir)] == paths
    (birds / "explanations.jsonl").unlink()
    explain(str(birds / "**" / "*.*g"), checkpoint, tmp_path / "out", progress=False)
    assert [row["photograph"] for row in rows(tmp_path / "out")] == paths


@pytest.mark.skipif(os.name == "nt", reason="no such file names")
def test_file_names_of_any_kind(checkpoint, photograph, tmp_path):
    names = ["\nnew\nline.jpg", os.fsdecode(b"not-utf8-\xff.jpg"), "鷦鷯 é.jpg", "-dash.jpg", "%s{}.jpg", "no_ending"]
    for name in names:
        shutil.copy(photograph, tmp_path / name)
    explain([tmp_path / name for name in names], checkpoint, tmp_path / "out", progress=False)
    found = rows(tmp_path / "out")
    assert [row["photograph"] for row in found] == [str(tmp_path / name) for name in names]
    for row in found:
        Image.open(tmp_path / "out" / row["sheet"]).load()


def test_overwriting_removes_the_sheets_of_the_run_before_and_nothing_else(checkpoint, photograph, tmp_path):
    first, second = (shutil.copy(photograph, tmp_path / name) for name in ("first.jpg", "second.jpg"))
    out = tmp_path / "out"
    explain([first, second], checkpoint, out, progress=False)
    Image.new("RGB", (4, 4)).save(out / "mine.png")
    explain(second, checkpoint, out, overwrite=True, progress=False)
    assert sorted(path.name for path in out.iterdir()) == ["explanations.jsonl", "mine.png", "second.png"]
    (out / "explanations.jsonl").unlink()
    explain(first, checkpoint, out, progress=False)  # replaces nothing, so nothing goes
    assert sorted(path.name for path in out.iterdir()) == ["explanations.jsonl", "first.png", "mine.png", "second.png"]


def test_two_runs_do_not_share_a_folder(checkpoint, photograph, tmp_path, monkeypatch):
    errors = []

    def explain_meanwhile(*arguments, **options):
        with pytest.raises(ValueError, match="out: another run is writing to it") as error:
            explain(second, checkpoint, tmp_path / "out", progress=False)
        errors.append(error)
        return contact_sheet(*arguments, **options)

    second = shutil.copy(photograph, tmp_path / "second.jpg")
    monkeypatch.setattr(module, "contact_sheet", explain_meanwhile)
    explain(photograph, checkpoint, tmp_path / "out", progress=False)
    assert len(errors) == 1
    assert len(rows(tmp_path / "out")) == 1
    monkeypatch.undo()
    explain(second, checkpoint, tmp_path / "out", overwrite=True, progress=False)


def test_photographs_may_come_over_http(checkpoint, photograph, tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(photograph.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{photograph.name}?size=large"
        explain(url, checkpoint, tmp_path / "out", progress=False)
        server.shutdown()
    (row,) = rows(tmp_path / "out")
    assert (row["photograph"], row["sheet"]) == (url, f"{photograph.stem}.png")


def test_model_whose_scores_are_not_finite_writes_no_record(photograph, tmp_path):
    model = tiny_model("vit")
    torch.nn.init.constant_(model.class_prompts[2], math.nan)
    save_checkpoint(model, new_image_processor(32), tmp_path / "model")
    with pytest.raises(FloatingPointError, match="scores are not finite"):
        explain(photograph, tmp_path / "model", tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").iterdir())


def test_few_photographs_are_held_at_full_size_at_once(checkpoint, tmp_path, monkeypatch):
    """Eight photographs of 24 megapixels would take 600 MB."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    loaded, alive = [], []
    for number in range(6):
        Image.new("RGB", (600, 400), "teal").save(tmp_path / f"{number}.jpg")

    def load(source):
        image = load_photograph(source)
        loaded.append(weakref.ref(image))
        alive.append(sum(reference() is not None for reference in loaded))
        return image

    monkeypatch.setattr(predictor, "load_photograph", load)
    explain(tmp_path, checkpoint, tmp_path / "out", batch_size=6, progress=False)
    assert len(alive) == 6
    assert max(alive) <= 4  # for each of two threads the one before, and this one


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
        ({"classes": ["Scot_Oriole"]}, "The model knows no class 'Scot_Oriole'; .*'Scott_Oriole'"),
        ({"model": "nowhere/at-all"}, r"model=nowhere/at-all: no such folder, and not opened"),
        ({"model": "/nope"}, "/nope: no such folder, and no Hub id such as org/name"),
        ({"model": "./nope"}, r"\./nope: no such folder, and no Hub id"),
        ({"device": "gpu"}, r"device=gpu: this machine has .*; expected cpu"),
        ({"device": 99}, r"device=99: this machine has .*; expected cpu"),
        ({"device": "cuda:99"}, r"device=cuda:99: this machine has .*; expected cpu"),
        ({"classes": []}, r"classes=\[\]: expected one class or more"),
        ({"classes": ["Scott_Oriole"], "top_k": 2}, "top_k=2 and classes=.* pass one"),
        ({"photographs": "photos/*.jpg"}, r"photos/\*\.jpg: no such file, and no files that match this pattern"),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more"),
        ({"top_traits": 0}, "top_traits=0: expected"),
        ({"photographs": "empty"}, "empty holds no images; expected files such as empty/bird.jpg"),
        ({"photographs": []}, "No photographs given"),
        ({"photographs": ["nowhere/", "gone.jpg"]}, r"nowhere, gone\.jpg: no such file or folder"),
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


def test_several_processes_are_told_what_they_can_share(checkpoint, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="share the work only with --format parquet"):
        explain(photograph, checkpoint, tmp_path / "out")


def test_command_and_functions_have_the_same_defaults():
    options = {name: option.default for name, option in inspect.signature(command).parameters.items()}
    options |= {"photographs": inspect.Parameter.empty, "save": ()}  # as the functions spell them
    for function in (explain, explain_shards):
        for name, parameter in inspect.signature(function).parameters.items():
            is_ours = name in ("progress", "predictor_options") or (function, name) == (explain_shards, "output_dir")
            assert is_ours or options.get(name, "missing") == parameter.default, name
