r"""How right are the answers of `promptcam predict` with `--only`, `--unknown-below` and `--roll-up`? Prints Markdown
tables for labelled photographs.

    python examples/answers_study.py --model runs/birds20 --data photos/test \
        --roll-up examples/birds20_genus.csv
"""

import argparse
import logging

import numpy as np
import torch
from tqdm.auto import tqdm

from promptcam_hf import PromptCamPredictor
from promptcam_hf.data.splits import read_label_map
from promptcam_hf.explanation.answers import CLASS, GROUP, UNKNOWN, AnswerRule
from promptcam_hf.explanation.sources import collect

REGIONS, REGION_SHARE = 20, 0.5  # random regions, and how many of the classes occur in each
LEVELS = (0.3, 0.5, 0.7, 0.9)


def probabilities_of(model: str, data: str) -> tuple[list[str], np.ndarray, torch.Tensor]:
    """The classes, the true class of each photograph, and the probabilities `(photographs, classes)`."""
    predictor = PromptCamPredictor(model, top_k=10**6)  # of all classes
    names, collection = predictor.names, collect(data)
    number = {name: label for label, name in enumerate(names)}
    truths, rows = [], []
    with tqdm(total=len(collection), unit="photo") as bar:
        for columns in predictor.stream(collection.read(0, len(collection))):
            bar.update(len(columns["error"]))
            for row, truth in enumerate(columns["truth"]):
                if truth is not None and columns["error"][row] is None:
                    truths.append(number[truth])
                    scores = np.zeros(len(names))
                    scores[[number[name] for name in columns["top_labels"][row]]] = columns["top_scores"][row]
                    rows.append(scores)
    return names, np.array(truths), torch.tensor(np.array(rows))


def study_only(truths: np.ndarray, scores: torch.Tensor, seed: int = 0) -> None:
    """Photographs of the classes of random regions, answered with all classes, and with those of the region only."""
    random, all_classes, region_only = np.random.default_rng(seed), [], []
    for _ in range(REGIONS):
        region = random.choice(scores.shape[1], round(REGION_SHARE * scores.shape[1]), replace=False)
        here = np.isin(truths, region)
        if not here.any():
            continue
        kept = torch.zeros_like(scores[here])
        kept[:, region] = scores[here][:, region]
        all_classes.append((scores[here].argmax(-1).numpy() == truths[here]).mean())
        region_only.append((kept.argmax(-1).numpy() == truths[here]).mean())
    print(
        f"\n`--only`: {REGIONS} random regions with {REGION_SHARE:.0%} of the classes, photographs of these classes\n"
    )
    print("| | accuracy |\n|---|---|")
    print(f"| all {scores.shape[1]} classes | {np.mean(all_classes):.1%} |")
    print(f"| `--only` those of the region | {np.mean(region_only):.1%} |")


def study_levels(names: list[str], truths: np.ndarray, scores: torch.Tensor, groups: dict[str, str] | None) -> None:
    """How many photographs are answered at which level, and how many of these answers are right."""
    print(f"\n`--unknown-below`{', `--roll-up`' if groups else ''}: share of the photographs, and how many are right\n")
    print("| probability | class | right | group | right | unknown |\n|---|---|---|---|---|---|")
    for least in LEVELS:
        answers = AnswerRule(names, least, groups)(scores)
        cells = []
        for level in (CLASS, GROUP):
            truth_of = (lambda name: name) if level == CLASS else (groups or {}).get
            right = [
                answer.label == truth_of(names[truth])
                for answer, truth in zip(answers, truths, strict=True)
                if answer.level == level
            ]
            cells += [f"{len(right) / len(answers):.1%}", f"{np.mean(right):.1%}" if right else "-"]
        unknown = sum(answer.level == UNKNOWN for answer in answers) / len(answers)
        print(f"| {least} | {' | '.join(cells)} | {unknown:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--data", required=True, help="test photographs, in a folder for each class")
    parser.add_argument("--roll-up", help="CSV file with the columns class,group")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    names, truths, scores = probabilities_of(arguments.model, arguments.data)
    accuracy = (scores.argmax(-1).numpy() == truths).mean()
    print(f"{len(truths)} photographs of {len(set(truths))} classes; accuracy {accuracy:.1%}")
    study_only(truths, scores)
    study_levels(names, truths, scores, None)
    if arguments.roll_up:
        study_levels(names, truths, scores, read_label_map(arguments.roll_up, names))


if __name__ == "__main__":
    main()
