"""Error messages, and parts of them."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def first_line(error: BaseException | str) -> str:
    """The first line of an error's message; the name of its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Why something that goes through the cache of Hugging Face could not be read: the first line of the error or, if
    the cache cannot be written to, that and what to do."""
    from huggingface_hub import constants  # slow to import

    source: BaseException | None = error
    while source is not None:
        if isinstance(source, OSError) and source.errno in CANNOT_WRITE:
            path = Path(str(source.filename or constants.HF_HOME))
            if path.is_relative_to(constants.HF_HOME):
                return (
                    f"a copy cannot be written to {path}: {source.strerror}; set HF_HOME to a folder that can be "
                    "written, on a disk with space"
                )
        source = source.__cause__ or source.__context__
    return first_line(error)


def cause(error: BaseException | str) -> str:
    """An error's message; of one from a worker process, without the traceback that torch makes part of the message."""
    text = str(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """
    The end of a message about an unknown name: `; did you mean 'Scott_Oriole'?`

    Args:
        name: The unknown name.
        known: All known names.
        otherwise: The end of the message if no known name is similar.
    """
    matches = get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else otherwise


def plural(noun: str) -> str:
    """bird -> birds, finch -> finches."""
    return noun + ("es" if noun.endswith(("ch", "sh", "s", "x")) else "s")


def counted(number: int, noun: str) -> str:
    """`1 photograph`, `2 photographs`."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def check_counts(least: int = 1, /, **counts: int | None) -> None:
    """Raise a `ValueError` that names the first of the options that is less than `least`. None is not given."""
    for name, count in counts.items():
        if count is not None and count < least:
            raise ValueError(f"{name}={count}: expected {least} or more.")


def check_installed(extra: str, *packages: str) -> None:
    """
    Refuse work for which an extra of this package has to be installed.

    Args:
        extra: The name of the extra.
        packages: What it installs, by the names that are imported.

    Raises:
        ModuleNotFoundError: If one of them is missing; the message says how to install it.
    """
    for package in packages:
        if find_spec(package) is None:
            hint = f"{package} is not installed; run: {install_command(extra)}"
            raise ModuleNotFoundError(hint, name=package)


def install_command(extra: str) -> str:
    """How to install an extra of this package."""
    return f"pip install 'promptcam-hf[{extra}]', or in a clone: pip install '.[{extra}]'"


def listed(names: Iterable[str], most: int = 10) -> str:
    """Join names, at most `most` of them: `a, b, c and 12 more`."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
