"""An identification key: questions about traits that lead from a photograph to a species.

A couplet asks whether a photograph shows a trait, or whether it shows one look of a part rather than the others, and
sends some species one way and the others the other way. How well a photograph shows a trait is the largest cosine
similarity of a patch to the trait's centroid; the couplet has the threshold. So the key can be followed automatically,
and what it asks does not depend on what the model classifies the photograph as.

Shapes: n photographs, T traits, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..data.class_names import readable


@dataclass(frozen=True)
class Question:
    """
    What a couplet asks.

    Args:
        trait: The trait, counted from 0.
        part: Its part, counted from 0.
        others: The other looks of the part, if the question is whether the trait is there rather than they.
    """

    trait: int
    part: int
    others: tuple[int, ...] = ()

    def value(self, scores: np.ndarray) -> np.ndarray:
        """The larger, the more the answer is yes: `(...)` from scores `(..., T)`."""
        own = scores[..., self.trait]
        return own - scores[..., list(self.others)].max(-1) if self.others else own

    def words(self, names: Sequence[str]) -> tuple[str, str]:
        """The answers yes and no in words, from what to call each trait."""
        name = names[self.trait]
        if self.others:
            return f"more like {name} than other looks of part {self.part + 1}", f"less like {name}"
        return name, f"no {name}"


@dataclass(eq=False)
class Couplet:
    """
    A question, and where its answers lead.

    Args:
        number: Its number in the key, from 1.
        question: What it asks.
        threshold: The answer is yes if the question's value is larger.
        yes, no: The next couplet, or a class.
        yes_classes, no_classes: The classes that either answer leads to.
    """

    number: int
    question: Question
    threshold: float
    yes: "Couplet | int"
    no: "Couplet | int"
    yes_classes: list[int]
    no_classes: list[int]

    def couplets(self) -> Iterator["Couplet"]:
        """This couplet and those it leads to, by number."""
        yield self
        for branch in (self.yes, self.no):
            if isinstance(branch, Couplet):
                yield from branch.couplets()

    def follow(self, scores: np.ndarray) -> int:
        """The class that the key leads to for one photograph's scores `(T,)`."""
        branch = self.yes if self.question.value(scores) > self.threshold else self.no
        return branch.follow(scores) if isinstance(branch, Couplet) else branch

    def is_right(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Of the photographs of the couplet's classes, whether each is sent the right way, bool."""
        inside = np.isin(labels, self.yes_classes + self.no_classes)
        says_yes = self.question.value(scores[inside]) > self.threshold
        return says_yes == np.isin(labels[inside], self.yes_classes)


def build_key(scores: np.ndarray, labels: np.ndarray, part: np.ndarray) -> Couplet:
    """
    Build a key with one couplet fewer than there are classes. Each couplet is the question whose answers say most about
    the class (mutual information, all classes equally frequent); each class goes the way that most of its photographs
    go.

    Args:
        scores: How well training photographs show each trait, `(n, T)`.
        labels: Their classes `(n,)`.
        part: The part of each trait `(T,)`.

    Raises:
        ValueError: If there are fewer than two classes, or no trait tells some of them apart.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError("A key needs training photographs of two classes or more.")
    questions = []
    for trait, number in enumerate(part.tolist()):
        others = tuple(other for other in np.flatnonzero(part == number).tolist() if other != trait)
        questions += [Question(trait, number), Question(trait, number, others)] if others else [Question(trait, number)]
    values = np.stack([question.value(scores) for question in questions], axis=1)
    key, _ = _branch(questions, values, labels, classes.tolist(), 1)
    assert isinstance(key, Couplet)
    return key


def _branch(
    questions: Sequence[Question], values: np.ndarray, labels: np.ndarray, classes: list[int], number: int
) -> tuple[Couplet | int, int]:
    """The key for some classes, and the number that is free after it."""
    if len(classes) == 1:
        return classes[0], number
    best, threshold, says_yes = _best_question(values, labels, classes)
    yes_classes = [name for name, yes in zip(classes, says_yes, strict=True) if yes]
    no_classes = [name for name, yes in zip(classes, says_yes, strict=True) if not yes]
    yes, after = _branch(questions, values, labels, yes_classes, number + 1)
    no, after = _branch(questions, values, labels, no_classes, after)
    return Couplet(number, questions[best], threshold, yes, no, yes_classes, no_classes), after


def _best_question(values: np.ndarray, labels: np.ndarray, classes: list[int]) -> tuple[int, float, np.ndarray]:
    """The question (by its column) and the threshold that say most about the class, and whether each class answers
    yes."""
    by_class = [values[labels == name] for name in classes]
    medians = np.sort(np.stack([np.median(rows, axis=0) for rows in by_class]), axis=0)  # (classes, questions)
    best: tuple[float, int, float, np.ndarray] | None = None
    for lower, upper in pairwise(medians):
        thresholds = (lower + upper) / 2
        share = np.stack([(rows > thresholds).mean(0) for rows in by_class])  # of photographs that answer yes
        information = _entropy(share.mean(0)) - _entropy(share).mean(0)
        splits = (share > 0.5).any(0) & (share <= 0.5).any(0)
        information = np.where(splits, information, -1.0)
        column = int(information.argmax())
        if information[column] >= 0 and (best is None or information[column] > best[0]):
            best = (float(information[column]), column, float(thresholds[column]), share[:, column] > 0.5)
    if best is None:
        raise ValueError(f"No trait tells the classes {classes} apart; expected a vocabulary with more traits.")
    return best[1:]


def _entropy(share: np.ndarray) -> np.ndarray:
    """Of a yes/no answer, in bits."""
    share = np.clip(share, 1e-12, 1 - 1e-12)
    return -(share * np.log2(share) + (1 - share) * np.log2(1 - share))


def key_text(key: Couplet, names: Sequence[str], traits: Sequence[str]) -> str:
    """
    A key as field guides print it.

    Args:
        key: The first couplet.
        names: The names of the classes.
        traits: What to call each trait.

    Returns:
        Two lines a couplet: `1a  red crown ... 2` and `1b  no red crown ... Scott Oriole`.
    """
    couplets = sorted(key.couplets(), key=lambda couplet: couplet.number)
    width = 10 + max(len(words) for couplet in couplets for words in couplet.question.words(traits))
    lines = []
    for couplet in couplets:
        answers = zip("ab", couplet.question.words(traits), (couplet.yes, couplet.no), strict=True)
        for letter, words, branch in answers:
            target = str(branch.number) if isinstance(branch, Couplet) else readable(names[branch])
            lines.append(f"{f'{couplet.number}{letter}'.ljust(6)}{words} ".ljust(width, ".") + f" {target}")
        lines.append("")
    return "\n".join(lines)
