"""What a run writes while it trains: states to resume from, the log, and the lock on its folder."""

import io
import json
import logging
import random
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import check_new_folder, only_run_in, write_atomically, writing_to
from .options import FREE_TO_CHANGE, RECIPE, TrainingOptions

logger = logging.getLogger(__name__)

STATES, LOG = "states", "training_log.jsonl"
# After a run was killed, its data-loading workers hold the lock until they notice, which takes up to 5 s
LOCK_TIMEOUT = 10.0


@contextmanager
def locked_folder(folder: Path, is_new: bool) -> Iterator[None]:
    """
    Hold the folder of a run, so that no other process trains in it. Creates the folder if needed, and removes it again
    if the block fails and leaves nothing in it.

    Args:
        folder: Folder of the run.
        is_new: Whether the folder has to be empty.

    Raises:
        ValueError: If another process holds the folder, or `is_new` and there is something in it.
        OSError: If the folder cannot be written to.
    """
    created = not folder.exists()
    try:
        with only_run_in(folder, timeout=LOCK_TIMEOUT):
            if is_new:  # another run may have begun, and even ended, since this was checked first
                check_new_folder(folder)
            yield
    finally:
        if created and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def save_state(state: dict[str, Any], output_dir: Path, keep: int) -> None:
    """
    Write a state atomically as `states/step-<step>.pt`, and remove all but the newest `keep`.

    Raises:
        OSError: If it cannot be written. Earlier states stay.
    """
    content = io.BytesIO()
    torch.save(state, content)
    folder = output_dir / STATES
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"step-{state['step']:08}.pt", content.getvalue())
    states = _states(output_dir)
    damaged = [path for step, path in states if step > state["step"]]  # the run was not resumed from them
    earlier = [path for step, path in states if step <= state["step"]]
    for old in (*damaged, *earlier[:-keep]):
        old.unlink()


def load_newest_state(output_dir: Path) -> dict[str, Any] | None:
    """
    The state with the most steps, with its tensors on the CPU, or None if there is none yet. A damaged state is skipped
    with a warning.

    Raises:
        ValueError: If there are states, but all are damaged.
    """
    paths = [path for _, path in _states(output_dir)]
    for path in reversed(paths):
        state = _read(path)
        if state is not None:
            return state
        logger.warning("%s is damaged; trying an earlier state.", path)
    if paths:
        raise ValueError(
            f"{output_dir / STATES}: no state can be read; remove this folder, and --resume starts from step 1."
        )
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """A state, or None if the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:  # `torch.load` does not verify checksums
            if archive.testzip() is not None:
                return None
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, ValueError, RuntimeError):
        return None


def _states(output_dir: Path) -> list[tuple[int, Path]]:
    """Step and file of each state, in ascending order."""
    found = ((re.fullmatch(r"step-(\d+)\.pt", path.name), path) for path in (output_dir / STATES).glob("*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def random_states() -> dict[str, Any]:
    """The states of this process's random number generators, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    name, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def check_same_run(
    state: dict[str, Any], output_dir: Path, options: TrainingOptions, backbone: str, data: tuple[int, list[str]]
) -> None:
    """
    Check that a run goes on with the options, the backbone and the data that it began with.

    Args:
        state: The state to resume from.
        output_dir: Folder of the run.
        options: The options now.
        backbone: Fingerprint of the backbone now.
        data: The number of training images now, and the names of the classes.

    Raises:
        ValueError: If anything differs that decides the result.
    """
    began_with = state["options"]
    for name, value in options:
        if name not in began_with:
            raise ValueError(f"{output_dir} began with an earlier release, without {name}; start a new run.")
        if name not in FREE_TO_CHANGE and value != began_with[name]:
            raise ValueError(
                f"{output_dir / RECIPE}: {name} is {value!r}, but the run began with {began_with[name]!r}; restore it, "
                "or start a new run."
            )
    if state["backbone"] != backbone:
        raise ValueError(
            f"backbone={options.backbone or 'the given model'}: other weights or heads than when the run began; "
            "restore them, or start a new run."
        )
    if state["data"] != data:
        (images, names), (found, classes) = state["data"], data
        raise ValueError(
            f"{options.data or 'splits'} has changed since the run began, with {images} training images of "
            f"{len(names)} classes; now it has {found} of {len(classes)}. Restore it, or start a new run."
        )


class TrainingLog:
    """
    `training_log.jsonl`: one row per step (`{"epoch", "step", "train_loss", "learning_rate"}`) and one per evaluation.

    Args:
        output_dir: Folder of the run.
        last_step: Step that the run is resumed from, or 0. Rows of later steps are removed, and so is that of the
            evaluation at the end, which is made anew. Only evaluations along the way have `images_per_second`.
    """

    def __init__(self, output_dir: Path, last_step: int):
        self.path = output_dir / LOG
        rows = [row for row in read_log(output_dir) if row["step"] <= last_step]
        rows = [row for row in rows if "accuracy" not in row or "images_per_second" in row]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, row: dict[str, Any]) -> None:
        """Add a row, one line of JSON."""
        with writing_to(self.path), open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """
    The rows of the log. The last line is left out if it was cut off when the process was killed.

    Raises:
        ValueError: If another line is damaged.
    """
    path = output_dir / LOG
    lines = path.read_text(errors="replace").split("\n") if path.exists() else [""]
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{path}, line {number}: not valid JSON; remove the line.") from None
    return rows
