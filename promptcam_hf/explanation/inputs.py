"""Which photographs to explain, and what to call their contact sheets."""

import logging
import os
import unicodedata
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from ..data.image_files import find_photographs as in_folder
from ..data.image_files import left_out
from ..modeling.images_promptcam import URL_SCHEMES
from .drawing import is_sheet

logger = logging.getLogger(__name__)
LONGEST_NAME = 200  # bytes; file systems allow 255, of which drafts and endings take some


def find_photographs(photographs: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str | Path]:
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
    for source in [os.fspath(path) for path in given]:
        if source.startswith(URL_SCHEMES):
            found.append(source)
        elif os.path.isdir(source):
            files, others = in_folder(source)
            files = [path for path in files if not is_sheet(path)]
            rest = f"; {left_out(others)}" if others else ""
            if not files:
                raise ValueError(f"{source} holds no images; expected files such as {Path(source, 'bird.jpg')}{rest}.")
            if rest:
                logger.warning("%s: %d photographs%s", source, len(files), rest)
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
