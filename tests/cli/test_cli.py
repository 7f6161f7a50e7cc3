"""The command line, as a user calls it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from promptcam_hf.cli import app
from promptcam_hf.training.options import TrainingOptions

from ..tiny_models import tiny_model

ORIGINAL = Path(__file__).parents[1] / "fixtures" / "dino" / "model.pt"


def promptcam(*arguments, cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "promptcam_hf", *map(str, arguments)]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "explanations.jsonl").read_text().splitlines()]


def last_line(result: subprocess.CompletedProcess) -> str:
    return result.stderr.strip().splitlines()[-1]


def test_help_teaches():
    assert "train" in promptcam("--help").stdout
    for command, word in (("train", "facebook/dinov2-small"), ("explain", "--model"), ("convert", "--labels")):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert "Example:" in result.stdout
        assert word in result.stdout


def test_help_of_train_lists_every_option_with_its_default():
    help = " ".join(CliRunner().invoke(app, ["train", "--help"]).stdout.split()).replace("hf- hub", "hf-hub")  # wrapped
    for name, option in TrainingOptions.model_fields.items():
        assert f" --{name.replace('_', '-')} " in help
        assert " ".join(option.description.split()) in help
    assert "Random seed. [default: 0]" in help
    assert "Compile the model with torch.compile. [default: no]" in help


def test_train_then_explain(bird_folder, tmp_path):
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    options = ["--epochs", 1, "--batch-size", 8, "--num-workers", 2]
    result = promptcam(
        "train", "--data", bird_folder, "--backbone", tmp_path / "backbone", "--output-dir", tmp_path / "run", *options
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^warning: \S+ has no preprocessor_config\.json", result.stderr, re.MULTILINE)
    assert "accuracy" in result.stdout.lower()
    photographs = sorted(bird_folder.glob("test/*/*.jpg"))[:3]
    result = promptcam(
        "explain", *photographs, "--model", tmp_path / "run", "--output-dir", tmp_path / "out", "--top-k", 2
    )
    assert result.returncode == 0, result.stderr
    found = rows(tmp_path / "out")
    assert [row["photograph"] for row in found] == list(map(str, photographs))
    for row in found:
        assert [len(explanation["traits"]) for explanation in row["explanations"]] == [4, 4]
        assert len(row["explanations"][0]["traits"][0]["map"]) == 4
        width, height = Image.open(tmp_path / "out" / row["sheet"]).size
        assert width > 5 * 260
        assert height > 2 * 260


def test_one_bad_photograph_does_not_stop_the_others(checkpoint, photograph, tmp_path):
    (tmp_path / "bad.jpg").write_text("not an image")
    sources = [tmp_path / "bad.jpg", photograph, tmp_path / "missing.jpg"]
    result = promptcam("explain", *sources, "--model", checkpoint, "--output-dir", tmp_path / "out")
    assert result.returncode == 1
    assert "bad.jpg: not an image that can be read" in result.stderr
    assert "missing.jpg: cannot be read as an image (no such file)" in result.stderr
    assert last_line(result) == "error: 2 of 3 photographs could not be read."
    found = rows(tmp_path / "out")
    assert ["error" in row for row in found] == [True, False, True]
    assert (tmp_path / "out" / found[1]["sheet"]).exists()


def test_bad_arguments_are_told_in_a_line(checkpoint, photograph, tmp_path):
    arguments = [photograph, "--model", checkpoint, "--output-dir", tmp_path / "out", "--class", "Scot_Oriole"]
    result = promptcam("explain", *arguments)
    assert result.returncode == 1
    assert last_line(result).startswith("error: classes: the model knows no class 'Scot_Oriole'")
    assert "Traceback" not in result.stderr
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    (tmp_path / "empty").mkdir()
    arguments = ["--backbone", tmp_path / "backbone", "--output-dir", tmp_path / "run"]
    result = promptcam("train", "--data", tmp_path / "empty", *arguments)
    assert (result.returncode, "has no folder 'train'" in result.stderr) == (1, True)
    assert "Traceback" not in result.stderr


def test_convert(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg") + "\n")
    arguments = ["convert", ORIGINAL, "--output-dir", tmp_path / "out"]
    result = promptcam(*arguments, "--num-attention-heads", 6, "--labels", labels)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["6"] == "g"
    result = promptcam(*arguments)
    assert (result.returncode, "is not empty" in result.stderr) == (1, True)
    result = promptcam(*arguments[:2], "--output-dir", tmp_path / "other")
    assert (result.returncode, "pass num_attention_heads" in result.stderr) == (1, True)
    assert "Traceback" not in result.stderr
