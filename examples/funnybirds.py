"""Convert birds rendered by FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV 2023) to an image folder with parts.

    python examples/funnybirds.py <source> <folder>
    promptcam train --data <folder> --backbone facebook/dino-vitb16 --output-dir runs/funnybirds
    promptcam evaluate --traits --model runs/funnybirds --data <folder> --output-dir runs/funnybirds/traits

A class is a combination of variants of five parts, so it is known which parts tell it from others. <source> holds

    train/<class>/*.jpg, test/<class>/*.jpg
    test_parts/<class>/*.png        the masks of the test images, with the same names
    classes.json                    {"part_index": ["background", "body", "beak", ...],  value 0, 1, 2, ... in the masks
                                     "classes": [{"name": <class>, "parts": {"beak": {"variant": 3, ...}, ...}}, ...]}

and <folder> gets a copy of the images and masks, and a `parts.json` as `promptcam_hf/data/parts.py` describes it. There
are no families, so the look-alikes of a class are the classes that differ from it in the fewest parts. The clutter in
the background counts as surroundings. As in the benchmark, training images may lack parts, and test images do not.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from promptcam_hf.data.parts import PartTable, read_mask
from promptcam_hf.files import check_new_folder, write_files_atomically

SURROUNDINGS = {"clutter"}
FOLDERS = ("train", "test", "test_parts")


def read_classes(file: Path) -> PartTable:
    """
    Read the parts from `classes.json`. A look such as `"3 beak04 yellow"` is the variant, the model and the colour; the
    last two may be missing.

    Raises:
        ValueError: If the file is not as described above.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        background, *names = content["part_index"]
        looks = {
            entry["name"]: {part: _look(variant) for part, variant in entry["parts"].items()}
            for entry in content["classes"]
        }
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); expected the classes and their parts.") from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file}: expected 'part_index' and 'classes' as FunnyBirds has them ({error!r}).") from None
    if background != "background":
        raise ValueError(f"{file}: value 0 in the masks is {background!r}; expected 'background'.")
    return PartTable(names=tuple(names), looks=looks, surroundings=frozenset(SURROUNDINGS.intersection(names)))


def _look(variant: dict) -> str:
    return " ".join([str(variant["variant"]), Path(variant.get("model", "")).stem, variant.get("color", "")]).strip()


def check_masks(source: Path, table: PartTable) -> None:
    """
    Check the names of the folders, and the mask of every test image.

    Raises:
        ValueError: If a folder is not named after a class, or a test image has no mask, or one of another size or with
            values that are not parts.
    """
    for folder in (path for name in FOLDERS for path in sorted(source.glob(f"{name}/*"))):
        if folder.name not in table.looks:
            raise ValueError(f"{folder}: no class in classes.json; expected one such as {next(iter(table.looks))}.")
    images = sorted(source.glob("test/*/*"))
    if not images or not any(source.glob("train/*/*")):
        raise ValueError(f"{source} has no images in train/<class>/ or no images in test/<class>/; expected both.")
    for file in tqdm(images, desc="checking masks", unit="mask"):
        mask_file = source / "test_parts" / file.parent.name / f"{file.stem}.png"
        mask = read_mask(mask_file)
        with Image.open(file) as image:
            if mask.shape != (image.height, image.width):
                raise ValueError(f"{mask_file}: {mask.shape[1]} x {mask.shape[0]} pixels; expected those of {file}.")
        if mask.max() > len(table.names):
            raise ValueError(f"{mask_file}: value {mask.max()}; classes.json names parts up to {len(table.names)}.")


def convert(source: Path, folder: Path) -> PartTable:
    """
    Convert a whole folder. If that fails, nothing is written.

    Args:
        source: The birds, as described above.
        folder: New or empty folder.

    Returns:
        The contents of `parts.json`.

    Raises:
        ValueError: If `source` is not as described above, or `folder` is not empty.
        OSError: If a file cannot be read or written.
    """
    check_new_folder(folder)
    table = read_classes(source / "classes.json")
    check_masks(source, table)
    files = [path for name in FOLDERS for path in sorted(source.glob(f"{name}/*/*"))]
    with write_files_atomically(folder) as draft:
        for file in tqdm(files, desc="copying", unit="file"):
            copy = draft / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        table.save(draft)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder rendered by FunnyBirds")
    parser.add_argument("folder", type=Path, help="new or empty folder")
    args = parser.parse_args()
    try:
        table = convert(args.source, args.folder)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    fewest = [len(table.differing(name, table.look_alikes(name)[0])) for name in table.looks]
    parts = ", ".join(name for name in table.names if name not in table.surroundings)
    print(
        f"{args.folder}: {len(table.looks)} classes that differ from their look-alikes in {min(fewest)} to "
        f"{max(fewest)} of the parts {parts}."
    )


if __name__ == "__main__":
    main()
