"""Writing files atomically: completely or not at all, even if the process is killed."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

LOCK = ".lock"  # the file of `only_run_in`


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Goes around all that writes to a file or folder: errors name it, since the error of a full disk does not.

    Raises:
        ValueError: If the path is a URI.
        OSError: If the block raises one from the operating system: the same reason, with the path.
    """
    check_is_path(path)
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # one of ours, which names the path already
            raise
        raise OSError(f"{path}: cannot be written ({error.strerror}).") from None


def check_is_path(path: Path) -> None:
    """Raise a `ValueError` if a path is a URI."""
    if re.match(r"\w[\w+.-]+:/", path.as_posix()):  # a `Path` has one slash of them
        raise ValueError(f"{path}: expected a path on this machine; only `explain --format parquet` writes to URIs.")


@contextmanager
def draft_of(path: Path, writer: str = "part") -> Iterator[Path]:
    """
    Give another name to write a file under. At the end of the block the file is flushed to the disk and renamed; if the
    block fails, it is removed.

    Args:
        path: Where the file is to be, in a folder that exists.
        writer: The end of the other name. Of several processes that write the same file, each needs one of its own.

    Raises:
        OSError: If it cannot be written; a former file of this name stays.
    """
    draft = path.with_name(f".{path.name}.{writer}")
    with writing_to(path):
        try:
            yield draft
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, writer: str = "part") -> None:
    """
    Write a file under another name, flush it to the disk, and rename it.

    Args:
        path: Where to write it, in a folder that exists.
        content: Text, encoded as UTF-8, or bytes.
        writer: As for `draft_of`.

    Raises:
        OSError: If it cannot be written; a former file of this name stays.
    """
    with draft_of(path, writer) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write NumPy arrays by name to a .npz file, as `write_atomically` does."""
    import numpy as np  # slow to import

    content = BytesIO()
    np.savez(content, **arrays)
    write_atomically(path, content.getvalue())


def as_json(value: Any) -> str:
    """The text of a JSON file that people may read, too. Refuses NaN, which is no JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_text(name: str) -> str:
    """A file name as text that any format can hold: bytes that are no text become backslash escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


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
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # left by a process that was killed
        draft.mkdir()
        try:
            yield draft
            for file in sorted(draft.iterdir()):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def only_run_in(folder: Path, lock: str = LOCK, timeout: float = 0.0) -> Iterator[None]:
    """
    Hold a folder, so that no other run writes to it at the same time.

    Args:
        folder: The folder. It is created if needed.
        lock: Name of the file that is locked in the meantime.
        timeout: How many seconds to wait for another run to end.

    Raises:
        ValueError: If another run holds the folder.
        OSError: If the folder cannot be written to.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / lock)
        try:
            held.acquire(timeout=timeout)
        except Timeout:
            raise ValueError(f"{folder}: another run is writing to it; choose another folder, or wait.") from None
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no open file
            (folder / lock).unlink(missing_ok=True)
        held.release()


def check_new_folder(folder: Path, hint: str = "") -> None:
    """
    Refuse a folder for output that already contains something. The lock of `only_run_in` does not count.

    Args:
        folder: The folder, which need not exist.
        hint: The end of the error message, such as `, or --resume runs/birds`.

    Raises:
        ValueError: If it is a file, a folder that is not empty, or one whose name is not UTF-8: safetensors reads no
            weights from there.
    """
    if as_text(str(folder)) != str(folder):
        raise ValueError(f"{as_text(str(folder))}: its name is not UTF-8; expected one that is.")
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; expected a new or empty folder{hint}.")


def read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The content of a file of names and values; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected names and values.")
    return content
