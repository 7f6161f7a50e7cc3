"""Writing files atomically: completely or not at all, even if the process is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Name the file or folder in the errors of the block, since that of a full disk does not.

    Raises:
        OSError: If the block raises one from the operating system: the same reason, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # one of ours, which names the path already
            raise
        raise OSError(f"{path}: cannot be written ({error.strerror}).") from None


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """
    Give another name to write a file under. At the end of the block the file is flushed to the disk and renamed; if the
    block fails, it is removed.

    Args:
        path: Where the file is to be, in a folder that exists.

    Raises:
        OSError: If it cannot be written; a former file of this name stays.
    """
    draft = path.with_name(f".{path.name}.part")
    with naming_the_file(path):
        try:
            yield draft
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """
    Write a file under another name, flush it to the disk, and rename it.

    Args:
        path: Where to write it, in a folder that exists.
        content: Text, encoded as UTF-8, or bytes.

    Raises:
        OSError: If it cannot be written; a former file of this name stays.
    """
    with draft_of(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def write_files_atomically(folder: Path) -> Iterator[Path]:
    """
    Give a draft folder to write files to. At the end of the block each of them is moved to `folder`, in the order of
    their names; if the block fails, none is. Other files in `folder` stay.

    Args:
        folder: Where the files are to go; created if it does not exist.

    Raises:
        OSError: If they cannot be written.
    """
    draft = folder / ".writing"
    with naming_the_file(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # left by a process that was killed
        draft.mkdir()
        try:
            yield draft
            for file in sorted(draft.iterdir()):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def check_new_folder(folder: Path, hint: str = "", ignored: str | None = None) -> None:
    """
    Refuse a folder for output that already contains something.

    Args:
        folder: The folder, which need not exist.
        hint: The end of the error message, such as `, or --resume runs/birds`.
        ignored: Name of a file that does not count, such as a lock.

    Raises:
        ValueError: If it is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(path.name != ignored for path in folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; expected a new or empty folder{hint}.")
