"""Collections of photographs, from a few files to millions: folders and lists, tar files, parquet files, datasets.

A collection knows how many photographs it has, and reads any stretch of them, so that the work can be divided and taken
up again. Nothing is decoded here.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Protocol

from ..data.image_files import IMAGE_SUFFIXES
from ..data.image_files import find_photographs as find_in_folder
from ..messages import counted, first_line, listed
from ..modeling.hub_promptcam import is_hub_id
from ..modeling.images_promptcam import URL_SCHEMES
from .inputs import URI, check_any_exists, find_photographs
from .predictor import Source
from .storage import read_uri

PACKED = (".tar", ".parquet")


class Collection(Protocol):
    """Photographs in an order that does not change."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[Source]:
        """The photographs with the numbers `start` to `stop` - 1. Those that cannot be read raise when they are."""
        ...

    def files(self) -> list[str]:
        """The local files, and URLs, that are read."""
        ...

    def fingerprint(self) -> str:
        """What is the same for two collections if, and only if, their photographs are called the same, and files that
        hold several have not changed."""
        ...


def collect(photographs: Any) -> Collection:
    """
    The photographs of any mixture of inputs.

    Args:
        photographs: Image files, URLs, folders, patterns and lists, as for `find_photographs`; URIs of files in
            buckets, such as `s3://bucket/bird.jpg`, as for `open_storage`; tar files (such as those
            of WebDataset) and parquet files with images, or folders and patterns of them; Hub datasets, `"org/name"`
            or `"org/name:split"`, which are streamed; or a `datasets.Dataset`.

    Returns:
        Their collection, in the order given.

    Raises:
        ValueError: If there are none, or one cannot be opened.
    """
    if hasattr(photographs, "features"):  # of the library `datasets`
        return DataSet(photographs, "")
    parts: list[Collection] = []
    files: list[str] = []
    for source in names_of(photographs):
        packed = _packed(source)
        if not packed:
            files.append(source)
            continue
        if files:
            parts.append(FileList(find_photographs(files)))
            files = []
        parts += packed
    if files or not parts:
        parts.append(FileList(find_photographs(files)))
    collection = parts[0] if len(parts) == 1 else Several(_each_once(parts))
    check_any_exists(collection.files())
    if not len(collection):
        raise ValueError(f"{listed(names_of(photographs), 3)}: no images in it; expected 1 or more.")
    return collection


def _each_once(parts: Sequence[Collection]) -> list[Collection]:
    """Collections without files that occur in an earlier one, so that no two photographs have the same name."""
    seen: set[str] = set()
    kept: list[Collection] = []
    for part in parts:
        files = [file for file in part.files() if file not in seen]
        seen.update(files)
        if isinstance(part, FileList):
            kept.append(FileList(files))
        elif files or not part.files():  # datasets have no files
            kept.append(part)
    return kept


def names_of(photographs: Any) -> list[str]:
    """The inputs that have a name."""
    if hasattr(photographs, "features"):
        return []
    given = [photographs] if isinstance(photographs, (str, os.PathLike)) else photographs
    return [os.fspath(path) for path in given]


def _packed(source: str) -> list[Collection]:
    """What a source holds, if it is not only single photographs."""
    paths, loose = [Path(source)], []
    hub_id, _, split = source.partition(":")
    if os.path.isdir(source):
        paths = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in PACKED)
        loose = find_in_folder(source)[0] if paths else []
    elif has_magic(source) and not os.path.lexists(source):
        paths = [Path(path) for path in sorted(glob(source, recursive=True))]
    elif is_hub_id(hub_id) and not os.path.lexists(source) and not _is_image(source):
        return [DataSet(_open_hub(hub_id, split), source)]
    if not paths or any(path.suffix.lower() not in PACKED for path in paths):
        return []
    packed: list[Collection] = [TarFile(path) if path.suffix.lower() == ".tar" else ParquetFile(path) for path in paths]
    return [FileList(find_photographs(source)), *packed] if loose else packed


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _file_state(path: Path) -> list[Any]:
    """What changes when a file does."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


class FileList:
    """Files and URLs. The folder of a file counts as its true class."""

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = [str(path) for path in paths]  # a tenth of the memory of `Path`s

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, start: int, stop: int) -> Iterator[Source]:
        for path in self.paths[start:stop]:
            yield Source(path, _content_of(path), os.path.basename(os.path.dirname(path)))

    def files(self) -> list[str]:
        return self.paths

    def fingerprint(self) -> str:
        return _digest(self.paths)


def _content_of(path: str) -> Any:
    """A file or URL as the predictor takes it: of one in a bucket, a function that reads it."""
    return partial(read_uri, path) if URI.match(path) and not path.startswith(URL_SCHEMES) else path


class Several:
    """Collections one after the other."""

    def __init__(self, parts: Sequence[Collection]):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, start: int, stop: int) -> Iterator[Source]:
        for part, begin, end in self.overlaps(start, stop):
            yield from part.read(begin, end)

    def overlaps(self, start: int, stop: int) -> Iterator[tuple[Collection, int, int]]:
        """The parts that hold these photographs, and which of their photographs these are."""
        first = 0
        for part in self.parts:
            begin, end = max(start - first, 0), min(stop - first, len(part))
            if begin < end:
                yield part, begin, end
            first += len(part)

    def files(self) -> list[str]:
        return [file for part in self.parts for file in part.files()]

    def fingerprint(self) -> str:
        return _digest(*(part.fingerprint() for part in self.parts))


class TarFile:
    """The photographs in a tar file, called `<file>/<member>`. The file must not be compressed. Of one that is cut off,
    those before the cut are read, and the rest counts as one that cannot be."""

    def __init__(self, path: Path):
        self.path = path
        self.members: list[tuple[str, int, int]] = []  # name, offset and size in bytes
        self.error: str | None = None
        names: dict[str, int] = {}
        try:
            self.state = _file_state(path)
            with tarfile.open(path, "r:") as file:
                for member in file:
                    if member.isfile() and _is_image(member.name):
                        count = names[member.name] = names.get(member.name, 0) + 1
                        name = member.name if count == 1 else f"{member.name}#{count}"
                        self.members.append((name, member.offset_data, member.size))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
        except tarfile.TarError as error:
            if not self.members:
                raise ValueError(f"{path}: not a tar file that is whole and not compressed ({error}).") from None
            self.error = f"{path}: it is cut off or damaged after {counted(len(self.members), 'photograph')} ({error})."
        if not self.members:
            raise ValueError(f"{path} holds no images; expected members such as 0001.jpg.")

    def __len__(self) -> int:
        return len(self.members) + (self.error is not None)

    def read(self, start: int, stop: int) -> Iterator[Source]:
        for name, offset, size in self.members[start:stop]:
            whole = f"{self.path}/{name}"
            folder = os.path.basename(os.path.dirname(name))
            yield Source(whole, partial(self._content, whole, offset, size), folder)
        if self.error is not None and start <= len(self.members) < stop:
            yield Source(f"{self.path}/", partial(_fail, self.error))

    def only(self, start: int, stop: int) -> "TarFile":
        """The same file with fewer members."""
        fewer = copy(self)
        fewer.members = self.members[start:stop]
        return fewer

    def _content(self, name: str, offset: int, size: int) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise ValueError(f"{name}: cannot be read ({error.strerror}).") from None
        if len(content) < size:
            raise ValueError(f"{name}: cut off after {len(content)} of {size} bytes.")
        return content

    def files(self) -> list[str]:
        return [str(self.path)]

    def fingerprint(self) -> str:
        return _digest(self.state)


def _fail(message: str) -> bytes:
    raise ValueError(message)


class ParquetFile:
    """The photographs in a parquet file, called `<file>[<row>]`: a column of images, as `datasets` writes them, or of
    the bytes of image files. A column `label` holds the true classes."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self.path = path
        try:
            self.state = _file_state(path)
            self.file = pq.ParquetFile(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are of these types
            raise ValueError(f"{path}: cannot be read as a parquet file ({first_line(error)}).") from None
        schema = self.file.schema_arrow
        self.column = _image_column(schema, path)
        self.names = _class_names(schema)
        self.columns = [name for name in (self.column, "label") if name in schema.names]

    def __reduce__(self) -> Any:
        """An open file cannot be sent to another process, which opens it anew."""
        return ParquetFile, (self.path,)

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def read(self, start: int, stop: int) -> Iterator[Source]:
        row = 0
        for group in range(self.file.num_row_groups):
            size = self.file.metadata.row_group(group).num_rows
            if row < stop and row + size > start:
                yield from self._read_group(group, row, start, stop)
            row += size

    def _read_group(self, group: int, row: int, start: int, stop: int) -> Iterator[Source]:
        """The photographs of a row group, whose first has the number `row`."""
        end = min(row + self.file.metadata.row_group(group).num_rows, stop)
        try:
            for batch in self.file.iter_batches(32, row_groups=[group], columns=self.columns):
                for line in batch.to_pylist():
                    if start <= row < stop:
                        name, truth = f"{self.path}[{row}]", _truth(line.get("label"), self.names)
                        yield Source(name, partial(_bytes_of, line[self.column], name), truth)
                    row += 1
        except (OSError, ValueError) as error:  # the rest of the row group is damaged
            for number in range(max(row, start), end):
                name = f"{self.path}[{number}]"
                yield Source(name, partial(_fail, f"{name}: cannot be read ({first_line(error)})."))

    def files(self) -> list[str]:
        return [str(self.path)]

    def fingerprint(self) -> str:
        return _digest(self.state)


class DataSet:
    """A dataset of the library `datasets`, streamed or not. Its photographs are called `<name>[<row>]`."""

    def __init__(self, data: Any, name: str):
        import datasets

        self.name = name or data.info.dataset_name or "dataset"
        columns = [column for column, kind in (data.features or {}).items() if isinstance(kind, datasets.Image)]
        if len(columns) != 1:
            raise ValueError(f"{self.name} has {len(columns)} columns of images; expected one.")
        self.column = columns[0]
        self.data = data.cast_column(self.column, datasets.Image(decode=False))
        label = data.features.get("label")
        self.names = label.names if isinstance(label, datasets.ClassLabel) else None
        self.count = _count(data, self.name)
        self._streamed: Iterator[dict[str, Any]] | None = None  # the rows of a streamed dataset ...
        self._next = 0  # ... from this number on

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Iterator[Source]:
        for number, line in enumerate(self._rows(start, stop), start=start):
            name = f"{self.name}[{number}]"
            yield Source(name, partial(_bytes_of, line[self.column], name), _truth(line.get("label"), self.names))

    def _rows(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        if hasattr(self.data, "__len__"):
            yield from self.data.skip(start).take(stop - start)
            return
        if self._streamed is None or start < self._next:  # to skip rows is to download them again
            self._streamed, self._next = iter(self.data), 0
        for row in self._streamed:
            self._next += 1
            if self._next > start:
                yield row
            if self._next >= stop:
                return

    def files(self) -> list[str]:
        return []

    def fingerprint(self) -> str:
        return _digest(self.name, self.count, getattr(self.data, "_fingerprint", None))


def _open_hub(hub_id: str, split: str) -> Any:
    import datasets

    try:
        data = datasets.load_dataset(hub_id, streaming=True)
    except Exception as error:  # of any type, from the Hub and from the dataset's own files
        raise ValueError(f"{hub_id}: no such file, and no dataset on the Hub ({first_line(error)}).") from None
    if not split and len(data) > 1:
        raise ValueError(f"{hub_id} has the splits {listed(data)}; name one, such as {hub_id}:{next(iter(data))}.")
    if split and split not in data:
        raise ValueError(f"{hub_id} has no split {split!r}; found {listed(data)}.")
    return data[split] if split else next(iter(data.values()))


def _count(data: Any, name: str) -> int:
    if hasattr(data, "__len__"):
        return len(data)
    splits = data.info.splits or {}
    split = splits.get(str(data.split))
    if split is None or not split.num_examples:
        raise ValueError(f"{name} does not say how many photographs it has; download its files, and name those.")
    return split.num_examples


def reopen(name: str) -> Any:
    """
    A photograph by the name that its collection gave it.

    Args:
        name: A path or URL, `<tar file>/<member>` or `<parquet file>[<row>]`.

    Returns:
        A path, URL or the bytes of its file.

    Raises:
        ValueError: If it is not there any more, or was streamed from a dataset.
    """
    path, is_member, member = name.partition(".tar/")
    if is_member and os.path.isfile(f"{path}.tar"):
        tar = TarFile(Path(f"{path}.tar"))
        found = next((row for row, (other, *_) in enumerate(tar.members) if other == member), None)
        if found is None:
            raise ValueError(f"{path}.tar has no {member} any more.")
        return next(tar.read(found, found + 1)).image()
    row = re.fullmatch(r"(.+)\[(\d+)\]", name)
    if row is None or os.path.lexists(name):
        content = _content_of(name)
        return content() if callable(content) else content
    if not row[1].endswith(".parquet"):
        raise ValueError(f"{name}: photographs of a dataset are not drawn later; give its parquet files to explain.")
    source = next(ParquetFile(Path(row[1])).read(int(row[2]), int(row[2]) + 1), None)
    if source is None:
        raise ValueError(f"{name}: there is no such row any more.")
    return source.image()


def _image_column(schema: Any, path: Path) -> str:
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    columns = [field.name for field in schema if holds_images(field.type)]
    if len(columns) != 1 and "image" not in columns:
        found = f"none of its columns ({listed(schema.names)}) holds"
        if columns:
            found = f"the columns {listed(columns)} could hold"
        raise ValueError(f"{path}: {found} images; expected one column of image files, called image.")
    return columns[0] if len(columns) == 1 else "image"


def _class_names(schema: Any) -> list[str] | None:
    """The class names that `datasets` writes into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return features["label"]["names"]
    except (KeyError, ValueError, TypeError):
        return None


def _truth(label: Any, names: list[str] | None) -> str | None:
    if isinstance(label, int) and names is not None:
        return names[label] if 0 <= label < len(names) else None
    return label if isinstance(label, str) else None


def _bytes_of(image: Any, name: str) -> bytes:
    content = image.get("bytes") if isinstance(image, dict) else image
    # A table from elsewhere must not make us fetch URLs, or read files that it has no business with
    if not content:
        raise ValueError(f"{name}: the row has no image; expected the bytes of an image file.")
    return content
