"""The model card, as people read it, as the Hub reads it, and as users edit it."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.share.model_card import END, START, write_model_card

from ..tiny_models import tiny_model

RESULTS = {
    "model": "runs/birds",
    "data": "birds-20",
    "split": "test",
    "num_images": 12,
    "num_classes": 6,
    "loss": 1.25,
    "accuracy": 0.75,
    "top5_accuracy": 0.9375,
    "macro_accuracy": 0.625,
    "calibration_error": 1e-05,
    "hub_id": None,
}
RECIPE = """\
data: /home/someone/birds-20
backbone: facebook/dino-vitb16
output_dir: runs/birds
epochs: 100
learning_rate: 0.005
warmup_epochs: null
label_map: /home/someone/families.csv
"""


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint as `save_checkpoint` alone writes it, to write to."""
    return Path(shutil.copytree(checkpoint, tmp_path / "orioles"))


@pytest.fixture
def trained(folder: Path) -> Path:
    """The same with all that training and evaluation leave."""
    configure(folder, backbone="facebook/dino-vitb16", backbone_revision="0123456789" * 4)
    (folder / "recipe.yaml").write_text(RECIPE)
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    (evaluation / "traits.png").write_bytes(b"picture")
    (evaluation / "results.json").write_text(json.dumps(RESULTS))
    (evaluation / "confusions.png").write_bytes(b"picture")
    rows = ["Hooded_Oriole,3,1,0.3333,Scott_Oriole", "Scott_Oriole,3,3,1.0,"]
    (evaluation / "per_class.csv").write_text("\n".join(["class,images,correct,accuracy,most_confused_with", *rows]))
    return folder


def configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


class Cells(HTMLParser):
    """The rows of all tables, and the images, of a card as it is rendered."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: list[str | None] = []
        self.is_cell = False
        body = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.is_cell = True
        if tag == "img":
            self.images.append(dict(attributes)["src"])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.is_cell = False

    def handle_data(self, data: str) -> None:
        if self.is_cell:
            self.rows[-1][-1] += data


def test_card_of_a_trained_model_tells_what_the_folder_knows(trained):
    write_model_card(trained, "birders/orioles", license="cc-by-4.0")
    rendered = Cells(card(trained))
    rows = {row[0]: row[1:] for row in rendered.rows}
    assert rows["Accuracy"][0] == "75.0%"
    assert rows["Top-5 accuracy"][0] == "93.8%"
    assert rows["Macro accuracy"][0] == "62.5%"
    assert rows["Expected calibration error"][0] == "0.0%"
    assert rows["Hooded_Oriole"] == ["3", "1", "33.3%", "Scott_Oriole"]
    assert rows["Scott_Oriole"] == ["3", "3", "100.0%", ""]
    assert {name: rows[name] for name in ("epochs", "learning rate")} == {"epochs": ["100"], "learning rate": ["0.005"]}
    assert "warmup epochs" not in rows
    assert rendered.images == ["evaluation/traits.png", "evaluation/confusions.png"]
    text = card(trained)
    assert 'pipeline("prompt-cam", model="birders/orioles", trust_remote_code=True)' in text
    assert "\n# orioles\n" in text
    assert "\ncc-by-4.0." in text
    assert "the whole model" in rows["Weights in this checkpoint"][0]
    for name in ("Baltimore_Oriole", "Indigo_Bunting"):
        assert name in text


def test_card_tells_what_calibration_changed(trained):
    results = RESULTS | {"calibration_error": 0.03, "raw_calibration_error": 0.15, "accuracy_interval": [0.5, 0.75]}
    (trained / "evaluation" / "results.json").write_text(json.dumps(results))
    write_model_card(trained)
    assert "The same before calibration" not in card(trained)
    configure(trained, temperature=0.5)
    write_model_card(trained)
    rows = {row[0]: row[1:] for row in Cells(card(trained)).rows}
    assert rows["Expected calibration error"][0] == "3.0%"
    assert rows["Accuracy"][0].endswith("% (95 % interval: 50.0% to 75.0%)")
    assert rows["The same before calibration"][0] == "15.0%"
    text = " ".join(card(trained).split())
    assert "not the chance of being right: on the photographs above the two differ by 3.0% on average" in text
    assert "a temperature of 0.50, fitted on photographs that had not been used for training until then; " in text
    assert "; without it, the two would differ by 15.0%." in text
    assert rows["Top-5 accuracy"][0] == "93.8%"
    (trained / "evaluation" / "results.json").write_text(json.dumps(results | {"num_classes": 5, "num_images": 1}))
    write_model_card(trained)
    assert "top5" not in card(trained)
    assert "Top-5" not in card(trained)
    assert "Measured on 1 photograph of 5 classes" in card(trained)


def test_folders_of_the_author_are_not_published(trained):
    write_model_card(trained)
    assert "someone" not in card(trained)
    assert "Trained on birds-20, with" in card(trained)
    assert ["label map", "families.csv"] in Cells(card(trained)).rows


def test_number_of_learned_parameters(folder):
    write_model_card(folder)
    model = PromptCamForImageClassification.from_pretrained(folder)
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert ["Learned parameters", f"{learned:,}"] in Cells(card(folder)).rows


@pytest.mark.parametrize(
    ("layer", "num_prompted_layers", "words"),
    [
        (
            3,
            3,
            "Prompt-CAM-Deep: one for each class, in layer 3, the last; 4 that all classes share in each of the layers",
        ),
        (3, 2, "one for each class, in layer 3, the last; 4 that all classes share in layer 2"),
        (2, 3, "one for each class, from layer 2 of 3 on; 4 that all classes share in layer 1"),
        (1, 3, "Prompt-CAM-Shallow: one for each class, from layer 1 of 3 on"),
    ],
)
def test_variants_are_named(layer, num_prompted_layers, words, tmp_path):
    model = tiny_model("dinov2", layer, num_prompted_layers=num_prompted_layers)
    save_checkpoint(model, new_image_processor(32), tmp_path)
    write_model_card(tmp_path)
    rows = {row[0]: row[1] for row in Cells(card(tmp_path)).rows}
    assert rows["Prompts"].startswith(words)
    assert rows["Backbone (frozen)"].startswith("DINOv2, 3 layers, 4 heads in each")


def test_checkpoint_alone_makes_a_card_without_gaps(folder):
    write_model_card(folder)
    text = card(folder)
    assert 'pipeline("prompt-cam", model="path/to/orioles")' in text
    assert "Not evaluated yet" in text
    assert "; how much the two differ was not measured" in text
    assert "Not stated by the author." in text
    assert Cells(text).images == []
    assert not re.search(r"None|Undefined|\{\{|\n\n\n", text)
    assert {"license", "base_model", "datasets", "model-index"}.isdisjoint(metadata_load(folder / "README.md"))


def test_hub_reads_the_metadata(trained):
    results = RESULTS | {"data": "birders/photos", "hub_id": "birders/photos"}
    (trained / "evaluation" / "results.json").write_text(json.dumps(results))
    (trained / "recipe.yaml").write_text("data: birders/photos\n")
    write_model_card(trained, "birders/orioles", license="mit")
    data = metadata_load(trained / "README.md")
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert data["license"] == "mit"
    assert data["base_model"] == "facebook/dino-vitb16"
    assert data["datasets"] == ["birders/photos"]
    assert "prompt-cam" in data["tags"]
    name, found = model_index_to_eval_results(data["model-index"])
    assert name == "orioles"
    assert {result.metric_type: result.metric_value for result in found} == {
        key: RESULTS[key] for key in ("accuracy", "top5_accuracy", "macro_accuracy", "calibration_error")
    }
    assert {(r.task_type, r.dataset_type, r.dataset_name, r.dataset_split) for r in found} == {
        ("image-classification", "birders/photos", "birders/photos", "test")
    }


@pytest.mark.parametrize(
    ("backbone", "revision", "is_base_model"),
    [
        ("facebook/dino-vitb16", "a" * 40, True),
        ("facebook/dino-vitb16", None, True),
        ("runs/backbone", None, False),  # there is such a folder
        ("/models/vit", None, False),
        ("./vit", None, False),
        ("models/deep/vit", None, False),
        (None, None, False),
    ],
)
def test_base_model_is_one_of_the_hub(backbone, revision, is_base_model, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "backbone").mkdir(parents=True)
    configure(folder, backbone=backbone, backbone_revision=revision)
    write_model_card(folder)
    assert metadata_load(folder / "README.md").get("base_model") == (backbone if is_base_model else None)
    assert ("huggingface.co/facebook" in card(folder)) == is_base_model
    assert "/models/" not in card(folder)


def test_prompts_only_form_is_told(trained):
    configure(trained, prompts_only=True)
    write_model_card(trained)
    assert "the backbone is downloaded from its own repository" in card(trained)


def test_long_lists_are_folded(tmp_path):
    names = [f"Species_{index}" for index in range(30)]
    save_checkpoint(tiny_model("vit", 3, id2label=dict(enumerate(names))), new_image_processor(32), tmp_path)
    (tmp_path / "evaluation").mkdir()
    rows = ["class,images,correct,accuracy,most_confused_with", *(f"{name},1,1,1.0," for name in names)]
    (tmp_path / "evaluation" / "per_class.csv").write_text("\n".join(rows))
    write_model_card(tmp_path)
    assert card(tmp_path).count("<details>") == card(tmp_path).count("</details>") == 2
    assert ["Species_29", "1", "1", "100.0%", ""] in Cells(card(tmp_path)).rows


def test_strange_names_are_shown_as_they_are(tmp_path):
    names = ["a|b", "<b>bold</b>", "_x_", "*star*", "`tick`", "Grünfink", "&amp;", "[link](x)", 'say "hi"\\']
    save_checkpoint(tiny_model("vit", 3, id2label=dict(enumerate(names))), new_image_processor(32), tmp_path)
    (tmp_path / "evaluation").mkdir()
    with open(tmp_path / "evaluation" / "per_class.csv", "w", encoding="utf-8") as file:
        file.write("class,images,correct,accuracy,most_confused_with\n")
        file.writelines('"' + name.replace('"', '""') + '",1,0,0.0,\n' for name in names)
    write_model_card(tmp_path)
    rows = Cells(card(tmp_path)).rows
    assert [row[0] for row in rows if row[1:] == ["1", "0", "0.0%", ""]] == names
    assert 'classes=["say \\"hi\\"\\\\"]' in card(tmp_path)


def test_text_of_the_user_stays(folder, trained):
    write_model_card(folder, license="mit")
    edited = card(folder).replace(START, f"Photographs by Ana.\n\n{START}") + "\n## Thanks\n\nTo all.\n"
    edited = edited.replace("license: mit", "license: cc0-1.0\nlanguage: en").replace(
        "- prompt-cam", "- birds\n- prompt-cam"
    )
    (folder / "README.md").write_text(edited)
    (trained / "evaluation" / "results.json").write_text(json.dumps(RESULTS | {"accuracy": 0.875}))
    write_model_card(folder, "birders/orioles")
    text = card(folder)
    assert f"---\nPhotographs by Ana.\n\n{START}" in text
    assert text.endswith(f"{END}\n\n## Thanks\n\nTo all.\n")
    assert "87.5%" in text
    assert "75.0%" not in text
    data = metadata_load(folder / "README.md")
    assert (data["license"], data["language"], data["tags"][0]) == ("cc0-1.0", "en", "birds")
    again = text
    write_model_card(folder, "birders/orioles")
    assert card(folder) == again


def test_card_without_our_marks_keeps_its_text(trained):
    (trained / "README.md").write_bytes(b"# Mine\r\n\r\n75 % of all birds.\r\n")
    write_model_card(trained)
    assert (trained / "README.md").read_bytes().endswith(b"---\n# Mine\r\n\r\n75 % of all birds.\r\n")
    assert metadata_load(trained / "README.md")["library_name"] == "transformers"
    (trained / "README.md").write_text(f"{END} the wrong way round {START}")
    write_model_card(trained)
    assert card(trained).endswith(f"{END} the wrong way round {START}")


def test_metadata_alone_is_no_text(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    write_model_card(folder)
    assert "# orioles" in card(folder)
    assert metadata_load(folder / "README.md")["license"] == "mit"


def test_results_of_others_stay_and_stale_ones_go(trained):
    write_model_card(trained)
    theirs = """\
    - type: f1
      value: 0.25
  - task:
      type: image-classification
    dataset:
      name: iNaturalist
      type: inat
    metrics:
    - type: accuracy
      value: 0.5
---
"""
    (trained / "README.md").write_text(card(trained).replace("---\n" + START, theirs + START))

    def results() -> list[tuple[str, str, float]]:
        _, found = model_index_to_eval_results(metadata_load(trained / "README.md")["model-index"])
        return [(result.dataset_name, result.metric_type, result.metric_value) for result in found]

    (trained / "evaluation" / "results.json").write_text(json.dumps(RESULTS | {"accuracy": 0.875}))
    for _ in range(2):
        write_model_card(trained)
        assert len(results()) == 6
        assert ("birds-20", "accuracy", 0.875) in results()
    shutil.rmtree(trained / "evaluation")
    write_model_card(trained)
    assert results() == [("birds-20", "f1", 0.25), ("iNaturalist", "accuracy", 0.5)]


def test_card_is_written_whole_or_not_at_all(folder, monkeypatch):
    write_model_card(folder)
    before = (folder / "README.md").read_bytes()
    files = sorted(os.listdir(folder))

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_model_card(folder, "birders/other")
    assert (folder / "README.md").read_bytes() == before
    assert sorted(os.listdir(folder)) == files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", b"---\nlicense: [mit\n---\n", r"README.md: the metadata between the lines '---' cannot be read"),
        ("README.md", b"\xff\xfe", r"README.md is not UTF-8 text \(byte 0\)"),
        ("recipe.yaml", b"epochs: [1", r"recipe.yaml cannot be read"),
        ("evaluation/results.json", b'{"accuracy": ', r"results.json cannot be read"),
        ("evaluation/results.json", b"[]", r"results.json holds a list; expected names and values"),
        (
            "evaluation/per_class.csv",
            b"class,images\na,1\n",
            r"per_class.csv has no column accuracy; expected the table",
        ),
        ("config.json", b'{"model_type": "vit"}', r"is a 'vit' checkpoint, not a 'promptcam' one"),
        ("config.json", b'{"model_type": ', r"config.json cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_named(name, content, message, folder):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        write_model_card(folder)
    assert "\n" not in str(raised.value)
    if name == "README.md":
        assert (folder / name).read_bytes() == content


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json; expected a checkpoint"):
        write_model_card(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        write_model_card(tmp_path / "nowhere")


def test_folder_named_like_the_end_marker_does_not_end_the_generated_part(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / END))
    cards = []
    for _ in range(3):
        write_model_card(folder)
        cards.append((folder / "README.md").read_text())
    assert cards[0].partition(START)[2].count(END) == 1
    assert cards == cards[:1] * 3
