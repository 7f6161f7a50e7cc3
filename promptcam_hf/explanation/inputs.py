"""Which photographs to explain, and what to call their contact sheets."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from ..modeling.images_promptcam import URL_SCHEMES
from .drawing import is_sheet

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
LONGEST_NAME = 200  # bytes; file systems allow 255, of which drafts and endings take some


def find_photographs(
    photographs: str | os.PathLike | Sequence[str | os.PathLike],
) -> list[str | Path]:
    """
    Find photographs. Contact sheets are none, unless they are named one by one.

    Args:
        photographs: Files, URLs, patterns such as `photos/*.jpg`, or folders to search, subfolders included. Hidden
            files and folders are left out.

    Returns:
        Paths and URLs, each once, in the order given; those of a folder or pattern are sorted.

    Raises:
        ValueError: If there are none, or a folder or pattern has none.
    """
    given = [photographs] if isinstance(photographs, (str, os.PathLike)) else photographs
    found: list[str | Path] = []
    for source in map(os.fspath, given):
        if source.startswith(URL_SCHEMES):
            found.append(source)
        elif os.path.isdir(source):
            files = sorted(_photographs_in(source))
            if not files:
                raise ValueError(f"{source} holds no images; expected files such as {Path(source, 'bird.jpg')}.")
            found += files
        elif has_magic(source) and not os.path.lexists(source):
            files = [path for path in map(Path, sorted(glob(source, recursive=True))) if path.is_file()]
            if not files:
                raise ValueError(f"{source}: no such file, and no files that match this pattern.")
            found += [path for path in files if not is_sheet(path)]
        else:
            found.append(Path(source))
    if not found:
        raise ValueError("No photographs to explain; expected 1 or more.")
    return list(dict.fromkeys(found))


def _photographs_in(folder: str) -> Iterator[Path]:
    seen = set()  # links may lead back to a folder above
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        for path in () if real in seen else map(Path(parent).joinpath, files):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not is_sheet(path):
                yield path
        seen.add(real)


def sheet_names(sources: Sequence[str | Path]) -> list[str]:
    """A file name for the contact sheet of each photograph, without `.png`: the photograph's, without its ending, and
    with as few folders in it as make all of them distinct; or else with a number."""
    paths = [Path(source.partition("?")[0] if isinstance(source, str) else source) for source in sources]
    stems = [path.with_suffix("") for path in paths]
    for candidates in (stems, paths):  # with its ending for bird.jpg next to bird.png
        for depth in range(1, max(len(path.parts) for path in paths) + 1):
            names = ["_".join(part.strip(os.sep + ":") for part in path.parts[-depth:]) for path in candidates]
            if max(len(os.fsencode(name)) for name in names) > LONGEST_NAME:
                break
            # One file where neither case nor the way that accents are written matters
            if len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names):
                return names
    return [f"{number}_{path.stem[: LONGEST_NAME // 8]}" for number, path in enumerate(paths, start=1)]
