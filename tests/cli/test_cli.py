"""The command line, as a user calls it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from promptcam_hf.training.options import TrainingOptions

from ..command_line import promptcam
from ..tiny_models import tiny_model

ORIGINAL = Path(__file__).parents[1] / "fixtures" / "dino" / "model.pt"


def in_a_process(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "promptcam_hf", *map(str, arguments)]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "explanations.jsonl").read_text().splitlines()]


def test_help_teaches():
    assert "train" in in_a_process("--help").stdout
    for command, word in (("train", "facebook/dinov2-small"), ("explain", "--model"), ("convert", "--labels")):
        result = promptcam(command, "--help")
        assert result.exit_code == 0
        assert "Example:" in result.stdout
        assert word in result.stdout


def test_help_of_train_lists_every_option_with_its_default():
    help = "".join(promptcam("train", "--help").stdout.split())  # which is wrapped, at hyphens, too
    for name, option in TrainingOptions.model_fields.items():
        assert f"--{name.replace('_', '-')}" in help
        assert "".join(option.description.split()) in help
    assert "Randomseed.[default:0]" in help
    assert "Compilethemodelwithtorch.compile.[default:no]" in help


def test_train_then_explain(bird_folder, tmp_path):
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    options = ["--epochs", 1, "--batch-size", 8, "--num-workers", 2]
    result = in_a_process(
        "train", "--data", bird_folder, "--backbone", tmp_path / "backbone", "--output-dir", tmp_path / "run", *options
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^warning: \S+ has no preprocessor_config\.json", result.stderr, re.MULTILINE)
    assert "accuracy" in result.stdout.lower()
    photographs = sorted(bird_folder.glob("test/*/*.jpg"))[:3]
    result = in_a_process(
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
    assert result.exit_code == 1
    assert "bad.jpg: not an image that can be read" in result.stderr
    assert "missing.jpg: cannot be read as an image (no such file)" in result.stderr
    assert result.stderr.endswith("error: 2 of 3 photographs could not be read.\n")
    found = rows(tmp_path / "out")
    assert ["error" in row for row in found] == [True, False, True]
    assert (tmp_path / "out" / found[1]["sheet"]).exists()


def test_convert(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg") + "\n")
    arguments = ["convert", ORIGINAL, "--output-dir", tmp_path / "out"]
    result = promptcam(*arguments, "--num-attention-heads", 6, "--labels", labels)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["6"] == "g"
    result = promptcam(*arguments)
    assert (result.exit_code, "is not empty" in result.stderr.splitlines()[-1]) == (1, True)
    result = promptcam(*arguments[:2], "--output-dir", tmp_path / "other")
    assert (result.exit_code, "pass num_attention_heads" in result.stderr.splitlines()[-1]) == (1, True)
