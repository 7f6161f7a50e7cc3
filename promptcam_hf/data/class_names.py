"""Class names, as labels and as the names of folders spell them."""

import codecs
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def plain_name(name: str) -> str:
    """A class name in one line: single spaces for white space, composed letters (Unicode NFC), `?` for what is no
    text."""
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    return name.encode("utf-8", "replace").decode()


def readable(name: str) -> str:
    """A class name as people read it, with spaces in the place of underscores."""
    return name.replace("_", " ")


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted as people count: `2` before `10`, `plot 2` before `plot 10`."""

    def key(name: str) -> list[tuple[bool, int, str]]:
        return [(not number, int(number or 0), text) for number, text in re.findall(r"(\d{1,18})|(\D+)", name)]

    return sorted(names, key=lambda name: (key(name), name))  # as `01` and `1` are the same number


def plain_names(names: Iterable[str], where: str) -> dict[str, str]:
    """
    The plain names of classes that are different.

    Args:
        names: Different names, as the data spell them.
        where: Where they come from; it starts the error message.

    Returns:
        The names -> their plain names.

    Raises:
        ValueError: If a plain name is empty, or two names have the same one.
    """
    spellings: dict[str, str] = {}
    for name in names:
        plain = plain_name(name)
        if not plain:
            raise ValueError(f"{where}: a class has the name {name!r}; expected letters.")
        if plain in spellings:
            raise ValueError(f"{where}: the class names {spellings[plain]!r} and {name!r} look the same; rename one.")
        spellings[plain] = name
    return {name: plain for plain, name in spellings.items()}


def read_text(path: str | os.PathLike) -> str:
    """
    Read a text file as spreadsheets write it: UTF-8, UTF-16 with a byte order mark, or else Windows-1252, which holds
    the letters of Latin-1.

    Args:
        path: The file.

    Returns:
        Its contents, with the line ends that it has.

    Raises:
        ValueError: If there is no such file, or it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
