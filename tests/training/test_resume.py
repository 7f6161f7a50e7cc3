"""Runs that are killed and go on, in real processes."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from promptcam_hf.training.state import read_log

from ..tiny_models import tiny_model

OPTIONS = {
    "--epochs": 3,
    "--batch-size": 4,
    "--learning-rate": 0.1,
    "--save-every": 1,
    "--save-total-limit": 3,
    "--num-workers": 1,
    "--num-prompted-layers": 2,
    "--validation-share": 0.2,  # one of six
}
STEPS = 15
# Run `promptcam`, and kill it as it writes for the n-th time: while content goes into a file, when all of it has, or
# just before it gets its name
KILLED_WRITING = """
import io, os, signal, sys
moment, countdown = sys.argv.pop(1), int(sys.argv.pop(1))

def die_in_time():
    global countdown
    countdown -= 1
    if countdown == 0:
        os.killpg(0, signal.SIGKILL)  # with the loader's workers: one just forked would never see that it is orphaned

def dying(function):
    def call(*arguments, **keywords):
        die_in_time()
        return function(*arguments, **keywords)
    return call

if moment == "half-written":
    import safetensors.torch
    def half(tensors, filename, **keywords):
        whole = safetensors.torch.save(tensors, keywords.get("metadata"))
        with open(filename, "wb") as file:
            file.write(whole[: len(whole) // 2])
            file.flush()
            die_in_time()
            file.write(whole[len(whole) // 2 :])
    import transformers.modeling_utils
    transformers.modeling_utils.safe_save_file = half
elif moment == "written":
    os.fsync = dying(os.fsync)
else:
    os.replace = dying(os.replace)
from promptcam_hf.cli import app
app()
"""


def start(*arguments, killed: tuple[str, int] | None = None) -> subprocess.Popen:
    call = ["-m", "promptcam_hf"] if killed is None else ["-c", KILLED_WRITING, *map(str, killed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *call, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a background job would ignore
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]


def wait_for_step(process: subprocess.Popen, run: Path, step: int) -> None:
    while not any(row["step"] >= step for row in read_log(run)):
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.002)


def kill_after_step(process: subprocess.Popen, run: Path, step: int) -> None:
    wait_for_step(process, run, step)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def everything_that_is_there_can_be_read(run: Path) -> None:
    for state in (run / "states").glob("*.pt"):
        torch.load(state, weights_only=True)
    for weights in (*run.glob("*.safetensors"), *run.glob("best/*.safetensors")):
        assert "class_prompts" in load_file(weights)


@pytest.fixture
def arguments(bird_folder, tmp_path) -> list:
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    options = [part for option in OPTIONS.items() for part in option]
    return ["train", "--data", bird_folder, "--backbone", tmp_path / "backbone", *options]


def test_killed_and_resumed_run_ends_as_an_undisturbed_one(arguments, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(*arguments, "--output-dir", whole)
    # Of 15 steps, and of the more than a hundred files that are written and renamed meanwhile
    generator = torch.Generator().manual_seed(int(os.environ.get("PROMPTCAM_KILL_SEED", "0")))
    step = 2 + int(torch.randint(STEPS - 6, (), generator=generator))
    renaming, writing = torch.randint(3, 25, (2,), generator=generator).tolist()
    moments = [step, ("written", 2), ("renamed", renaming), ("half-written", 1 + writing % 2)]
    command = [*arguments, "--output-dir", run]
    for moment in moments:
        if isinstance(moment, int):
            kill_after_step(start(*command), run, moment)
        else:
            process = start(*command, killed=moment)
            output, _ = process.communicate(timeout=300)
            assert process.returncode == -signal.SIGKILL, f"{moment} never came\n{output[-2000:]}"
        everything_that_is_there_can_be_read(run)
        command = ["train", "--resume", run]
    finish(start(*command))
    finish(undisturbed)

    for folder in (".", "best"):
        expected, found = (load_file(path / folder / "model.safetensors") for path in (whole, run))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    expected, found = (
        [{name: value for name, value in row.items() if name != "images_per_second"} for row in read_log(path)]
        for path in (whole, run)
    )
    assert found == expected
    assert [row["step"] for row in found if "accuracy" not in row] == list(range(1, STEPS + 1))
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]


def test_run_that_is_interrupted_impatiently_says_how_it_goes_on(arguments, tmp_path):
    run = tmp_path / "run"
    process = start(*arguments, "--epochs", 1000, "--output-dir", run)
    wait_for_step(process, run, 2)
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
        time.sleep(0.01)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.endswith(f"Interrupted. To resume: promptcam train --resume {run}\n")
    assert "Traceback" not in output
    everything_that_is_there_can_be_read(run)
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
