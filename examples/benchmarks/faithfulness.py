"""Are Prompt-CAM's maps faithful on plain photographs, and more so than the alternatives? One table, with intervals.

    python examples/benchmarks/faithfulness.py --model runs/birds --data photos/ --output-dir runs/faithfulness

Classifiers and maps are those of `traits.py` without `LEFT_OUT`; no masks are needed. It measures photographs that both
classifiers get right, the same number of each class if there are enough. Each map is judged by the classifier that it
explains, and by the other one: insertion and deletion (areas under the curve) and relative drop
(RD@5 % against the classifier's runner-up), as in `promptcam_hf/evaluation/faithfulness.py`.

`faithfulness.csv` has a row for each photograph, map and judge, and `table.md` the means with 95 % intervals (bootstrap
over photographs). The same command measures what the file lacks: the rest after an interruption, more photographs with
a larger `--images`, or a map that is new here.
"""

import csv
import io
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from promptcam_hf.evaluation.explainers import TOP_MAPS, explainer_maps
from promptcam_hf.evaluation.faithfulness import DROPPED, area_under, blurred, interval_of_mean, pixel_ranks
from promptcam_hf.files import write_atomically

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.traits import (
    CLASSIFIERS,
    PROBE,
    PROMPT_CAM,
    Comparison,
    Function,
    Method,
    open_comparison,
    options_of_comparison,
)

FIELDS = ("photograph", "classifier", "maps", "judge", "insertion", "deletion", "relative_drop")
MEASURES = FIELDS[4:]
# Both classifiers judge all maps, so random ones are needed once. The other two are to explain rows of `traits.py`
LEFT_OUT = {(PROBE, "random maps"), (PROBE, "[CLS] attention, mean"), (PROMPT_CAM, "difference of attention")}


class Trial:
    """
    Images and a class of each, before judges that see them piece by piece. What does not depend on a map is computed
    once: the probabilities of the whole image, of the blurred one and of the blank one.

    Args:
        judges: Both classifiers' probabilities `(2, B, C)` for images `(B, 3, H, W)`.
        pixel_values: Images `(B, 3, H, W)`.
        classes: One class per image `(B,)`.
        steps: Steps of the curves.
    """

    def __init__(self, judges: Function, pixel_values: torch.Tensor, classes: torch.Tensor, steps: int):
        self.judges, self.steps = judges, steps
        self.own = classes.expand(2, -1)[..., None]  # (2, B, 1)
        self.images = {"whole": pixel_values, "blurred": blurred(pixel_values), "blank": torch.zeros_like(pixel_values)}
        self.probabilities = {name: judges(images) for name, images in self.images.items()}  # (2, B, C)
        self.runners_up = self.probabilities["whole"].scatter(-1, self.own, -1).argmax(-1, keepdim=True)

    def measure(self, maps: torch.Tensor) -> torch.Tensor:
        """`MEASURES` of maps `(B, h, w)`, by both judges: `(3, 2, B)`."""
        rank = pixel_ranks(maps, self.images["whole"])
        fall = self.probabilities["whole"] - self.mixed(rank, "whole", "blank", DROPPED)
        relative_drop = (fall.gather(-1, self.own) - fall.gather(-1, self.runners_up))[..., 0]
        areas = [area_under(self.curve(rank, *ends)) for ends in (("blurred", "whole"), ("whole", "blank"))]
        return torch.stack([*areas, relative_drop])

    def curve(self, rank: torch.Tensor, start: str, end: str) -> torch.Tensor:
        """The class's probability `(2, B, steps + 1)` while one image is replaced by another."""
        between = [self.mixed(rank, start, end, step / self.steps) for step in range(1, self.steps)]
        curve = [self.probabilities[start], *between, self.probabilities[end]]
        return torch.cat([probabilities.gather(-1, self.own) for probabilities in curve], dim=-1)

    def mixed(self, rank: torch.Tensor, start: str, end: str, share: float) -> torch.Tensor:
        """The probabilities `(2, B, C)` once a share of the pixels is replaced, those of the lowest rank first."""
        is_replaced = rank < round(rank[0].numel() * share)
        return self.judges(torch.where(is_replaced, self.images[end], self.images[start]))


def spread_over_classes(labels: list[int]) -> list[int]:
    """The rows in an order in which any number of the first ones has about the same number of each class."""
    seen: dict[int, int] = defaultdict(int)
    turn = []
    for row, label in enumerate(labels):
        turn.append((seen[label], label, row))
        seen[label] += 1
    return [row for _, _, row in sorted(turn)]


def read_rows(file: Path) -> list[dict[str, str]]:
    """What an earlier run measured: whole lines, of maps that both classifiers judged."""
    if not file.is_file():
        return []
    lines, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    rows = list(csv.DictReader(io.StringIO(lines)))
    judges = Counter(map(key_of, rows))
    return [row for row in rows if judges[key_of(row)] == len(CLASSIFIERS)]


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    """Photograph, classifier and maps."""
    return tuple(row[field] for field in FIELDS[:3])


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, FIELDS, lineterminator="\n").writerows(rows)
    return text.getvalue()


def run(comparison: Comparison, judges: Function, file: Path, num_images: int, steps: int) -> list[dict[str, str]]:
    """Measure what is not in the file yet, and append it there. Returns all of its rows."""
    data, size = comparison.without_parts, comparison.batch_size
    methods = [method for method in comparison.methods_without_masks() if method[:2] not in LEFT_OUT]
    done = read_rows(file)
    write_atomically(file, ",".join(FIELDS) + "\n" + as_csv(done))
    keys = set(map(key_of, done))
    wanted = spread_over_classes(data.labels)[:num_images]
    for batch in tqdm([wanted[start : start + size] for start in range(0, len(wanted), size)], unit="batch"):
        names = [data.photographs.name(row) for row in batch]
        left = [method for method in methods if any((name, *method[:2]) not in keys for name in names)]
        if not left:
            continue
        pixel_values = torch.stack([data.photographs[row]["pixel_values"] for row in batch])
        classes = torch.tensor([data.labels[row] for row in batch])
        trial = Trial(judges, pixel_values, classes, steps)
        found: list[dict] = []
        for classifier, maps_name, maps in left:
            explainer = Method(maps_name, comparison.logits[classifier], maps)
            order = explainer_maps(explainer, pixel_values, classes)[:, :TOP_MAPS].sum(1)
            values = trial.measure(order)
            for judge, (index, name) in ((j, x) for j in range(2) for x in enumerate(names)):
                numbers = [f"{number:.6f}" for number in values[:, judge, index].tolist()]
                fields = (name, classifier, maps_name, CLASSIFIERS[judge], *numbers)
                found.append(dict(zip(FIELDS, fields, strict=True)))
        with open(file, "a", encoding="utf-8") as record:
            record.write(as_csv([row for row in found if key_of(row) not in keys]))
            record.flush()
            os.fsync(record.fileno())
    return read_rows(file)


def table(rows: list[dict[str, str]]) -> str:
    """The means and their intervals, as a Markdown table."""
    values: dict[tuple[str, str, bool], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for measure in MEASURES:
            is_own = row["judge"] == row["classifier"]
            values[row["classifier"], row["maps"], is_own][measure].append(float(row[measure]))

    def cell(numbers: list[float]) -> str:
        low, high = interval_of_mean(np.array(numbers))
        return f"{np.mean(numbers):.3f} ({low:.3f} to {high:.3f})"

    heading = ["classifier", "maps", *(f"{name}{who}" for who in ("", ", other") for name in MEASURES)]
    lines = [heading, ["---"] * len(heading)]
    for classifier, name, is_own in values:
        if is_own:
            own, other = (values[classifier, name, who] for who in (True, False))
            lines.append([classifier, name, *(cell(group[measure]) for group in (own, other) for measure in MEASURES)])
    text = "\n".join(f"| {' | '.join(line).replace('_', ' ')} |" for line in lines)
    return f"{len({row['photograph'] for row in rows})} photographs.\n\n{text}\n"


def main() -> None:
    parser = options_of_comparison(__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the CSV file, table and probe")
    parser.add_argument("--images", type=int, default=200, help="number of photographs")
    parser.add_argument("--steps", type=int, default=10, help="steps of the insertion and deletion curves")
    parser.add_argument("--bfloat16", action="store_true", help="classify in bfloat16; maps stay in float32")
    args = parser.parse_args()
    try:
        precision = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bfloat16)
        with precision:
            comparison = open_comparison(args, args.output_dir, steps=args.steps, bfloat16=args.bfloat16)

        def judges(pixel_values: torch.Tensor) -> torch.Tensor:
            with precision:
                return comparison.scores(pixel_values).softmax(-1)

        rows = run(comparison, judges, args.output_dir / "faithfulness.csv", args.images, args.steps)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    accuracy = ", ".join(f"{name} {float(right.double().mean()):.1%}" for name, right in comparison.is_correct.items())
    text = f"Accuracy on {comparison.num_images} photographs: {accuracy}.\n{table(rows)}"
    write_atomically(args.output_dir / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
