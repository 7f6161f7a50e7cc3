"""Explain photographs with a checkpoint: `promptcam explain`, as a Python function.

Each line of `explanations.jsonl` is an object with `photograph` (its path) and either `sheet` (the file name of its
contact sheet) and `explanations` (as `pipeline("prompt-cam")` returns them, with maps as nested lists and without
heatmaps), or `error`. The lines are in the order of the photographs. The file appears when all of them are done.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from ..checkpoint import open_pipeline
from ..files import naming_the_file, write_atomically, write_files_atomically
from ..modeling import PromptCamPipeline
from ..modeling.images_promptcam import load_photograph
from .drawing import contact_sheet, is_sheet, shrunk, write_sheet
from .inputs import find_photographs, sheet_names

RECORD, LOCK = "explanations.jsonl", ".lock"
DrawSheet = Callable[..., Image.Image]  # as `contact_sheet`: photograph, explanations, title


@dataclass(frozen=True)
class ExplainResult:
    """
    What `explain` has written.

    Args:
        record: The path of `explanations.jsonl`.
        num_written: Number of contact sheets.
        errors: Photograph -> why it could not be read.
    """

    record: Path
    num_written: int
    errors: dict[str, str]


def explain(
    photographs: str | os.PathLike | Sequence[str | os.PathLike],
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    top_k: int | None = None,
    classes: Sequence[str | int] | None = None,
    top_traits: int = 4,
    batch_size: int = 8,
    device: str | int | None = None,
    backbone: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ExplainResult:
    """
    Show which traits speak for a class on photographs. Writes a contact sheet per photograph (the photograph, then the
    traits of each explained class, the most important first) and `explanations.jsonl`. A photograph that cannot be read
    does not stop the others.

    Args:
        photographs: Image files, URLs, patterns such as `photos/*.jpg`, or folders to search, subfolders included.
            Contact sheets of an earlier run are left out.
        model: Checkpoint folder or Hub id.
        output_dir: The folder to write to. It is created if needed.
        top_k: How many classes to explain per photograph, the most probable first. Default: 1.
        classes: Names or labels of the classes to explain instead, whatever their scores.
        top_traits: How many traits to show per class, the most important first.
        batch_size: Photographs per forward pass.
        device: Such as `"cuda"` or `"cpu"`, or the number of a GPU. Default: a GPU if there is one.
        backbone: Where the backbone is now (Hub id or folder), for a checkpoint that holds only prompts.
        overwrite: Whether to replace files that are already there. The contact sheets and the `explanations.jsonl` of
            an earlier run are then removed first.
        progress: Whether to show a progress bar.

    Returns:
        What was written, and which photographs could not be read.

    Raises:
        ValueError: If there are no photographs, an argument is out of range, the checkpoint cannot be opened or does
            not know a class, a file would be replaced without `overwrite`, or another run is writing to the folder. A
            photograph is never replaced.
        FloatingPointError: If the model's scores are not finite.
        OSError: If a file cannot be written.
    """
    options: dict[str, Any] = {"top_k": top_k, "classes": classes, "top_traits": top_traits}
    options |= {"device": device, "backbone": backbone}
    return write_sheets(photographs, model, output_dir, contact_sheet, options, batch_size, overwrite, progress)


def write_sheets(
    photographs: str | os.PathLike | Sequence[str | os.PathLike],
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    draw: DrawSheet,
    options: dict[str, Any],
    batch_size: int,
    overwrite: bool,
    progress: bool,
) -> ExplainResult:
    """
    Write a sheet per photograph and the record: what `explain` and `compare` share. See `explain` for the arguments
    that are not here.

    Args:
        draw: Draws a sheet of a photograph, its explanations and a title.
        options: Of `open_pipeline`, those of the pipeline included.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more.")
    output_dir = Path(output_dir)
    sources = find_photographs(photographs)
    sheets = [output_dir / f"{name}.png" for name in sheet_names(sources)]
    _check_output(output_dir, sheets, sources, overwrite)
    pipe = open_pipeline(model, heatmaps=False, **options)

    errors: dict[str, str] = {}
    with (
        _only_run_in(output_dir),
        pipe.model.cached_prompts(),
        tqdm(total=len(sources), desc="explaining", unit="photo", disable=not progress) as bar,
    ):
        _check_output(output_dir, sheets, sources, overwrite)  # another run may have written since
        if overwrite:
            _remove_earlier(output_dir, sources)
        with (
            write_files_atomically(output_dir) as draft,
            open(draft / RECORD, "w", encoding="utf-8") as record,
        ):
            for start in range(0, len(sources), batch_size):
                batch = slice(start, start + batch_size)
                for row in _explain_batch(pipe, draw, sources[batch], sheets[batch]):
                    record.write(json.dumps(row, allow_nan=False) + "\n")
                    if "error" in row:
                        errors[row["photograph"]] = row["error"]
                    bar.update()
    return ExplainResult(output_dir / RECORD, len(sources) - len(errors), errors)


# --- The output folder ------------------------------------------------------------------------------------------------


@contextmanager
def _only_run_in(folder: Path) -> Iterator[None]:
    """Refuse a folder that another run is writing to."""
    with naming_the_file(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{folder}: another run is writing to it; choose another folder, or wait.") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def _check_output(output_dir: Path, sheets: Sequence[Path], sources: Sequence[str | Path], overwrite: bool) -> None:
    """Refuse to replace a photograph or, without `overwrite`, any file."""
    inputs = _identities(sources)
    for file in (output_dir / RECORD, *sheets):
        if _identities([file]) & inputs:
            raise ValueError(f"{file} is one of the photographs; choose another folder for the contact sheets.")
        if os.path.lexists(file) and not overwrite:
            raise ValueError(f"{file} exists; choose another folder, or overwrite it (--overwrite).")


def _remove_earlier(output_dir: Path, sources: Sequence[str | Path]) -> None:
    """Remove an earlier run's record and contact sheets, which would otherwise stay beside the new ones."""
    inputs = _identities(sources)
    with naming_the_file(output_dir):
        for file in output_dir.iterdir():
            if file.name == RECORD or (is_sheet(file) and not _identities([file]) & inputs):
                file.unlink()


def _identities(paths: Sequence[str | Path]) -> set[tuple[int, int]]:
    """What is the same for two paths if, and only if, they lead to the same file. URLs and missing files have none."""
    found = set()
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        found.add((status.st_dev, status.st_ino))
    return found


# --- Explanations -----------------------------------------------------------------------------------------------------


class _Photographs(IterableDataset):
    """Photographs at full size, one by one: eight of 24 megapixels would take 600 MB. What was read is kept small, and
    what could not be read as the reason why. (A dataset, because older releases of transformers make lists of
    generators.)"""

    def __init__(self, sources: Sequence[str | Path]):
        self.sources = sources
        self.small: dict[str | Path, Image.Image] = {}
        self.errors: dict[str | Path, str] = {}

    def __iter__(self) -> Iterator[Image.Image]:
        for source in self.sources:
            try:
                photograph = load_photograph(source)
            except ValueError as error:
                self.errors[source] = str(error)
            else:
                self.small[source] = shrunk(photograph)
                yield photograph


def _explain_batch(
    pipe: PromptCamPipeline, draw: DrawSheet, sources: Sequence[str | Path], sheets: Sequence[Path]
) -> list[dict[str, Any]]:
    """Write the contact sheets of some photographs, and return their lines of the record."""
    photographs = _Photographs(sources)
    results = list(pipe(photographs, batch_size=len(sources)))
    small, errors = photographs.small, photographs.errors
    explained = dict(zip(small, results, strict=True))
    rows = []
    for source, sheet in zip(sources, sheets, strict=True):
        row: dict[str, Any] = {"photograph": str(source)}
        if source in errors:
            row["error"] = errors[source]
        else:
            picture = draw(small[source], explained[source], title=str(source))
            write_atomically(sheet, write_sheet(picture))
            row |= {"sheet": sheet.name, "explanations": _without_pictures(explained[source])}
        rows.append(row)
    return rows


def _without_pictures(value: Any) -> Any:
    """Explanations as JSON holds them: maps as nested lists, no heatmaps."""
    if isinstance(value, dict):
        return {key: _without_pictures(item) for key, item in value.items() if key != "heatmap"}
    if isinstance(value, list):
        return [_without_pictures(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
