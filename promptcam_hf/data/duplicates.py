"""Photographs that need not be decoded: their paths, their sizes in bytes, and which are the same, byte for byte."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import datasets
import pyarrow
import pyarrow.compute


def content_keys(splits: Sequence[datasets.Dataset]) -> list[list[str | None]]:
    """
    Find photographs with the same bytes. Only those whose size another one has are read.

    Args:
        splits: Splits whose column `image` is a dictionary of `path` and `bytes`.

    Returns:
        For each split, a key of each photograph's contents, the same for the same contents; None if it is the only one
        of its size, or cannot be read.
    """
    sizes = [byte_sizes(split) for split in splits]
    count = Counter(size for of_split in sizes for size in of_split)
    keys: list[list[str | None]] = []
    for split, of_split in zip(splits, sizes, strict=True):
        shared = [row for row, size in enumerate(of_split) if size is not None and count[size] > 1]
        found = {row: _key(split[row]["image"]) for row in shared}
        keys.append([found.get(row) for row in range(len(split))])
    return keys


def byte_sizes(split: datasets.Dataset) -> list[int | None]:
    """The size of each photograph in bytes, without reading it; None for a missing one."""
    sizes: list[int | None] = []
    is_file = may_read_files(split)
    for images in _pieces(split):
        held = pyarrow.compute.binary_length(images.field("bytes").cast(pyarrow.large_binary())).to_pylist()
        paths = images.field("path").to_pylist() if is_file else [None] * len(held)
        sizes += [_file_size(path) if size is None else size for size, path in zip(held, paths, strict=True)]
    return sizes


def image_paths(split: datasets.Dataset) -> list[str | None]:
    """The path of each photograph, or the name that a table gives it; None if it has none."""
    return [path for images in _pieces(split) for path in images.field("path").to_pylist()]


def _pieces(split: datasets.Dataset) -> Iterator[pyarrow.StructArray]:
    """The column `image`, a thousand photographs at a time, without copying what it holds."""
    table = split.select_columns("image").with_format("arrow")
    for start in range(0, len(split), 1000):
        yield table[start : start + 1000]["image"].combine_chunks()


def may_read_files(split: datasets.Dataset) -> bool:
    """Whether paths are those of photographs: a table from elsewhere may name any file."""
    return split.info.builder_name in (None, "imagefolder")


def _file_size(path: str | None) -> int | None:
    try:
        return os.stat(path).st_size if path is not None and os.path.isfile(path) else None
    except (OSError, ValueError):
        return None


def _key(image: dict) -> str | None:
    """A hash of a photograph's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    if image["bytes"] is not None:
        digest.update(image["bytes"])
        return digest.hexdigest()
    try:
        with open(image["path"], "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError:
        return None
    return digest.hexdigest()
