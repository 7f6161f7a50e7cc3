"""The page of `promptcam explain --html`: written safely, in little memory, and as a browser shows it."""

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptcam_hf.explanation.explain import _only_run, explain
from promptcam_hf.explanation.page import page_of

from ..browser import Browser
from ..command_line import promptcam

TRAIT = {"rank": 1, "head": 2, "map": np.eye(4, dtype=np.float32)}
FOUND = [{"label": "Scott_Oriole", "score": 0.5, "num_sufficient": 1, "traits": [TRAIT] * 4}]
PHOTOGRAPH = Image.new("RGB", (64, 48), "teal")


def write_page(path: Path, count: int) -> int:
    """Write a page of many photographs, and return the most memory that it took, in bytes."""
    tracemalloc.start()
    with page_of(path) as add:
        for number in range(count):
            add(f"{number}.jpg", FOUND, PHOTOGRAPH)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_ten_times_the_photographs_take_the_same_memory(tmp_path):
    few, many = write_page(tmp_path / "few.html", 20), write_page(tmp_path / "many.html", 200)
    grown = (tmp_path / "many.html").stat().st_size - (tmp_path / "few.html").stat().st_size
    assert many - few < grown / 10


def test_a_page_that_fails_leaves_the_former_one(tmp_path):
    page = tmp_path / "new" / "page.html"
    with page_of(page) as add:
        add("first.jpg", FOUND, PHOTOGRAPH)
    before = page.read_bytes()
    with pytest.raises(AttributeError), page_of(page) as add:
        add("second.jpg", FOUND, "no photograph")
    assert page.read_bytes() == before
    assert list(page.parent.iterdir()) == [page]


@pytest.fixture(scope="module")
def photographs(bird_folder, tmp_path_factory):
    """Two birds and a file that is none, under names that must not become markup."""
    folder = tmp_path_factory.mktemp("page") / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    for number, path in enumerate(sorted(bird_folder.glob("test/*/*.jpg"))[:2]):
        shutil.copy(path, folder / f"bird_{number}.jpg")
    (folder / "bad.jpg").write_text("bad")
    return folder


@pytest.fixture(scope="module")
def page(checkpoint, photographs):
    path = photographs.parent / "page.html"
    result = promptcam("explain", photographs, "--model", checkpoint, "--html", path, "--top-k", 2, "--device", "cpu")
    assert result.exit_code == 1
    assert f"2 photographs in {path}" in result.output
    assert result.stderr.splitlines()[-1] == "error: 1 of 3 photographs could not be read."
    assert {item.name for item in photographs.parent.iterdir()} == {"page.html", photographs.name}
    return path


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_shows_every_photograph_and_asks_for_nothing(page, photographs, width, dark):
    browser = Browser()
    try:
        browser.open(page, width, dark=dark)
        browser.run("for (const image of document.images) image.loading = 'eager'")
        browser.wait_for("[...document.images].every((image) => image.complete)")
        assert browser.run("[...document.images].filter((image) => image.naturalWidth).length") == 2 * (1 + 2 * 4)
        headings = browser.run("[...document.querySelectorAll('h2')].map((x) => x.textContent)")
        assert headings == [str(photographs / name) for name in ("bad.jpg", "bird_0.jpg", "bird_1.jpg")]
        assert "not an image that can be read" in browser.run("document.querySelector('.error').textContent")
        assert browser.run("document.documentElement.scrollWidth") <= width
        light = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light != dark
        assert browser.problems == []
        asked = {address for address in browser.requests if not address.startswith("data:")}
        assert asked <= {page.as_uri(), "about:blank"}
    finally:
        browser.close()


def test_page_and_lines_in_one_run(checkpoint, photographs, page, tmp_path):
    options = ("--format", "jsonl", "--output-dir", tmp_path / "out", "--html", tmp_path / "page.html", "--top-k", 2)
    result = promptcam("explain", photographs, "--model", checkpoint, "--device", "cpu", *options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["explanations.jsonl"]
    assert f"2 photographs in {tmp_path / 'out' / 'explanations.jsonl'}" in result.output
    bad, *birds = map(json.loads, (tmp_path / "out" / "explanations.jsonl").read_text().splitlines())
    assert bad.keys() == {"photograph", "error"}
    assert {"width", "height", "explanations"} <= birds[0].keys()
    assert "sheet" not in birds[0]
    assert (tmp_path / "page.html").read_bytes() == page.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "error: Nowhere to write to: expected a folder (--output-dir), a page (--html), or both."),
        (["--html", "page"], "error: html=page: expected a file that ends in .html."),
        (["--html", "p.html", "--save", "maps"], "error: save, size and the format jsonl need a folder"),
        (["--html", "p.html", "--format", "jsonl"], "error: save, size and the format jsonl need a folder"),
        (
            ["--output-dir", "o", "--format", "jsonl", "--size", "grid"],
            "error: The format jsonl writes",
        ),
        (["--output-dir", "o", "--format", "parquet", "--html", "p.html"], "error: --format parquet: leave out"),
        (["--format", "parquet"], "error: --format parquet: expected a folder"),
        (["--html", "there.html"], "error: there.html exists; choose another folder, or overwrite it"),
    ],
)
def test_outputs_that_do_not_fit_are_told_in_a_line(checkpoint, photograph, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    result = promptcam("explain", photograph, "--model", checkpoint, *options)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(message)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_photograph_is_never_replaced_by_a_page(checkpoint, photograph, tmp_path):
    page = tmp_path / "bird.html"
    shutil.copy(photograph, page)
    with pytest.raises(ValueError, match="is one of the photographs"):
        explain([page], checkpoint, html=page, overwrite=True, progress=False)
    assert page.read_bytes() == photograph.read_bytes()


def test_a_page_that_another_run_is_writing_is_left_to_it(checkpoint, photograph, tmp_path):
    page = tmp_path / "page.html"
    with _only_run(None, page):  # as the other run does
        with pytest.raises(ValueError, match="another run is writing to it"):
            explain([photograph], checkpoint, html=page, progress=False)
        explain([photograph], checkpoint, html=tmp_path / "other.html", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["other.html"]
