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

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import pipeline

from promptcam_hf.data.parts import PartFolder
from promptcam_hf.demo.album import Album, redraw
from promptcam_hf.demo.run import demo, make_room
from promptcam_hf.demo.species import make_species
from promptcam_hf.evaluation.prediction import class_names, predict
from promptcam_hf.evaluation.trait_data import load_trait_data
from promptcam_hf.evaluation.trait_metrics import part_region, pointing_game

# Enough for a model that gets some birds right and some wrong, so that the page has all its sections
SMALL = ("--classes", "4", "--train", "16", "--test", "3", "--epochs", "12")


class Page(HTMLParser):
    """What a page refers to, and the metrics in it: keys, value and text."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.references, self.pictures, self.metrics = set(), [], [], []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found["id"]} if "id" in found else set()
        self.references += [found[name] for name in ("href", "src", "srcset", "action") if name in found]
        if tag == "img":
            self.pictures.append(found)
        if tag == "data":
            self.metrics.append([found["data-metric"], found["value"], ""])
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} is closed, but is not the last tag that was opened"

    def handle_data(self, text):
        if self.open and self.open[-1] == "data":
            self.metrics[-1][2] += text


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "promptcam_hf", "demo", "--output-dir", str(folder), *SMALL]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
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


def test_metrics_are_those_of_the_record(finished, page):
    record = json.loads((finished / "demo.json").read_text())
    assert len(page.metrics) > 20
    for path, value, shown in page.metrics:
        metric = record
        for key in path.split("."):
            metric = metric[key]
        assert value == str(metric)
        if shown.endswith("%"):
            assert float(shown[:-1]) == pytest.approx(100 * metric, abs=0.051)
        else:
            assert shown == "not measured" if metric is None else float(shown) == pytest.approx(metric, abs=0.0051)
    evaluation = json.loads((finished / "promptcam" / "evaluation" / "results.json").read_text())
    assert record["accuracy"] == evaluation["accuracy"]
    counts = record["classes"].values()
    assert sum(count["correct"] for count in counts) / sum(count["images"] for count in counts) == record["accuracy"]
    assert not (finished / ".cache").exists()
    assert set(record["seconds"]) == {"drawing", "training", "measuring", "page"}


def test_sheets_are_pictures(finished):
    sheets = sorted((finished / "sheets").iterdir())
    assert [sheet.name for sheet in sheets] == ["look_alikes.png", "other_eyes.png", "traits.png"]
    for sheet in sheets:
        Image.open(sheet).load()


def test_page_has_all_sections(finished, page):
    text = (finished / "index.html").read_text(encoding="utf-8")
    assert {"reading", "metrics", "look-alikes", "without", "eyes", "species", "mistakes", "yours"} <= page.ids
    assert "In this run" not in text  # as the page says where there is no example
    for phrase in ("names both correctly", "The bird without its ", "Seen as ", "known by having no mark"):
        assert phrase in text
    record = json.loads((finished / "demo.json").read_text())
    wrong = sum(count["images"] - count["correct"] for count in record["classes"].values())
    assert (f"{wrong} of 12 birds got a wrong name" in text) == (wrong > 0)


def test_only_an_earlier_demo_is_replaced_and_only_on_request(finished, tmp_path):
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "sightings.txt").write_text("two wagtails")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="expected a new or empty folder or that of an earlier demo"):
            demo(tmp_path, overwrite=overwrite)
    assert (tmp_path / "birds" / "sightings.txt").read_text() == "two wagtails"
    with pytest.raises(ValueError, match="holds an earlier demo; pass --overwrite"):
        demo(finished)
    with pytest.raises(ValueError, match="expected 1 to 512"):  # before anything is removed
        demo(finished, num_classes=100_000, overwrite=True)
    with pytest.raises(ValueError, match="expected 2 species or more"):
        demo(finished, num_classes=1, overwrite=True)
    assert (finished / "index.html").exists()


def test_overwriting_keeps_what_the_demo_has_not_written(tmp_path):
    ours = ("birds/train/a/1.jpg", "promptcam/config.json", "sheets/traits.png", "index.html")
    for name in (*ours, "notes.txt", "photos/mine.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "demo.json").write_text(json.dumps({"made_by": "promptcam demo"}))
    make_room(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "notes.txt", "photos"]
    assert (tmp_path / "photos" / "mine.jpg").exists()


def test_captions_agree_with_the_metrics(finished):
    """A caption names a mark or a distinguishing part exactly if `pointing` counts it."""
    pipe = pipeline("prompt-cam", model=str(finished / "promptcam"))
    birds = load_trait_data(finished / "birds", class_names(pipe.model), pipe.image_processor)
    predictions = predict(
        pipe.model, birds.photographs, batch_size=16, accelerator=Accelerator(cpu=True), progress=False
    )
    album = Album(pipe, birds, predictions, seed=0)
    roles = []
    for index, name in enumerate(birds.names[label] for label in birds.labels):
        view, mask = album.view(index), birds[index].mask
        for trait, row in zip(view.traits, view.explanation["traits"], strict=True):
            counted = [
                pointing_game(torch.from_numpy(row["map"])[None], part_region(mask, birds.table, parts), mask > 0).get(
                    "top1", 0
                )
                for parts in (birds.table.marks(name), birds.table.distinguishing(name), birds.table.names)
            ]
            first = counted.index(1) if 1 in counted else 3
            assert trait.role == ("mark", "distinguishing", "shared", "background")[first]
            assert (trait.part is None) == (first == 3)
            roles.append(trait.role)
    assert len(set(roles)) >= 2


def test_scene_is_drawn_as_another_species(finished):
    """Except for JPEG compression, the pair on the page is the test picture and its swapped version."""
    path = sorted((finished / "birds" / "test").glob("*/00000.jpg"))[1]
    (other, swapped), *_ = PartFolder(finished / "birds").swapped(path).items()
    species = {kind.name: kind for kind in make_species(4)}
    written = [np.asarray(Image.open(file), int) for file in (path, swapped)]
    pictures = [
        np.asarray(redraw(path, species[name], seed=0, num_classes=4, size=len(written[0]))[0], int)
        for name in (path.parent.name, other)
    ]
    difference = np.array([[np.abs(a - b).mean() for b in written] for a in pictures])
    assert np.diag(difference).max() < 3
    assert (difference.argmin(axis=1) == [0, 1]).all()
