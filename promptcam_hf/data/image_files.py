"""Which files are photographs. Training, evaluation and `explain` use this one list of file types."""

import os
from collections import Counter
from pathlib import Path

from PIL import Image

from ..messages import counted, install_command

try:
    from pillow_heif import register_heif_opener
except ImportError:  # the optional extra "heif"
    pass
else:
    register_heif_opener()

# Folders that other programs leave behind; folders that start with a dot are hidden, too
_HIDDEN_FOLDERS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
# Types that Pillow knows, but only identifies, or hands to another program
_NOT_PHOTOGRAPHS = {".bufr", ".emf", ".eps", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".ps", ".wmf"}
HEIF_SUFFIXES = {".heic", ".heics", ".heif", ".heifs", ".hif"}
# Endings, in lower case, of the files that are photographs: all that Pillow reads, with pillow-heif also HEIC
IMAGE_SUFFIXES = (
    frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN) - _NOT_PHOTOGRAPHS
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that other programs leave behind, such as `__MACOSX`."""
    return name.startswith(".") or name in _HIDDEN_FOLDERS


def is_photograph(path: str | os.PathLike) -> bool:
    """Whether a file is a photograph by its ending or, if it has no ending, by its contents. Hidden files are not."""
    path = Path(path)
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix:
        return path.suffix.lower() in IMAGE_SUFFIXES
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow raises errors of any type
        return False


def find_photographs(folder: str | os.PathLike) -> tuple[list[Path], Counter[str]]:
    """
    Find the photographs in a folder and its subfolders; links are followed, hidden files and folders left out.

    Args:
        folder: The folder.

    Returns:
        The photographs, sorted, and how many other files there are of each kind, such as `{".txt": 3}`; `left_out`
        puts these into words.
    """
    photographs: list[Path] = []
    others: Counter[str] = Counter()
    visited: set[str] = set()  # as links may lead in a circle
    for root, folders, files in os.walk(os.fspath(folder), followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in visited else sorted(name for name in folders if not is_hidden(name))
        for name in [] if real in visited else files:
            path = Path(root, name)
            if not _is_text(str(path)):
                others["a name that is not UTF-8"] += 1
            elif is_photograph(path):
                photographs.append(path)
            elif not name.startswith("."):
                others[path.suffix.lower() or "no ending"] += 1
        visited.add(real)
    return sorted(photographs), others


def left_out(others: Counter[str]) -> str:
    """The files that are no photographs in words: `3 files left out (2 with .heic, 1 with .txt); ...`."""
    kinds = ", ".join(f"{count} with {kind}" for kind, count in sorted(others.items(), key=lambda x: (-x[1], x[0])))
    missing = HEIF_SUFFIXES - IMAGE_SUFFIXES
    hint = f"; to read HEIC files: {install_command('heif')}" if missing & set(others) else ""
    return f"{counted(sum(others.values()), 'file')} left out ({kinds}){hint}"


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: file systems also hold names in other encodings."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
