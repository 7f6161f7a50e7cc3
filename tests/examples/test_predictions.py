"""The scripts that measure predictions, on small models."""

import json
import sys

from examples import answers_study
from examples.benchmarks import explaining
from promptcam_hf import demo
from promptcam_hf.data.splits import load_splits


def test_speed_of_predictions(tmp_path, monkeypatch, capsys):
    backbone = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    backbone |= {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
    options = {"photographs": 6, "pixels": 48, "classes": 5, "batch-size": 4, "rounds": 1}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    arguments += ["--backbone-config", json.dumps(backbone), "--output", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", ["explaining.py", *arguments])
    explaining.main()
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert list(results) == ["bare backbone", "predict", "explain"]
    assert all(row["photographs_a_second"] > 0 for row in results.values())
    assert capsys.readouterr().out.count("\n|") == 5 - 1


def test_answers_to_labelled_photographs(bird_folder, tmp_path, monkeypatch, capsys):
    names = load_splits(bird_folder).names
    model_names = answers_study.PromptCamPredictor(demo.MODEL, device="cpu").names
    assert set(names) < set(model_names)
    (tmp_path / "family.csv").write_text("class,group\n" + "".join(f"{x},{x.split('_')[-1]}\n" for x in model_names))
    arguments = ["--model", str(demo.MODEL), "--data", str(bird_folder / "test")]
    monkeypatch.setattr(sys, "argv", ["study", *arguments, "--roll-up", str(tmp_path / "family.csv")])
    answers_study.main()
    printed = capsys.readouterr().out
    assert printed.startswith("12 photographs of 4 classes; accuracy ")
    for line in printed.splitlines():
        if line.startswith("| 0."):
            shares = [float(cell.strip(" %")) for cell in line.split("|")[2:8:2]]
            assert abs(sum(shares) - 100) < 0.2  # class, group and unknown
