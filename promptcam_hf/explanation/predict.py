"""Predict the classes of photographs with a checkpoint: `promptcam predict`, as a Python function.

The table has a row for each photograph, in their order, with the columns `photograph` (its path), `label` and `score`
(the answer, and its probability), `level` ("class", "group" or "unknown"), the most probable classes and their
probabilities (`top_labels` and `top_scores`; in CSV `label_1`, `score_1`, `label_2`, ...) and `error` (why a photograph
could not be read).
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from ..files import as_text, draft_of
from ..messages import check_counts
from .inputs import identities
from .predictor import PromptCamPredictor
from .sources import collect, names_of

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
COLUMNS = ("photograph", "label", "score", "level", "top_labels", "top_scores", "error")
ROW_GROUP = 10_000  # rows of a parquet file that are kept in memory

Write = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class PredictResult:
    """
    What `predict` has done.

    Args:
        num_photographs: Number of rows.
        errors: Photograph -> why it could not be read.
        only: The classes that could be the answer, if `only` was given.
    """

    num_photographs: int
    errors: dict[str, str]
    only: list[str] | None


def predict(
    photographs: str | os.PathLike | Sequence[str | os.PathLike],
    model: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    top_k: int = 5,
    only: Sequence[str | int] | str | os.PathLike | None = None,
    unknown_below: float | None = None,
    roll_up: str | os.PathLike | None = None,
    batch_size: int = 32,
    overwrite: bool = False,
    progress: bool = True,
    **predictor_options: Any,
) -> PredictResult:
    """
    Predict the classes of photographs, and write a table (see `predict.py`; `PromptCamPredictor` returns the numbers).
    A photograph that cannot be read does not stop the others.

    Args:
        photographs: Image files, URLs, folders, patterns, lists, tar and parquet files or datasets; see `collect`.
        model: Checkpoint folder or Hub id.
        output: File to write: `.csv`, `.json`, `.jsonl` or `.parquet`. Default: CSV on standard output.
        top_k: How many classes to name for each photograph, at most.
        only, unknown_below, roll_up: Which classes can be the answer, and when it is "unknown" or a group of classes;
            as for `PromptCamPredictor`.
        batch_size: Photographs per forward pass.
        overwrite: Whether to replace `output` if it is there. A photograph is never replaced.
        progress: Whether to show a progress bar.
        predictor_options: `device`, `dtype`, `backbone` and `num_workers`, as for `PromptCamPredictor`.

    Returns:
        What was done.

    Raises:
        ValueError: If there are no photographs, an argument does not fit the checkpoint, or `output` exists.
        FloatingPointError: If the model's scores are not finite.
        OSError: If `output` cannot be written.
    """
    check_counts(batch_size=batch_size)
    path = None if output is None else Path(output)
    collection = collect(photographs)
    if path is not None:
        inputs = [name.removeprefix("@") for name in names_of(photographs)]
        tables = [table for table in (only, roll_up) if isinstance(table, (str, os.PathLike))]
        _check_output(path, [*inputs, *collection.files(), *tables], overwrite)
    predictor_options |= {"top_k": top_k, "only": only, "unknown_below": unknown_below, "roll_up": roll_up}
    predictor = PromptCamPredictor(model, **predictor_options)
    errors: dict[str, str] = {}
    with (
        _table(path, predictor.top_k) as write,
        tqdm(total=len(collection), desc="predicting", unit="photo", disable=not progress) as bar,
    ):
        for columns in predictor.stream(collection.read(0, len(collection)), batch_size):
            rows = [row_of(columns, number) for number in range(len(columns["photograph"]))]
            write(rows)
            errors.update((row["photograph"], row["error"]) for row in rows if row["error"] is not None)
            bar.update(len(rows))
    allowed = None if predictor.only is None else [predictor.names[label] for label in predictor.only]
    return PredictResult(len(collection), errors, allowed)


def _check_output(path: Path, inputs: Sequence[Any], overwrite: bool) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}.")
    if identities([path]) & identities(inputs):
        raise ValueError(f"{path} is one of the inputs; choose another name for the predictions.")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; choose another name, or overwrite it (--overwrite).")


def row_of(columns: dict[str, Any], number: int) -> dict[str, Any]:
    """A row of the table, from the columns of a predictor, of types that JSON knows."""
    row = {name: columns[name][number] for name in COLUMNS}
    if row["error"] is not None:
        return row | {"score": None, "top_labels": None, "top_scores": None}
    return row | {"score": float(row["score"]), "top_scores": row["top_scores"].tolist()}


# --- Tables -----------------------------------------------------------------------------------------------------------


@contextmanager
def _table(path: Path | None, top_k: int) -> Iterator[Write]:
    """A function that writes rows to a new table, which appears when all are written; or to standard output."""
    if path is None:
        yield csv_writer(sys.stdout, top_k)
        sys.stdout.flush()
        return
    with draft_of(path) as draft:
        if path.suffix.lower() == ".parquet":
            with _parquet_writer(draft, top_k) as write:
                yield write
            return
        # Names that are no text keep their bytes
        with open(draft, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield csv_writer(file, top_k)
            elif path.suffix.lower() == ".jsonl":
                yield lambda rows: file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            else:
                yield _json_writer(file)
                file.write("\n]\n")


def csv_writer(file: TextIO, top_k: int) -> Write:
    """A function that writes rows, as `row_of` returns them, as CSV. CSV has no lists: their elements are in columns of
    their own."""
    table = csv.writer(file, lineterminator="\n")
    ranks = [f"{column}_{rank}" for rank in range(1, top_k + 1) for column in ("label", "score")]
    table.writerow(["photograph", "label", "score", "level", *ranks, "error"])

    def write(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            pairs = zip(row["top_labels"] or [None] * top_k, row["top_scores"] or [None] * top_k, strict=True)
            top = [value for label, score in pairs for value in (label, _rounded(score))]
            answer = (row["photograph"], row["label"], _rounded(row["score"]), row["level"])
            table.writerow([*answer, *top, row["error"]])

    return write


def _rounded(score: float | None) -> str | None:
    return None if score is None else f"{score:.6g}"


def _json_writer(file: TextIO) -> Write:
    separator = "["

    def write(rows: list[dict[str, Any]]) -> None:
        nonlocal separator
        for row in rows:
            file.write(f"{separator}\n{json.dumps(row, allow_nan=False)}")
            separator = ","

    return write


@contextmanager
def _parquet_writer(path: Path, top_k: int) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float32()
    types = {"score": number, "top_labels": pa.list_(text), "top_scores": pa.list_(number)}
    schema = pa.schema([(name, types.get(name, text)) for name in COLUMNS])
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as table:

        def flush() -> None:
            if waiting:
                table.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting.clear()

        def write(rows: list[dict[str, Any]]) -> None:
            names = ("photograph", "error")  # an error names its photograph
            waiting.extend(row | {name: as_text(row[name]) for name in names if row[name]} for row in rows)
            if len(waiting) >= ROW_GROUP:
                flush()

        yield write
        flush()
