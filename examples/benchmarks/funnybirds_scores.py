"""The scores of FunnyBirds for Prompt-CAM and for the alternatives, in one table.

    python examples/funnybirds.py rendered/ funnybirds/
    promptcam train --data funnybirds/ --output-dir runs/funnybirds ...
    python examples/benchmarks/funnybirds_scores.py --model runs/funnybirds --data funnybirds/ \\
        --scenes interventions/ --output-dir runs/funnybirds_scores

`promptcam_hf/evaluation/funnybirds.py` says what the scores are, and `funnybirds_scenes.py` what the folder of scenes
holds. Classifiers and maps are those of `traits.py`. The scores of a map are those of the classifier that it explains.

`scores.json` has the scores of each map, and `table.md` the table. After an interruption, the same command goes on with
the next map.
"""

import json
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch

from promptcam_hf.evaluation.funnybirds_scenes import measure_funnybirds
from promptcam_hf.files import as_json, write_atomically

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.traits import CLASSIFIERS, Comparison, Method, open_comparison, options_of_comparison

COLUMNS = ("accuracy", "csdc", "pc", "dc", "d", "bi", "sd", "ts", "com", "cor", "con", "mx")


class Remembered:
    """
    Both classifiers' scores. All maps are measured on the same images, so those of each are computed once.

    Args:
        comparison: The classifiers.
    """

    def __init__(self, comparison: Comparison):
        self.comparison, self.known = comparison, dict[bytes, torch.Tensor]()

    def __call__(self, classifier: str, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, C)` for images `(B, 3, H, W)`."""
        keys = [sha256(image.numpy().tobytes()).digest() for image in pixel_values]
        new = [index for index, key in enumerate(keys) if key not in self.known]
        if new:
            scores = self.comparison.scores(pixel_values[new])  # (2, new, C)
            self.known.update(zip((keys[index] for index in new), scores.unbind(1), strict=True))
        return torch.stack([self.known[key][CLASSIFIERS.index(classifier)] for key in keys])


def run(comparison: Comparison, scenes: Path, file: Path) -> list[dict]:
    """Measure the maps that are not in the file yet, and add them to it. Returns all rows."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    done, remembered = {(row["classifier"], row["maps"]) for row in rows}, Remembered(comparison)
    for classifier, name, maps in comparison.methods_without_masks():
        if (classifier, name) not in done:
            method = Method(name, partial(remembered, classifier), maps)
            options = {"batch_size": comparison.batch_size}
            scores = measure_funnybirds(method, scenes, comparison.names, comparison.image_processor, **options)
            rows.append({"classifier": classifier, "maps": name, **scores})
            write_atomically(file, as_json(rows))
    return rows


def table(rows: list[dict]) -> str:
    """The scores as a Markdown table."""
    lines = [["classifier", "maps", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    for row in rows:
        cells = ("-" if row[name] is None else f"{row[name]:.3f}" for name in COLUMNS)
        lines.append([row["classifier"], row["maps"], *cells])
    return f"{rows[0]['num_images']} scenes.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = options_of_comparison(__doc__)
    parser.add_argument("--scenes", type=Path, required=True, help="folder of scenes with interventions")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the scores, the table and the probe")
    parser.add_argument("--bfloat16", action="store_true", help="classify and map in bfloat16")
    args = parser.parse_args()
    try:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bfloat16):
            scenes = str(args.scenes.resolve())
            comparison = open_comparison(args, args.output_dir, scenes=scenes, bfloat16=args.bfloat16)
            rows = run(comparison, args.scenes, args.output_dir / "scores.json")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    accuracy = ", ".join(f"{name} {float(right.double().mean()):.1%}" for name, right in comparison.is_correct.items())
    text = f"Accuracy on {comparison.num_images} test photographs: {accuracy}.\n{table(rows)}"
    write_atomically(args.output_dir / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
