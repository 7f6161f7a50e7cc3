"""`promptcam demo`, as a user calls it, at a small scale."""

import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

SMALL = ("--classes", 4, "--train", 6, "--test", 3, "--epochs", 1)


def demo(folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "promptcam_hf", "demo", "--output-dir", str(folder), *map(str, arguments)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


class Page(HTMLParser):
    """What a page refers to, and the figures in it: keys, value and text."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.references, self.pictures, self.figures = set(), [], [], []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found["id"]} if "id" in found else set()
        self.references += [found[name] for name in ("href", "src", "srcset", "action") if name in found]
        if tag == "img":
            self.pictures.append(found)
        if tag == "data":
            self.figures.append([found["data-figure"], found["value"], ""])
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} is closed, but is not the last that was opened"

    def handle_data(self, text):
        if self.open and self.open[-1] == "data":
            self.figures[-1][2] += text


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = demo(folder, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "Accuracy" in result.stdout
    assert f"Open {folder / 'index.html'}" in result.stdout
    return folder


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page((finished / "index.html").read_text(encoding="utf-8"))


def test_page_needs_no_other_file_and_no_network(finished, page):
    text = (finished / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|@import|url\(", text)
    assert not page.open
    for reference in page.references:
        assert reference.startswith("data:image/jpeg;base64,") or reference.removeprefix("#") in page.ids


def test_every_picture_opens_and_is_described(page):
    assert len(page.pictures) >= 4
    for picture in page.pictures:
        image = Image.open(BytesIO(base64.b64decode(picture["src"].partition(",")[2])))
        image.load()
        assert (str(image.width), str(image.height)) == (picture["width"], picture["height"])
        assert min(image.size) >= 160
        assert len(picture["alt"]) > 10


def test_figures_are_those_of_the_record(finished, page):
    record = json.loads((finished / "demo.json").read_text())
    assert len(page.figures) > 20
    for path, value, shown in page.figures:
        figure = record
        for key in path.split("."):
            figure = figure[key]
        assert value == str(figure)
        if shown.endswith("%"):
            assert float(shown[:-1]) == pytest.approx(100 * figure, abs=0.051)
        else:
            assert shown == "not measured" if figure is None else float(shown) == pytest.approx(figure, abs=0.0051)
    evaluation = json.loads((finished / "promptcam" / "evaluation" / "results.json").read_text())
    assert record["accuracy"] == evaluation["accuracy"]
    counts = record["classes"].values()
    assert sum(count["correct"] for count in counts) / sum(count["images"] for count in counts) == record["accuracy"]
    assert set(record["seconds"]) == {"drawing", "training", "measuring", "page"}


def test_sheets_are_pictures(finished):
    sheets = sorted((finished / "sheets").iterdir())
    assert sheets
    for sheet in sheets:
        assert sheet.suffix == ".png"
        Image.open(sheet).load()


def test_nothing_is_replaced_unasked_and_nothing_else_ever(finished, tmp_path):
    notes = tmp_path / "mine"
    notes.mkdir()
    (notes / "birds").mkdir()
    (notes / "birds" / "sightings.txt").write_text("two wagtails")
    for arguments in ((), ("--overwrite",)):
        result = demo(notes, *SMALL, *arguments)
        assert result.returncode == 1
        assert "holds no earlier demo" in result.stderr
    assert (notes / "birds" / "sightings.txt").read_text() == "two wagtails"

    before = (finished / "index.html").read_bytes()
    result = demo(finished, *SMALL)
    assert result.returncode == 1
    assert "pass --overwrite" in result.stderr
    assert (finished / "index.html").read_bytes() == before
