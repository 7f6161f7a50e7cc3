"""Datasets of drawn birds: as an image folder, or as a `datasets.Dataset`.

python -m promptcam_hf.demo.dataset birds --classes 8 --train 60 --test 10 --size 224 --seed 0
"""

import argparse
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm.auto import tqdm

from ..files import check_new_folder, write_files_atomically
from .drawing import check_size, draw_bird, mask_image
from .species import PARTS, Species, make_species, part_table, swapped, which_parts_differ

if TYPE_CHECKING:
    import datasets

MAX_PER_CLASS = 100_000


def scene_seed(seed: int, split: str, label: int, number: int) -> int:
    """The seed of a picture. No two pictures of a dataset share one, so no pose or background gives a species away,
    and no training picture is repeated among the test pictures."""
    return ((seed * 2 + ("train", "test").index(split)) * 1000 + label) * MAX_PER_CLASS + number


def bird_dataset(
    num_classes: int = 16, per_class: int = 60, size: int = 224, seed: int = 0, split: str = "train"
) -> "datasets.Dataset":
    """
    A dataset of drawn birds, in memory.

    Args:
        num_classes: Number of species, 1 to 512.
        per_class: Pictures of each species, 0 to 100,000.
        size: Side of a picture in pixels, 32 or more.
        seed: Random seed, 0 or more.
        split: `"train"` or `"test"`. The two have no picture in common.

    Returns:
        Rows `{"image": PIL image, "label": int, "parts": PIL image, "seed": int}`. `parts` is what `mask_image`
        returns, and `draw_bird(make_species(num_classes)[label], seed, size)` draws the scene again.

    Raises:
        ValueError: If a number is out of range.
    """
    import datasets  # slow to import, and only needed here

    _check(seed, size, per_class)
    species = make_species(num_classes)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=[kind.name for kind in species]),
            "parts": datasets.Image(),
            "seed": datasets.Value("int64"),
        }
    )
    rows = []
    for label, kind in enumerate(species):
        for number in range(per_class):
            scene = scene_seed(seed, split, label, number)
            picture, masks = draw_bird(kind, scene, size)
            rows.append({"image": _png(picture), "label": label, "parts": _png(mask_image(masks)), "seed": scene})
    return datasets.Dataset.from_list(rows, features=features, split=datasets.NamedSplit(split))


def _png(image: Image.Image) -> dict[str, Any]:
    content = BytesIO()
    image.save(content, "png")
    return {"bytes": content.getvalue(), "path": None}


def write_image_folder(
    directory: str | Path,
    num_classes: int = 8,
    train_per_class: int = 60,
    test_per_class: int = 10,
    size: int = 224,
    seed: int = 0,
    progress: bool = True,
    interventions_per_class: int = 0,
) -> list[Species]:
    """
    Write `train/<species>/*.jpg` and `test/<species>/*.jpg` and, for the test pictures, the masks of their parts and
    the interventions, laid out as `promptcam_hf.data.parts` describes.

    The same arguments, with the same versions of Pillow and numpy, give the same files, byte for byte.

    Args:
        directory: New or empty folder. It stays empty if the birds cannot all be drawn.
        num_classes: Number of species, 1 to 512.
        train_per_class, test_per_class: Pictures of each species, 0 to 100,000.
        size: Side of a picture in pixels, 32 or more.
        seed: Random seed, 0 or more.
        progress: Whether to show a progress bar.
        interventions_per_class: For this many test pictures of each species, also draw the scene without each part, and
            with the parts of each look-alike.

    Returns:
        The species.

    Raises:
        ValueError: If a number is out of range, or the folder is not empty.
        OSError: If a file cannot be written.
    """
    check_new_folder(Path(directory))
    counts = {"train": train_per_class, "test": test_per_class}
    _check(seed, size, *counts.values(), interventions_per_class)
    species = make_species(num_classes)
    bar = tqdm(total=num_classes * sum(counts.values()), desc="drawing", unit="bird", disable=not progress)
    with write_files_atomically(Path(directory)) as draft, bar:
        part_table(species).save(draft)
        for label, kind in enumerate(species):
            for split, count in counts.items():
                (draft / split / kind.name).mkdir(parents=True)
                for number in range(count):
                    scene, name = scene_seed(seed, split, label, number), f"{kind.name}/{number:05d}"
                    picture, masks = draw_bird(kind, scene, size)
                    _save(picture, draft / split / f"{name}.jpg")
                    if split == "test":
                        _save(mask_image(masks), draft / "test_parts" / f"{name}.png")
                    if split == "test" and number < interventions_per_class:
                        for folder, changed in _interventions(kind, species, scene, size):
                            _save(changed, draft / folder / f"{name}.jpg")
                    bar.update()
    return species


def _interventions(kind: Species, species: list[Species], seed: int, size: int) -> Iterator[tuple[str, Image.Image]]:
    """A scene without each part in turn, then with the parts of each look-alike, and the folder that each goes to."""
    for part in PARTS:
        yield f"test_without/{part}", draw_bird(kind, seed, size, without={part})[0]
    for other in species:
        if other.family == kind.family and other is not kind:
            like_other = swapped(kind, other, which_parts_differ(kind, other))
            yield f"test_swapped/{other.name}", draw_bird(like_other, seed, size)[0]


def _save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=92)  # which concerns JPEG alone


def _check(seed: int, size: int, *counts: int) -> None:
    check_size(size)
    if seed < 0:
        raise ValueError(f"seed={seed}: expected 0 or more.")
    for count in counts:
        if not 0 <= count <= MAX_PER_CLASS:
            raise ValueError(f"{count} pictures of each species: expected 0 to {MAX_PER_CLASS}.")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m promptcam_hf.demo.dataset",
        description="Write an image folder of drawn birds: OUTPUT_DIR/train/<species>, OUTPUT_DIR/test/<species>, "
        "and masks of the parts of the test pictures. Species come in families of four look-alikes, which differ in "
        "one or two parts; species of different families differ in more.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="new or empty folder")
    parser.add_argument("--classes", type=int, default=8, help="number of species, 1 to 512; the first 4 are a family")
    parser.add_argument("--train", type=int, default=60, help="training pictures of each species")
    parser.add_argument("--test", type=int, default=10, help="test pictures of each species")
    parser.add_argument("--size", type=int, default=224, help="side of a picture in pixels, 32 or more")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument(
        "--interventions",
        type=int,
        default=0,
        help="for this many test pictures of each species, also draw the scene without each part, and with the parts "
        "of each look-alike",
    )
    args = parser.parse_args()
    try:
        write_image_folder(
            args.output_dir,
            args.classes,
            args.train,
            args.test,
            args.size,
            args.seed,
            interventions_per_class=args.interventions,
        )
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
