"""Explain photographs with a checkpoint: `promptcam explain`, as a Python function.

Each line of `explanations.jsonl` is an object with `photograph` (its path) and either `sheet` (the file name of its
contact sheet) and `explanations` (as `pipeline("prompt-cam")` returns them, with maps as nested lists and without
heatmaps), or `error`. The lines are in the order of the photographs. The file appears when all of them are done.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm
from transformers import pipeline

from ..files import write_atomically, write_files_atomically
from ..messages import first_line
from ..modeling import PromptCamPipeline
from ..modeling.configuration_promptcam import TASK
from ..modeling.images_promptcam import load_photograph
from .drawing import contact_sheet

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
RECORD = "explanations.jsonl"


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
    top_k: int = 1,
    classes: Sequence[str | int] | None = None,
    top_traits: int = 4,
    batch_size: int = 8,
    device: str | int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ExplainResult:
    """
    Show which traits speak for a class on photographs. Writes a contact sheet per photograph (the photograph, then the
    traits of each explained class, the most important first) and `explanations.jsonl`. A photograph that cannot be read
    does not stop the others.

    Args:
        photographs: Image files, or folders to search for them, subfolders included.
        model: Checkpoint folder or Hub id.
        output_dir: The folder to write to. It is created if needed.
        top_k: How many classes to explain per photograph, the most probable first.
        classes: Names or labels of the classes to explain instead, whatever their scores.
        top_traits: How many traits to show per class, the most important first.
        batch_size: Photographs per forward pass.
        device: Such as `"cuda"` or `"cpu"`. Default: a GPU if there is one.
        overwrite: Whether to replace contact sheets and an `explanations.jsonl` that are already there.
        progress: Whether to show a progress bar.

    Returns:
        What was written, and which photographs could not be read.

    Raises:
        ValueError: If a folder holds no images, an argument is out of range, the checkpoint cannot be opened or does
            not know a class, or a file would be replaced without `overwrite`. A photograph is never replaced.
        OSError: If a file cannot be written.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more.")
    output_dir = Path(output_dir)
    paths = _find_photographs(photographs)
    sheets = [output_dir / f"{name}.png" for name in _distinct_names(paths)]
    _check_output(output_dir / RECORD, sheets, paths, overwrite)
    options: dict[str, Any] = {"classes": list(classes)} if classes else {"top_k": top_k}
    pipe = open_pipeline(model, device=device, top_traits=top_traits, **options)

    errors: dict[str, str] = {}
    with (
        write_files_atomically(output_dir) as draft,
        open(draft / RECORD, "w", encoding="utf-8") as record,
        tqdm(total=len(paths), desc="explaining", unit="photo", disable=not progress) as bar,
    ):
        for start in range(0, len(paths), batch_size):
            batch = slice(start, start + batch_size)
            for row in _explain_batch(pipe, paths[batch], sheets[batch]):
                record.write(json.dumps(row) + "\n")
                if "error" in row:
                    errors[row["photograph"]] = row["error"]
                bar.update()
    return ExplainResult(output_dir / RECORD, len(paths) - len(errors), errors)


def open_pipeline(model: str | os.PathLike, **options: Any) -> PromptCamPipeline:
    """
    Open a checkpoint with `pipeline("prompt-cam")`.

    Args:
        model: Checkpoint folder or Hub id.
        options: Further arguments of the pipeline, such as `device`.

    Raises:
        ValueError: If the checkpoint cannot be opened or is no Prompt-CAM model, or an option does not fit it.
    """
    task: Any = TASK  # `pipeline` is typed for transformers' own tasks
    try:
        return pipeline(task, model=os.fspath(model), **options)
    except OSError as error:
        raise ValueError(f"model={model}: cannot be opened ({first_line(error)})") from None


# --- Photographs and their sheets -------------------------------------------------------------------------------------


def _find_photographs(photographs: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """All photographs once, in the order given; those of a folder are sorted."""
    given = [photographs] if isinstance(photographs, (str, os.PathLike)) else photographs
    paths: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise ValueError(f"{path} holds no images; expected files such as {path}/bird.jpg.")
            paths += found
        else:
            paths.append(path)
    if not paths:
        raise ValueError("No photographs to explain; expected 1 or more.")
    return list(dict.fromkeys(paths))


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """A file name for each path, without its ending, and with as few folders in it as make all of them distinct."""
    stems = [path.with_suffix("") for path in paths]
    for candidates in (stems, paths):  # with its ending for bird.jpg next to bird.png
        for depth in range(1, max(len(path.parts) for path in paths) + 1):
            names = ["_".join(part.strip(os.sep) for part in path.parts[-depth:]) for path in candidates]
            if len({name.casefold() for name in names}) == len(names):
                return names
    return [f"{number}_{path.stem}" for number, path in enumerate(paths, start=1)]


def _check_output(record: Path, sheets: Sequence[Path], paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace a photograph or, without `overwrite`, any file."""
    inputs = {path.resolve() for path in paths}
    for file in (record, *sheets):
        if file.resolve() in inputs:
            raise ValueError(f"{file} is one of the photographs; choose another folder for the contact sheets.")
        if file.exists() and not overwrite:
            raise ValueError(f"{file} exists; choose another folder, or overwrite it (--overwrite).")


def _explain_batch(pipe: PromptCamPipeline, paths: Sequence[Path], sheets: Sequence[Path]) -> list[dict[str, Any]]:
    """Write the contact sheets of some photographs, and return their lines of the record."""
    readable: dict[Path, Image.Image] = {}
    errors: dict[Path, str] = {}
    for path in paths:
        try:
            readable[path] = load_photograph(path)
        except ValueError as error:
            errors[path] = str(error)
    explained = dict(zip(readable, pipe([*readable.values()], batch_size=len(paths)), strict=True))
    rows = []
    for path, sheet in zip(paths, sheets, strict=True):
        row: dict[str, Any] = {"photograph": str(path)}
        if path in errors:
            row["error"] = errors[path]
        else:
            picture = BytesIO()
            contact_sheet(readable[path], explained[path], title=str(path)).save(picture, format="PNG")
            write_atomically(sheet, picture.getvalue())
            row |= {"sheet": sheet.name, "explanations": [_without_pictures(item) for item in explained[path]]}
        rows.append(row)
    return rows


def _without_pictures(explanation: dict[str, Any]) -> dict[str, Any]:
    """An explanation as JSON holds it: maps as nested lists, no heatmaps."""
    traits = [{"rank": x["rank"], "head": x["head"], "map": x["map"].tolist()} for x in explanation["traits"]]
    return explanation | {"traits": traits}
