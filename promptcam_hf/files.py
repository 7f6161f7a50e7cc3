"""Files are written atomically: completely or not at all, even if the process is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Say what was being written, which the error of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # one of ours, which says it all
            raise
        raise OSError(f"{path}: cannot be written ({error.strerror}).") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under another name, to the disk, and then give it its own.

    Raises:
        OSError: If it cannot be written; what had the name before stays.
    """
    draft = path.with_name(f".{path.name}.part")
    with naming_the_file(path):
        try:
            with open(draft, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def write_files_atomically(folder: Path) -> Iterator[Path]:
    """A folder to write files to, which at the end of the block are moved to `folder`, made if need be, one by one in
    the order of their names; if the block fails, none of them is. Other files in `folder` stay."""
    draft = folder / ".writing"
    with naming_the_file(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        draft.mkdir()
        try:
            yield draft
            for file in sorted(draft.iterdir()):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def check_new_folder(folder: Path, hint: str = "") -> None:
    """Refuse a folder that holds anything.

    Args:
        folder: Where output is to go. It need not exist.
        hint: The end of the message, such as `, or --resume runs/birds`.

    Raises:
        ValueError: If it is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; expected a new or empty folder{hint}.")
