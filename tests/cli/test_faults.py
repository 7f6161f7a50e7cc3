"""What goes wrong, as a user meets it on the command line: one clear line, and nothing lost.

Every command runs in a process of its own. They are forked off a server that has imported everything, for an import
takes longer than a training of this size.
"""

import ctypes
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from promptcam_hf import demo
from promptcam_hf.cli import app
from promptcam_hf.training import trainer as training
from promptcam_hf.training.state import STATES, read_log

from ..data.cases import table, write
from ..tiny_models import tiny_model
from ..training.runs import same

resource = pytest.importorskip("resource")


class Done(NamedTuple):
    """How a command ended."""

    status: int
    output: str

    @property
    def error(self) -> str:
        """The one line that it failed with."""
        assert self.status == 1, self.output[-3000:]
        assert "Traceback" not in self.output
        *_, line = self.output.strip().splitlines()
        assert line.startswith("error: "), self.output[-3000:]
        return line.removeprefix("error: ")


def _command(arguments: list[str], output: Path, prepare: Callable[[], None] | None) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a process that was not forked off a server
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    app(arguments)


@pytest.fixture(scope="module")
def promptcam(tmp_path_factory) -> Callable[..., Done]:
    """Run `promptcam`, after a function of this module that prepares the process, if one is given."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["promptcam_hf.evaluation.evaluate", "promptcam_hf.share.hub", __name__])
    with pytest.MonkeyPatch.context() as patch:  # read when the server, which the first process starts, imports
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("HF_TOKEN", raising=False)
        process = server.Process(target=os.getpid)
        process.start()
        process.join()
    output = tmp_path_factory.mktemp("output") / "output.txt"

    def promptcam(*arguments: Any, prepare: Callable[[], None] | None = None) -> Done:
        process = server.Process(target=_command, args=([str(argument) for argument in arguments], output, prepare))
        process.start()
        process.join(timeout=240)
        assert process.exitcode is not None, "it hangs"
        return Done(process.exitcode, output.read_text().replace("\r", "\n"))

    return promptcam


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_model("vit").backbone.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(bird_folder, tmp_path) -> Path:
    return Path(shutil.copytree(bird_folder, tmp_path / "photos"))


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


def training_of(data: Path, backbone: Path, output_dir: Path) -> list[Any]:
    """3 epochs of 6 steps, a state after every third."""
    options = {"--epochs": 3, "--batch-size": 4, "--learning-rate": 0.1, "--save-every": 3, "--num-workers": 0}
    options |= {"--validation-share": 0}  # train on all
    given = {"--data": data, "--backbone": backbone, "--output-dir": output_dir} | options
    return ["train", *(part for option in given.items() for part in option)]


@pytest.fixture
def arguments(photos, backbone, run) -> list[Any]:
    return training_of(photos, backbone, run)


@pytest.fixture(scope="module")
def undisturbed(promptcam, bird_folder, backbone, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights that a run ends with if nothing happens to it."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = promptcam(*training_of(bird_folder, backbone, run))
    assert done.status == 0, done.output[-3000:]
    return load_file(run / "model.safetensors")


def states(run: Path) -> list[str]:
    return sorted(path.name for path in (run / STATES).iterdir())


# --- What cannot be trained, and is told before anything is written


def without(*patterns: str) -> Callable[[Path], None]:
    def remove(photos: Path) -> None:
        for pattern in patterns:
            for path in photos.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def only_one_class(photos: Path) -> None:
    for split in ("train", "test"):
        for folder in sorted((photos / split).iterdir())[1:]:
            shutil.rmtree(folder)


def no_training_images_of_the_first(photos: Path) -> None:
    shutil.rmtree(sorted((photos / "train").iterdir())[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("train", "test", "test_parts"),
            r"photos has no folder 'train'; expected train/<class>/\*\.jpg and test/",
        ),
        (without("train"), r"photos has no images in train/; found test\.$"),
        (without("train/*/*", "test/*/*"), r"photos holds no images; expected train/<class>/"),
        (
            without("test", "train/*/*[1-9].jpg"),
            "photos has no images in test/ or validation/, and none of train can be held out",
        ),
        (only_one_class, r"photos/train holds fewer than two folders; expected one for each class\.$"),
        (
            no_training_images_of_the_first,
            r"photos: no training images of Amber_crowned_Finch; did you mean 'Scarlet_crowned_Finch'\?$",
        ),
        (
            shutil.rmtree,
            r"photos is not a folder; expected a folder with train/<class>/.* or a Hub id such as org/name\.$",
        ),
    ],
)
def test_photographs_that_cannot_be_trained_on(arguments, photos, run, promptcam, change, message):
    change(photos)
    assert re.search(message, promptcam(*arguments).error)
    assert not run.exists()


def test_class_that_is_not_measured_is_a_warning(arguments, photos, run, promptcam):
    name = sorted((photos / "test").iterdir())[0].name
    shutil.rmtree(photos / "test" / name)
    done = promptcam(*arguments)
    assert done.status == 0, done.output[-3000:]
    assert f"photos: no test images of {name}, so their accuracy cannot be measured." in done.output


def test_classes_may_be_strings_in_a_table(arguments, run, promptcam, tmp_path):
    labels = ["wren", "auk", "wren", "auk"]
    for split in ("train", "test"):
        write(tmp_path / "tables" / f"{split}.parquet", table(labels))
    done = promptcam(*arguments, "--data", tmp_path / "tables", "--batch-size", 2)
    assert done.status == 0, done.output[-3000:]
    assert json.loads((run / "config.json").read_text())["id2label"] == {"0": "auk", "1": "wren"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--backbone", "nowhere/at-all"], r"backbone=nowhere/at-all: cannot be opened \(.*connect"),
        (["--backbone", "/nowhere/at-all"], r"backbone=/nowhere/at-all: no such folder, and no Hub id such as"),
        (
            ["--push-to-hub", "org/birds"],
            r"no Hub token, which pushing to org/birds needs; log in with",
        ),
        (["--push-to-hub", "a/b/c"], r"repo_id='a/b/c': expected 'name' or 'namespace/name'"),
        (["--optimizer", "adamw", "--epochs", "0"], r"epochs=0 should be greater than or equal to 1\.$"),
        (["--num-prompted-layers", "9"], r"num_prompted_layers=9: expected 1 to 3, as num_hidden_layers=3\.$"),
        (["--cache-features", "2"], r"cache_features: every layer has prompts.* expected num_prompted_layers less"),
        (["--device", "gpu"], r"device=gpu: this machine has .*; expected cpu"),
        (["--report-to", "trackio"], r"report_to=trackio: the package trackio is not installed"),
        (["--label-map", "/nowhere.csv"], r"^/nowhere\.csv: cannot be read \(No such file"),
    ],
)
def test_options_that_do_not_fit(arguments, run, promptcam, given, message):
    assert re.search(message, promptcam(*arguments, *given).error)
    assert not run.exists()


def test_recipe_with_a_slip_of_the_pen(arguments, run, promptcam, tmp_path):
    (tmp_path / "recipe.yaml").write_text("lerning_rate: 0.1\n")
    error = promptcam(*arguments, "--recipe", tmp_path / "recipe.yaml").error
    assert error.endswith("recipe.yaml: unknown option 'lerning_rate'; did you mean 'learning_rate'?")
    assert not run.exists()


# --- Folders that are not for this run


def _without_privileges() -> None:
    """Let even the superuser's process respect permissions."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, none) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="how to give up the superuser's privileges differs elsewhere")
def test_folder_that_may_not_be_written_to(arguments, run, promptcam):
    run.mkdir()
    for folder in (run / "new", run):
        run.chmod(0o555)
        error = promptcam(*arguments, "--output-dir", folder, prepare=_without_privileges).error
        assert "ermission denied" in error
        assert str(folder) in error


def test_folder_of_another_run_is_left_alone(arguments, run, promptcam):
    assert promptcam(*arguments, "--epochs", 1).status == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    error = promptcam(*arguments).error
    assert error.endswith(f"run exists and is not empty; expected a new or empty folder, or --resume {run}.")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


# --- Resuming


def test_finished_run_that_is_resumed_stays_as_it_is(arguments, run, promptcam, undisturbed):
    assert promptcam(*arguments).status == 0
    log = read_log(run)
    (run / "model.safetensors").unlink()
    done = promptcam("train", "--resume", run, "--device", "cpu")
    assert done.status == 0, done.output[-3000:]
    assert same(load_file(run / "model.safetensors"), undisturbed)
    assert read_log(run) == log


def test_resume_takes_no_other_options(run, promptcam):
    error = promptcam("train", "--resume", run, "--epochs", 3).error
    assert error.endswith("run/recipe.yaml; expected no other option with it but --device.")


# --- A full disk, and one that forgets


def _disk_is_full(name: str, call: int) -> None:
    """From the n-th call of a function of training on, no file can have more than some bytes."""
    function, calls = getattr(training, name), 0

    def full(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (7000, resource.RLIM_INFINITY))
        return function(*arguments, **keywords)

    setattr(training, name, full)


@pytest.mark.parametrize(
    ("name", "call", "what", "left"),
    [
        ("save_state", 1, r"run/states/step-00000003\.pt: cannot be written \(File too large\)\.", []),
        ("save_state", 4, r"run/states/step-00000012\.pt: cannot be written \(File too large\)\.", [6, 9]),
        ("save_checkpoint", 1, r"run: cannot be written \(.*File too large.*\)\.", [3]),
        ("save_checkpoint", 3, r"run(/best)?: cannot be written \(.*File too large.*\)\.", [6, 9]),
        ("write_report", 1, r"run/evaluation: cannot be written \(File too large\)\.", [15, 18]),
    ],
)
def test_full_disk_is_told_and_the_run_goes_on_to_the_same_end(
    arguments, run, promptcam, undisturbed, name, call, what, left
):
    error = promptcam(*arguments, prepare=partial(_disk_is_full, name, call)).error
    assert re.search(what, error)
    assert error.endswith(f"To resume: promptcam train --resume {run}")
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
    assert states(run) == [f"step-{step:08}.pt" for step in left]
    for state in (run / STATES).glob("*.pt"):
        torch.load(state, weights_only=True)
    for weights in (*run.glob("*.safetensors"), *run.glob("best/*.safetensors")):
        assert "class_prompts" in load_file(weights)

    done = promptcam("train", "--resume", run)
    assert done.status == 0, done.output[-3000:]
    assert same(load_file(run / "model.safetensors"), undisturbed)
    assert [row["step"] for row in read_log(run) if "accuracy" not in row] == list(range(1, 19))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit of a weight is another."""
    place = content.index(b"data/0") + len(content) // 3
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [half, flipped, lambda content: b"", lambda content: bytes(len(content))])
def test_damaged_state_is_passed_over_for_the_one_before(arguments, run, promptcam, undisturbed, damage):
    assert promptcam(*arguments).status == 0
    newest = run / STATES / "step-00000018.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    done = promptcam("train", "--resume", run)
    assert done.status == 0, done.output[-3000:]
    assert f"{newest} is damaged; trying an earlier state" in done.output
    assert "resumed after step 15" in done.output
    assert same(load_file(run / "model.safetensors"), undisturbed)
    assert states(run) == ["step-00000015.pt", "step-00000018.pt"]
    torch.load(newest, weights_only=True)


def test_run_whose_states_are_all_damaged_does_not_start_anew_unasked(arguments, run, promptcam):
    assert promptcam(*arguments).status == 0
    for state in (run / STATES).iterdir():
        state.write_bytes(b"")
    before = (run / "training_log.jsonl").read_bytes()
    error = promptcam("train", "--resume", run).error
    assert error.endswith("run/states: no state can be read; remove this folder, and --resume starts from step 1.")
    assert (run / "training_log.jsonl").read_bytes() == before


def test_damaged_log_is_told(arguments, run, promptcam):
    assert promptcam(*arguments, "--epochs", 1).status == 0
    log = run / "training_log.jsonl"
    first, second, rest = log.read_text().split("\n", 2)
    log.write_text("\n".join([first, "\0" * len(second), rest]))
    error = promptcam("train", "--resume", run).error
    assert error.endswith("training_log.jsonl, line 2: not valid JSON; remove the line.")


# --- Photographs


def test_photograph_that_vanishes_is_named(arguments, run, promptcam):
    done = promptcam(*arguments, "--num-workers", 1, prepare=_lose_a_photograph)
    assert re.fullmatch(r".*photos/train/.*\.jpg: cannot be read as an image \(no such file\)\.", done.error)
    assert read_log(run)


def _lose_a_photograph() -> None:
    example, calls = training.Photographs.example, 0

    def lost(self: Any, index: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 50:
            os.unlink(self.split[index]["image"]["path"])
        return example(self, index)

    training.Photographs.example = lost  # type: ignore[method-assign]


# --- Explaining


@pytest.fixture
def explaining(photos, checkpoint, tmp_path) -> list[Any]:
    return ["explain", photos, "--model", checkpoint, "--output-dir", tmp_path / "out"]


@pytest.mark.skipif(sys.platform != "linux", reason="how to give up the superuser's privileges differs elsewhere")
def test_explain_into_a_folder_that_may_not_be_written_to(explaining, promptcam, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    for folder in (tmp_path / "out", tmp_path / "out" / "new"):
        error = promptcam(*explaining, "--output-dir", folder, prepare=_without_privileges).error
        assert error == f"{folder}: cannot be written (Permission denied)."


@pytest.mark.skipif(sys.platform != "linux", reason="how to give up the superuser's privileges differs elsewhere")
def test_evaluate_into_a_folder_that_may_not_be_written_to(photos, promptcam, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    folder = tmp_path / "out" / "new"
    command = ("evaluate", "--model", demo.MODEL, "--data", photos, "--output-dir", folder)
    assert promptcam(*command, prepare=_without_privileges).error == f"{folder}: cannot be written (Permission denied)."


def test_explain_onto_a_full_disk(explaining, promptcam, tmp_path):
    error = promptcam(*explaining, prepare=_no_large_file).error
    assert re.fullmatch(r".*/out/.*\.png: cannot be written \(File too large\)\.", error)
    assert not list((tmp_path / "out").iterdir())


def _no_large_file() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (7000, resource.RLIM_INFINITY))


def test_impatient_interrupts_are_one(explaining, promptcam, tmp_path):
    done = promptcam(*explaining, "--batch-size", 1, prepare=partial(_interrupt_five_times, tmp_path / "out"))
    assert done.status == 130
    assert "Traceback" not in done.output
    assert "KeyboardInterrupt" not in done.output
    assert "Interrupted. The sheets that are done stay; to start again, add --overwrite." in done.output
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png"}


def _interrupt_five_times(output_dir: Path) -> None:
    """As soon as there is a contact sheet."""

    def interrupt() -> None:
        while not any(output_dir.glob("*.png")):
            time.sleep(0.005)
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.005)

    threading.Thread(target=interrupt, daemon=True).start()
