"""`promptcam explain --traits`."""

import csv
import dataclasses
import json
import shutil
from html import escape
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from promptcam_hf import PromptCamForImageClassification, PromptCamPredictor, TraitNames
from promptcam_hf.checkpoint import save_checkpoint
from promptcam_hf.explanation.predictor import explanations_of
from promptcam_hf.guide.names import write_names
from promptcam_hf.guide.vocabulary import Vocabulary

from ..command_line import promptcam

RED = "red <b>crown</b>"


@pytest.fixture
def named(traits, tmp_path) -> tuple[Path, dict[tuple[str, int], str]]:
    """A copy of the vocabulary in which one trait has a name; and what heads of photographs show, except those at the
    limit of a trait, where rounding decides."""
    folder = tmp_path / "traits"
    shutil.copytree(traits[0], folder)
    rows = [row for row in pq.read_table(folder / "occurrences.parquet").to_pylist() if row["split"] == "train"]
    vocabulary = Vocabulary.load(folder)
    red = rows[0]["trait"]
    write_names(folder, {red: RED}, len(vocabulary))
    shown = {}
    for row in rows:
        margin = vocabulary.reach[row["trait"] - 1] - row["distance"]
        name = RED if row["trait"] == red else f"trait {row['trait']}"
        if abs(margin) > 1e-3:
            shown[row["photograph"], row["head"]] = name if margin > 0 else ""
    return folder, shown


def explain(*arguments):
    return promptcam("explain", *arguments)


def test_heads_are_called_by_what_they_show(named, birds_model, bird_folder, tmp_path):
    folder, shown = named
    paths = sorted({path for path, _ in shown})[::3]
    shown = {place: name for place, name in shown.items() if place[0] in paths}
    output = tmp_path / "explained"
    options = ("--top-traits", 3, "--save", "regions", "--batch-size", 5)
    (tmp_path / "broken.jpg").write_text("no picture")  # in a batch with others
    result = explain(
        *("--model", birds_model, "--output-dir", output, "--html", tmp_path / "page.html", "--traits", folder),
        *(*options, paths[0], tmp_path / "broken.jpg", *paths[1:]),
    )
    assert "1 of" in result.output, result.output
    found, regions = {}, []
    for line in map(json.loads, (output / "explanations.jsonl").read_text().splitlines()):
        for trait in [trait for item in line.get("explanations", ()) for trait in item["traits"]]:
            found[line["photograph"], trait["head"]] = trait.get("trait", "")
            regions.append(trait.get("trait", ""))
    # As in the vocabulary, but where rounding of its features puts a place into the next cluster
    assert sum(found[place] == name for place, name in shown.items()) >= 0.95 * len(shown)
    assert {RED, ""} < set(found.values())
    assert any(name.startswith("trait ") for name in found.values())
    with open(output / "regions.csv", newline="") as file:
        assert [row["trait"] for row in csv.DictReader(file)] == regions
    page = (tmp_path / "page.html").read_text()
    assert page.count(f"<bdi>{escape(RED)} · head ") == sum(name == RED for name in found.values())
    assert RED not in page


def test_a_place_unlike_its_trait_has_no_name(named, birds_model, photograph):
    folder, _ = named
    vocabulary = Vocabulary.load(folder)
    assert ((vocabulary.reach >= 0) & (vocabulary.reach <= 2)).all()
    dataclasses.replace(vocabulary, reach=vocabulary.reach - 2).save(folder)
    columns = PromptCamPredictor(birds_model, maps=2, explained=3, traits=TraitNames(folder))([photograph])
    assert columns["traits"] == [[[None, None]] * 3]
    for explanation in explanations_of(columns, 0).to_json()["explanations"]:
        assert all("trait" not in trait for trait in explanation["traits"])


def test_the_traits_of_another_model_are_refused_before_anything_is_removed(named, birds_model, photograph, tmp_path):
    model = PromptCamForImageClassification.from_pretrained(birds_model)
    with torch.no_grad():
        model.class_prompts[0, 0] += 0.01
    processor = PromptCamPredictor(birds_model, num_workers=1).image_processor
    save_checkpoint(model, processor, tmp_path / "other")
    output = tmp_path / "explained"
    options = ("--output-dir", output, "--overwrite", photograph)
    assert explain("--model", tmp_path / "other", *options).exit_code == 0
    before = sorted(output.iterdir())
    result = explain("--model", tmp_path / "other", "--traits", named[0], *options)
    assert result.exit_code == 1
    assert result.output.endswith("has the traits of another model; make this one's with `promptcam traits`.\n")
    assert sorted(output.iterdir()) == before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocabulary.npz", None, "has no vocabulary.npz; expected a folder from `promptcam traits`."),
        ("vocabulary.npz", "PK", "is damaged or of another version; remove it and run `promptcam traits` again."),
        ("features/settings.json", "{", "is missing or damaged; expected a folder as `promptcam traits` has written"),
        ("names.csv", "trait,name\n999,crown", "there is no trait '999'; expected 1 to"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(named, photograph, tmp_path, file, content, message):
    (named[0] / file).unlink()
    if content is not None:
        (named[0] / file).write_text(content)
    result = explain("--model", "no_model", "--traits", named[0], "--output-dir", tmp_path / "new", photograph)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    assert not (tmp_path / "new").exists()
