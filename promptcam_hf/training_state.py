"""What a training run leaves on disk while it goes on: states to resume from, and its log."""

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import write_whole

STATES, LOG = "states", "training_log.jsonl"


def save_state(state: dict[str, Any], output_dir: Path, keep: int) -> None:
    """Write a state, whole or not at all, as `states/step-<step>.pt`, and remove all but the newest `keep`.

    Raises:
        OSError: If it cannot be written; earlier states stay.
    """
    content = io.BytesIO()
    torch.save(state, content)
    folder = output_dir / STATES
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"step-{state['step']:08}.pt", content.getvalue())
    for _, old in _states(output_dir)[:-keep]:
        old.unlink()


def load_newest_state(output_dir: Path) -> dict[str, Any] | None:
    """The state with the most steps, its tensors on the CPU; None if there is none yet."""
    states = _states(output_dir)
    return torch.load(states[-1][1], map_location="cpu", weights_only=True) if states else None


def _states(output_dir: Path) -> list[tuple[int, Path]]:
    """Steps and files of all states, ascending."""
    found = ((re.fullmatch(r"step-(\d+)\.pt", path.name), path) for path in (output_dir / STATES).glob("*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def random_states() -> dict[str, Any]:
    """The states of all random number generators of this process, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Go on from what `random_states` returned."""
    name, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class TrainingLog:
    """`training_log.jsonl`: a row a step (`{"epoch", "step", "train_loss", "learning_rate"}`) and a row an evaluation.

    Args:
        output_dir: Folder that holds it.
        last_step: Step after which the run goes on: what an interrupted run wrote beyond it is dropped.
    """

    def __init__(self, output_dir: Path, last_step: int):
        self.path = output_dir / LOG
        rows = [row for row in read_log(output_dir) if row["step"] <= last_step]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, row: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """The rows of a log; the last line is left out if a killed process wrote only part of it."""
    path = output_dir / LOG
    lines = path.read_text().split("\n") if path.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]
