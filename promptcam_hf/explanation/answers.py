"""What to answer, given the probabilities of all classes: a class, a group such as its genus, or "unknown"."""

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch

from ..data.class_names import plain_name, read_text
from ..data.splits import read_label_map
from ..messages import counted, did_you_mean, listed
from ..modeling.pipeline_promptcam import alike_names, loose_name

logger = logging.getLogger(__name__)

CLASS, GROUP, UNKNOWN = "class", "group", "unknown"  # levels of an answer
ROLL_UP_BELOW = 0.5  # probability of a class below which its group is answered, unless another is asked for


class Answer(NamedTuple):
    """
    The answer for a photograph.

    Args:
        label: A class, a group of classes, or "unknown".
        score: Its probability, in [0, 1]; of "unknown" that of the most probable class.
        level: Which of these it is: "class", "group" or "unknown".
    """

    label: str
    score: float
    level: str


class AnswerRule:
    """
    Answers the most probable class, unless it is not probable enough.

    Args:
        names: Names of the classes, in the order of their labels.
        unknown_below: The least probability of an answer, in [0, 1]; below it, the answer is "unknown". Default: 0, or
            0.5 with `roll_up`.
        roll_up: Group of each class, such as its genus; or a CSV file with the columns `class` and `group`. A group is
            answered if no class reaches the least probability, but the classes of the group together do.

    Raises:
        ValueError: If the probability is out of range, or the groups cannot be read or do not fit the classes.
    """

    def __init__(
        self,
        names: Sequence[str],
        unknown_below: float | None = None,
        roll_up: Mapping[str, str] | str | os.PathLike | None = None,
    ):
        if unknown_below is not None and not 0 <= unknown_below <= 1:
            raise ValueError(f"unknown_below={unknown_below}: expected a probability, 0 to 1.")
        self.names = list(names)
        default = 0.0 if roll_up is None else ROLL_UP_BELOW
        self.least = default if unknown_below is None else unknown_below
        self.groups: list[str] = []
        if roll_up is not None:
            groups = roll_up if isinstance(roll_up, Mapping) else read_label_map(roll_up, self.names)
            if missing := [name for name in self.names if name not in groups]:
                raise ValueError(f"roll_up: no group for the class {missing[0]!r}.")
            self.groups = sorted(set(groups.values()))
            numbers = {group: number for number, group in enumerate(self.groups)}
            self.group_of = torch.tensor([numbers[groups[name]] for name in self.names])

    def __call__(self, probabilities: torch.Tensor) -> list[Answer]:
        """The answers for photographs, from the probabilities `(photographs, classes)` of all classes."""
        scores, labels = probabilities.max(dim=-1)
        answers = [
            Answer(self.names[label], score, CLASS) if score >= self.least else Answer(UNKNOWN, score, UNKNOWN)
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]
        if self.groups:
            sums = probabilities.new_zeros(len(probabilities), len(self.groups))
            sums.index_add_(1, self.group_of.to(probabilities.device), probabilities)
            best = zip(*(values.tolist() for values in sums.max(dim=-1)), strict=True)
            answers = [
                Answer(self.groups[group], score, GROUP) if answer.level == UNKNOWN and score >= self.least else answer
                for answer, (score, group) in zip(answers, best, strict=True)
            ]
        return answers


def read_class_list(path: str | os.PathLike, names: Sequence[str]) -> list[str]:
    """
    The classes of a model that a file names, such as the species of a region. Others in the file, which the model does
    not know, are left out with a warning.

    Args:
        path: A CSV file with the column `class`, or a text file with one class per line.
        names: Names of the model's classes.

    Returns:
        Names of the model, in its order.

    Raises:
        ValueError: If the file cannot be read, or names fewer than two of the model's classes.
    """
    text = read_text(path)
    header = next(csv.reader(StringIO(text, newline="")), [])
    if "class" in header:
        listing = [row["class"] or "" for row in csv.DictReader(StringIO(text, newline=""))]
    elif len(header) > 1:
        raise ValueError(f"{path}: its first line is {','.join(header)}; expected a column 'class'.")
    else:
        listing = text.splitlines()
    given = dict.fromkeys(name for name in map(plain_name, listing) if name)
    own, alike = set(names), alike_names(names)
    found = {name: [name] if name in own else alike.get(loose_name(name), []) for name in given}
    meant = {matches[0] for matches in found.values() if len(matches) == 1}
    known = [name for name in names if name in meant]
    unknown = [name for name, matches in found.items() if len(matches) != 1]
    hint = did_you_mean(unknown[0], names, ".") if unknown else "."
    if len(known) < 2:
        too_few = f"it names {len(known)} of the model's {len(names)} classes; expected two or more"
        raise ValueError(f"{path}: {too_few}{f', but the model knows no {unknown[0]!r}{hint}' if unknown else '.'}")
    if unknown:
        total = f"{len(unknown)} of {counted(len(given), 'class')}"
        logger.warning("%s: the model does not know %s: %s%s", Path(path), total, listed(unknown, most=3), hint)
    return known
