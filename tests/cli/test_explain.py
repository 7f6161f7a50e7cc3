"""`promptcam explain` and what all commands share, in this process."""

import json
import os

import pytest

from promptcam_hf import __version__

from ..command_line import promptcam


def test_version():
    result = promptcam("--version")
    assert (result.exit_code, result.stdout) == (0, f"promptcam-hf {__version__}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], "error: device=cuda:99: this machine has "),
        (["--device", "99"], "error: device=99: this machine has "),
        (["--device", "gpu"], "error: device=gpu: this machine has "),
        (["--model", "/nope"], "error: /nope: no such folder, and no Hub id such as org/name"),
        (
            ["--output-dir", "memory://out"],
            "error: memory:/out/explanations.jsonl: expected a path on this machine; only",
        ),
        (
            ["--html", "memory://bucket/page.html"],
            "error: memory:/bucket/page.html: expected a path on this machine; only",
        ),
        (["--output-dir", "memory://out", "--format", "parquet"], "error: memory://out: memory does not outlast"),
        (["--class", "Scot_Oriole"], "error: The model knows no class 'Scot_Oriole'; expected"),
        (["--class", "Scott_Oriole", "--top-k", 2], "error: top_k=2 and classes=['Scott_Oriole'] both choose"),
    ],
)
def test_options_that_do_not_fit_are_told_in_a_line(checkpoint, photograph, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = promptcam("explain", photograph, "--model", checkpoint, "--output-dir", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_quoted_pattern_and_a_folder_whose_name_cannot_be_printed(checkpoint, bird_folder, tmp_path):
    pattern, out = bird_folder / "test" / "*" / "*.jpg", tmp_path / os.fsdecode(b"not-utf8-\xff")
    result = promptcam("explain", pattern, "--model", checkpoint, "--output-dir", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f" and explanations.jsonl in {tmp_path}/not-utf8-\\udcff\n")
    lines = (out / "explanations.jsonl").read_text().splitlines()
    expected = [str(path) for path in sorted(bird_folder.glob("test/*/*.jpg"))]
    rows = [json.loads(line) for line in lines]
    assert [row["photograph"] for row in rows] == expected
    count = sum(row["explanations"][0]["num_sufficient"] == 0 for row in rows)
    said = f"On {count} of {len(rows)} photographs the class wins even with all heads blurred"
    assert (said in result.stderr) == (count > 0), result.stderr
