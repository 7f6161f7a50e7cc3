"""Draw docs/images/traits.jpg: what some traits of the drawn birds look like.

promptcam demo --output-dir runs/demo
promptcam traits --model runs/demo/promptcam --data runs/demo/birds --output-dir runs/traits
python examples/guide_picture.py runs/traits docs/images/traits.jpg --traits 1 6 9 14 20 25
"""

import argparse
from pathlib import Path

from PIL import Image

COLUMNS, GAP, SHARE = 3, 8, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of `promptcam traits`")
    parser.add_argument("picture", type=Path, help="file to write")
    parser.add_argument("--traits", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6], help="which traits to show")
    args = parser.parse_args()
    galleries = [Image.open(args.folder / "crops" / f"trait_{trait}.jpg") for trait in args.traits]
    width, height = (round(SHARE * max(sizes)) for sizes in zip(*(gallery.size for gallery in galleries), strict=True))
    rows = -(-len(galleries) // COLUMNS)
    whole = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, gallery in enumerate(galleries):
        small = gallery.resize((round(SHARE * gallery.width), round(SHARE * gallery.height)), Image.Resampling.LANCZOS)
        whole.paste(small, (number % COLUMNS * (width + GAP), number // COLUMNS * (height + GAP)))
    whole.save(args.picture, quality=82)


if __name__ == "__main__":
    main()
