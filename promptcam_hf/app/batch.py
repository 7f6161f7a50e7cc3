"""Many photographs at once: from uploads to a table and contact sheets."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..data.class_names import readable
from ..data.image_files import IMAGE_SUFFIXES, is_hidden
from ..explanation.drawing import contact_sheet, shrunk, write_sheet
from ..explanation.inputs import sheet_names
from ..explanation.predict import csv_writer, row_of
from ..explanation.predictor import PromptCamPredictor, Source, explanations_of

MOST_PHOTOGRAPHS = 200
MOST_BYTES = 1 << 26  # of an uploaded file, and of a photograph in a zip file
PART = 1 << 16  # bytes that are unpacked at a time
UNPACKED_IN_PARTS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others become a million times as long at once
BATCH_SIZE = 8
SHOWN = 24  # contact sheets in the gallery


@dataclass(frozen=True)
class BatchResult:
    """
    What `explain_uploads` has written.

    Args:
        table: A CSV file with a row for each photograph, as `promptcam predict` writes it.
        sheets: A zip file with the contact sheets; None if no photograph could be read.
        gallery: The first contact sheets, with captions.
        num_photographs: How many photographs there were.
        errors: Why photographs could not be read, which each names.
    """

    table: Path
    sheets: Path | None
    gallery: list[tuple[Image.Image, str]]
    num_photographs: int
    errors: list[str]


def find_uploads(files: Sequence[str]) -> list[Source]:
    """
    The photographs among uploaded files, and in uploaded zip files.

    Args:
        files: Paths.

    Returns:
        The photographs under the names that their files had. They are read later.

    Raises:
        ValueError: If there are none, more than `MOST_PHOTOGRAPHS`, or a zip file is damaged.
    """
    sources: list[Source] = []
    for file in map(Path, files):
        sources += _members(file) if file.suffix.lower() == ".zip" else [Source(file.name, file.read_bytes)]
    if not sources:
        raise ValueError("There are no photographs in this; expected photographs, or a zip file of them.")
    if len(sources) > MOST_PHOTOGRAPHS:
        raise ValueError(
            f"{len(sources)} photographs: more than {MOST_PHOTOGRAPHS} at once. For more, use the command line: "
            "promptcam explain."
        )
    return sources


def explain_uploads(
    predictor: PromptCamPredictor, sources: Sequence[Source], folder: Path, progress: Callable[[int], Any]
) -> BatchResult:
    """
    Explain photographs. One that cannot be read does not stop the others.

    Args:
        predictor: The model, with `maps` above 0.
        sources: The photographs.
        folder: The folder to write to, which exists.
        progress: Is called with the number of photographs that are done.

    Raises:
        FloatingPointError: If the model's scores are not finite.
        OSError: If a file cannot be written.
    """
    table, sheets = folder / "predictions.csv", folder / "sheets.zip"
    names = sheet_names([source.name for source in sources])
    gallery: list[tuple[Image.Image, str]] = []
    errors: list[str] = []  # several photographs may have the same name
    done = 0
    with open(table, "w", encoding="utf-8", newline="") as file, zipfile.ZipFile(sheets, "w") as archive:
        write = csv_writer(file, predictor.top_k)
        for columns in predictor.stream(sources, BATCH_SIZE, shrunk):
            for row, name in enumerate(columns["photograph"]):
                if columns["error"][row] is not None:
                    columns["error"][row] = _reason(name, columns["error"][row])
                    errors.append(columns["error"][row])
                else:
                    sheet = contact_sheet(columns["kept"][row], explanations_of(columns, row), title=name)
                    archive.writestr(f"{names[done]}.png", write_sheet(sheet))
                    if len(gallery) < SHOWN:
                        caption = f"{name}: {readable(columns['label'][row])} {columns['score'][row]:.1%}"
                        gallery.append((sheet, caption))
                write([row_of(columns, row)])
                done += 1
                progress(done)
    return BatchResult(table, sheets if gallery else None, gallery, done, errors)


def _members(file: Path) -> Iterator[Source]:
    """The photographs in a zip file."""
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # a damaged one raises errors of many types
        raise ValueError(f"{file.name}: not a zip file that can be read ({error}).") from None
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        if not member.is_dir() and path.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, path.parts)):
            yield Source(member.filename, partial(_content, archive, member))


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type not in UNPACKED_IN_PARTS:
        raise ValueError(f"{member.filename}: packed in an unusual way; expected zip's usual compression (deflate).")
    content = BytesIO()
    with archive.open(member) as file:  # the size that a zip file declares may be wrong
        while part := file.read(PART):
            content.write(part)
            if max(content.tell(), member.file_size) > MOST_BYTES:
                raise ValueError(f"{member.filename}: more than {MOST_BYTES >> 20} MiB.")
    return content.getvalue()


def _reason(name: str, error: str) -> str:
    """An error that begins with the name of the photograph. That of one in memory begins with its type instead."""
    return error if error.startswith(name) else f"{name}: {error.partition(': ')[2] or error}"
