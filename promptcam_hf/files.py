"""Files that are written whole or not at all, whatever happens meanwhile."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named_if_it_fails(path: Path) -> Iterator[None]:
    """Say what was being written, which the error of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # one of ours, which says it all
            raise
        raise OSError(f"{path}: cannot be written ({error.strerror}).") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name, to the disk, and then give it its own.

    Raises:
        OSError: If it cannot be written; what had the name before stays.
    """
    draft = path.with_name(f".{path.name}.part")
    with named_if_it_fails(path):
        try:
            with open(draft, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """A folder to write files to, which at the end of the block are moved to `folder`, made if need be, one by one in
    the order of their names; if the block fails, none of them is. Other files in `folder` stay."""
    draft = folder / ".writing"
    with named_if_it_fails(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        draft.mkdir()
        try:
            yield draft
            for file in sorted(draft.iterdir()):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
