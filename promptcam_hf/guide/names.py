"""Names that people give to traits, in `names.csv` with the columns `trait` and `name`.

`promptcam traits` writes the file with empty names. Fill in those that you have a word for: "red crown". A trait
without a name is called "trait 12".
"""

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from ..data.class_names import plain_name, read_text
from ..files import write_atomically
from .vocabulary import Vocabulary, unit

NAMES, LOST_NAMES = "names.csv", "names_without_trait.csv"
SAME_TRAIT = 0.8  # cosine similarity of centroids from which on a trait of another clustering counts as the same


def read_names(folder: Path, num_traits: int | None = None) -> dict[int, str]:
    """
    The names in a folder's `names.csv`.

    Args:
        folder: The folder. Without the file, there are no names.
        num_traits: How many traits there are. Default: do not check.

    Returns:
        Trait, counted from 1 -> name, for those that have one.

    Raises:
        ValueError: If the file has other columns, an unknown trait, a trait with two names, or a name of two traits.
    """
    file = folder / NAMES
    if not file.is_file():
        return {}
    rows = csv.DictReader(StringIO(read_text(file), newline=""))
    if not {"trait", "name"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{file}: its first line is {','.join(rows.fieldnames or ())}; expected trait,name.")
    names: dict[int, str] = {}
    traits: dict[str, int] = {}
    for row in rows:
        where, name = f"{file}, line {rows.line_num}", plain_name(row["name"] or "")
        if not name:
            continue
        number = (row["trait"] or "").strip()
        if not number.isdecimal() or not 1 <= int(number) <= (num_traits or int(number)):
            expected = f"1 to {num_traits}" if num_traits else "a number"
            raise ValueError(f"{where}: there is no trait {number!r}; expected {expected}.")
        trait = int(number)
        if names.get(trait, name) != name:
            raise ValueError(f"{where}: trait {trait} is called {name!r}, and {names[trait]!r} above; keep one name.")
        if traits.setdefault(name.casefold(), trait) != trait:
            other = traits[name.casefold()]
            raise ValueError(f"{where}: trait {trait} is called {name!r}, as trait {other} is; give each its own name.")
        names[trait] = name
    return names


def write_names(folder: Path, names: Mapping[int, str], num_traits: int) -> None:
    """Write `names.csv` with a row for each trait."""
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("trait", "name"))
    rows.writerows((trait, names.get(trait, "")) for trait in range(1, num_traits + 1))
    write_atomically(folder / NAMES, text.getvalue())


def display_name(names: Mapping[int, str], trait: int) -> str:
    """What to call a trait, counted from 1."""
    return names.get(trait, f"trait {trait}")


def match_traits(old: Vocabulary, new: Vocabulary) -> dict[int, int]:
    """
    Traits of one clustering that are those of another: the pairing with the largest sum of cosine similarities of
    centroids, less the pairs that are too unlike.

    Args:
        old, new: The clusterings.

    Returns:
        Trait of `old` -> trait of `new`, counted from 1. Empty if they are of different backbones.
    """
    from scipy.optimize import linear_sum_assignment

    if old.centroids.shape[1] != new.centroids.shape[1]:
        return {}
    similarity = unit(old.centroids) @ unit(new.centroids).T
    pairs = zip(*linear_sum_assignment(similarity, maximize=True), strict=True)
    return {int(a) + 1: int(b) + 1 for a, b in pairs if similarity[a, b] >= SAME_TRAIT}


def carry_names(folder: Path, old: Vocabulary, new: Vocabulary) -> list[str]:
    """
    Give the names of a clustering to the same traits of a new one. Names without such a trait are added to
    `names_without_trait.csv`, so that none is lost.

    Args:
        folder: The folder with `names.csv`, which is written anew.
        old, new: The clusterings.

    Returns:
        The names that no trait has any more.

    Raises:
        ValueError: If `names.csv` does not fit the old clustering.
    """
    names, matches = read_names(folder, len(old)), match_traits(old, new)
    lost = [name for trait, name in names.items() if trait not in matches]
    if lost:
        file = folder / LOST_NAMES
        before = read_text(file) if file.is_file() else "trait,name\n"
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            (trait, name) for trait, name in names.items() if trait not in matches
        )
        write_atomically(file, before + text.getvalue())
    write_names(folder, {matches[trait]: name for trait, name in names.items() if trait in matches}, len(new))
    return lost
