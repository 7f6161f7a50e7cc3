"""Where shards are written: a folder on a disk, or in a bucket. A file appears when it is complete."""

import os
import re
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from ..files import LOCK, only_run_in, write_atomically
from ..messages import first_line

URI = re.compile(r"[A-Za-z][\w+.-]+://")


class Storage(Protocol):
    """A folder, which need not exist."""

    def names(self) -> list[str]:
        """The names of its files; none if it does not exist."""
        ...

    def location(self, name: str) -> str:
        """The path or URI of a file."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it is not there."""
        ...

    def write(self, name: str, content: bytes, writer: str = "part") -> None:
        """Write a file, completely or not at all. Of several processes that write the same file, each needs another
        `writer`; the last one wins.

        Raises:
            OSError: If it cannot be written.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def parquet(self, names: list[str]) -> Any:
        """The rows of parquet files, as a `pyarrow.dataset.Dataset`."""
        ...

    def only_run(self, rank: int) -> AbstractContextManager[None]:
        """A context in which no other process with this rank can write here. In a bucket, nothing is refused.

        Raises:
            ValueError: If another one does.
        """
        ...


def open_storage(folder: str | os.PathLike) -> Storage:
    """
    A folder for shards.

    Args:
        folder: A path, or a URI such as `s3://bucket/folder` or `gs://bucket/folder`: of any file system of `pyarrow`,
            or of `fsspec` if the package for it is installed.

    Raises:
        ValueError: If there is no such file system.
    """
    name = os.fspath(folder)
    return Bucket(name) if URI.match(name) else Folder(Path(folder))


def read_uri(uri: str) -> bytes:
    """
    The content of a file in a bucket.

    Args:
        uri: Its URI; see `open_storage`.

    Raises:
        ValueError: If there is no such file or file system.
        OSError: If it cannot be read.
    """
    parts = urlsplit(uri)
    content = _opened(f"{parts.scheme}://{parts.netloc}/").read(unquote(parts.path).lstrip("/"))
    if content is None:
        raise ValueError(f"{uri}: no such file.")
    return content


@lru_cache(maxsize=16)
def _opened(bucket: str) -> "Bucket":
    """A bucket to read many files from."""
    return Bucket(bucket)


class Folder:
    """A folder on a disk of this machine, or one that all machines share."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []

    def location(self, name: str) -> str:
        return str(self.path.absolute() / name)  # or else a folder such as `a:b` is taken for a URI

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes, writer: str = "part") -> None:
        write_atomically(self.path / name, content, writer)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def parquet(self, names: list[str]) -> Any:
        import pyarrow.dataset as ds

        return ds.dataset([self.location(name) for name in names], format="parquet")

    def only_run(self, rank: int) -> AbstractContextManager[None]:
        return only_run_in(self.path, f"{LOCK}-{rank}")


class Bucket:
    """A folder on a file system of `pyarrow` or `fsspec`."""

    def __init__(self, uri: str):
        import pyarrow as pa
        from pyarrow import fs

        self.uri = uri if uri.endswith(":///") else uri.rstrip("/")
        try:
            self.files, self.path = fs.FileSystem.from_uri(self.uri)
            self.uri = unquote(self.uri)  # as `fsspec` takes it, which `datasets` reads with
        except pa.ArrowInvalid:  # unknown to pyarrow
            import fsspec

            try:
                files, self.path = fsspec.url_to_fs(self.uri)
            except Exception as error:  # of any type
                raise ValueError(f"{uri}: no file system for it ({first_line(error)}).") from None
            self.files = fs.PyFileSystem(fs.FSSpecHandler(files))
        except OSError as error:
            raise ValueError(f"{uri}: cannot be opened ({first_line(error)}).") from None

    def __str__(self) -> str:
        return self.uri

    def names(self) -> list[str]:
        from pyarrow import fs

        return [file.base_name for file in self.files.get_file_info(fs.FileSelector(self.path, allow_not_found=True))]

    def location(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            with self.files.open_input_stream(f"{self.path}/{name}") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, writer: str = "part") -> None:
        draft = f"{self.path}/.{name}.{writer}"
        try:
            self.files.create_dir(self.path)
            with self.files.open_output_stream(draft) as file:
                file.write(content)
            self.files.move(draft, f"{self.path}/{name}")
        except OSError as error:
            self.remove(draft.rpartition("/")[2])
            raise OSError(f"{self.location(name)}: cannot be written ({first_line(error)}).") from None

    def remove(self, name: str) -> None:
        with suppress(OSError):
            self.files.delete_file(f"{self.path}/{name}")

    def parquet(self, names: list[str]) -> Any:
        import pyarrow.dataset as ds

        return ds.dataset([f"{self.path}/{name}" for name in names], format="parquet", filesystem=self.files)

    def only_run(self, rank: int) -> AbstractContextManager[None]:
        return nullcontext()
