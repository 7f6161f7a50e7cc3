"""What makes this bird an icterid, what an Icterus, and what a Scott's Oriole?

    python examples/taxonomy/taxonomy.py --data photos/ --levels family.csv genus.csv --backbone facebook/dino-vitb16 \\
        --output-dir runs/taxonomy --photographs photos/test/Scott_Oriole/*.jpg

Trains prompts for each level of a taxonomy on the same frozen backbone. Then draws, for each photograph, the traits of
its family, of its genus and of its species, one row below the other. The species is the name of the photograph's folder
or, if that is not a class, the most probable class.

Each level is a CSV file with the group of each class, as `promptcam train --label-map` reads it, and is named after its
file. The last level, "species", is the classes themselves and needs no file. All other options are passed on to
`promptcam train`: --epochs, --recipe ...

Levels that are trained already are not trained again, so more photographs can be drawn later. A level whose training
was interrupted continues.
"""

import argparse
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from promptcam_hf.modeling.images_promptcam import load_photograph
from transformers import Pipeline, pipeline

import promptcam_hf  # noqa: F401  (registers the task)
from promptcam_hf.data.photographs import load_splits
from promptcam_hf.explanation.drawing import contact_sheet, stacked

SPECIES = "species"
TASK: Any = "prompt-cam"  # `pipeline` is typed for transformers' own tasks


def read_taxonomy(data: str, label_maps: dict[str, Path]) -> dict[str, dict[str, str]]:
    """
    Read the group of each species at each level.

    Args:
        data: The data, as for `promptcam train`.
        label_maps: Level -> CSV file, from the broadest level to the narrowest.

    Returns:
        Level -> species -> group. The last level is "species".

    Raises:
        ValueError: If a file does not fit the classes, or a group belongs to two groups of the level above.
    """
    splits = load_splits(data)
    species = [splits.names[label] for label in splits.train["label"]]
    taxonomy = {}
    for level, label_map in label_maps.items():
        groups = load_splits(data, label_map=label_map)
        taxonomy[level] = dict(zip(species, (groups.names[label] for label in groups.train["label"]), strict=True))
    taxonomy[SPECIES] = {name: name for name in species}

    levels = list(taxonomy)
    for above, level in pairwise(levels):
        parents: dict[str, str] = {}
        for name, group in taxonomy[level].items():
            parent = taxonomy[above][name]
            if parents.setdefault(group, parent) != parent:
                raise ValueError(
                    f"{group} ({level}) belongs to {parents[group]} and to {parent} ({above}); expected levels from "
                    "the broadest to the narrowest, with each group in one group of the level above."
                )
    return taxonomy


def train_level(folder: Path, options: list[str]) -> None:
    """Run `promptcam train`, or continue it, unless the level is trained already."""
    command = [sys.executable, "-m", "promptcam_hf", "train"]
    if (folder / "README.md").exists():  # which training writes last
        print(f"{folder} is trained already.")
        return
    if (folder / "recipe.yaml").exists():
        command += ["--resume", str(folder)]
    else:
        command += ["--output-dir", str(folder), *options]
    if subprocess.run(command).returncode:
        sys.exit(f"error: the level {folder.name} could not be trained; see above.")


def draw_path(
    photograph: Image.Image, models: dict[str, Pipeline], path: dict[str, str], title: str = ""
) -> Image.Image:
    """
    Draw the traits of each group that a species belongs to.

    Args:
        photograph: The photograph, of mode `"RGB"`.
        models: Level -> pipeline, from the broadest level to the species.
        path: Level -> the group to explain.
        title: Name of the photograph, to be shown.

    Returns:
        A row for each level. The line above it also names the predicted group, if that is another one.
    """
    rows = []
    for level, group in path.items():
        explanations = models[level](photograph, classes=[group])
        (most_probable,) = models[level](photograph, heatmaps=False)
        other = "" if most_probable["label"] == group else f", predicted {most_probable['label'].replace('_', ' ')}"
        rows.append(contact_sheet(photograph, explanations, f"{title}, {level}{other}"))
    return stacked(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="as for `promptcam train`")
    parser.add_argument("--levels", type=Path, nargs="+", required=True, help="CSV files, the broadest level first")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for checkpoints and pictures")
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="photographs to draw")
    args, options = parser.parse_known_args()
    label_maps = {file.stem: file for file in args.levels}
    try:
        if len(label_maps) < len(args.levels) or SPECIES in label_maps:
            raise ValueError(f"--levels: expected files with different names, and none named {SPECIES}.csv.")
        taxonomy = read_taxonomy(args.data, label_maps)
        photographs = [load_photograph(path) for path in args.photographs]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

    models = {}
    for level in taxonomy:
        folder = args.output_dir / level
        label_map = ["--label-map", str(label_maps[level])] if level in label_maps else []
        train_level(folder, ["--data", args.data, *label_map, *options])
        models[level] = pipeline(TASK, model=str(folder))
    for file, photograph in zip(args.photographs, photographs, strict=True):
        species = file.parent.name
        if species not in taxonomy[SPECIES]:
            species = models[SPECIES](photograph, heatmaps=False)[0]["label"]
        path = {level: groups[species] for level, groups in taxonomy.items()}
        picture = args.output_dir / f"{file.parent.name}_{file.stem}.png"
        draw_path(photograph, models, path, title=f"{file.parent.name}/{file.name}").save(picture)
        print(picture)


if __name__ == "__main__":
    main()
