"""Which photographs to explain, and what to call their contact sheets."""

import codecs
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from pathlib import Path

from ..data.image_files import find_photographs as in_folder
from ..data.image_files import left_out
from ..messages import counted, listed
from .drawing import is_sheet

logger = logging.getLogger(__name__)
URI = re.compile(r"[A-Za-z][\w+.-]+://|data:image/")
LONGEST_NAME = 200  # bytes; file systems allow 255, of which drafts and endings take some


def find_photographs(photographs: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str | Path]:
    """
    Find photographs. Contact sheets are none, unless they are named one by one.

    Args:
        photographs: Files, URLs, patterns such as `photos/*.jpg`, or folders to search, subfolders included; hidden
            files and folders are left out. `@list.txt` stands for the files and URLs that a text file lists, one in
            each line, and `-` for those that standard input lists.

    Returns:
        Paths and URLs, each once, in the order given; those of a folder or pattern are sorted.

    Raises:
        ValueError: If there are none, or a folder, pattern or list has none.
    """
    given = [photographs] if isinstance(photographs, (str, os.PathLike)) else photographs
    found: list[str | Path] = []
    for source in [os.fspath(path) for path in given]:
        if URI.match(source):
            found.append(source)
        elif source == "-" or (source.startswith("@") and not os.path.lexists(source)):
            found += _listed(source)
        elif os.path.isdir(source):
            files, others = in_folder(source)
            files = [path for path in files if not is_sheet(path)]
            rest = f"; {left_out(others)}" if others else ""
            if not files:
                raise ValueError(f"{source} holds no images; expected files such as {Path(source, 'bird.jpg')}{rest}.")
            if rest:
                logger.warning("%s: %s%s", source, counted(len(files), "photograph"), rest)
            found += files
        elif has_magic(source) and not os.path.lexists(source):
            files = [path for path in map(Path, sorted(glob(source, recursive=True))) if path.is_file()]
            if not files:
                raise ValueError(f"{source}: no such file, and no files that match this pattern.")
            found += [path for path in files if not is_sheet(path)]
        else:
            found.append(Path(source))
    if not found:
        raise ValueError("No photographs given; expected 1 or more.")
    return list(dict.fromkeys(found))


def check_any_exists(sources: Sequence[str | Path]) -> None:
    """Raise a `ValueError` if all sources are paths and lead nowhere, as with a mistyped folder. Among others, one that
    is missing stops nothing."""
    if sources and not any(URI.match(str(source)) or os.path.exists(source) for source in sources):
        raise ValueError(f"{listed(map(str, sources), 3)}: no such file or folder.")


def _listed(source: str) -> list[str | Path]:
    """The files and URLs in the lines of a text file, `@list.txt`, or of standard input, `-`."""
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source[1:]).read_bytes()
    except OSError as error:
        raise ValueError(f"{source[1:]}: the list of photographs cannot be read ({error.strerror}).") from None
    # As the system encodes file names; they may hold any bytes but the end of a line
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in content.removeprefix(codecs.BOM_UTF8).split(b"\n")]
    if not any(lines):
        name = "Standard input" if source == "-" else source[1:]
        raise ValueError(f"{name} lists no photographs; expected a file or URL in each line.")
    return [line if URI.match(line) else Path(line) for line in lines if line]


def identities(paths: Iterable[str | os.PathLike]) -> set[tuple[int, int]]:
    """What is the same for two paths if, and only if, they lead to the same file. URLs and missing files have none."""
    found = set()
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        found.add((status.st_dev, status.st_ino))
    return found


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
