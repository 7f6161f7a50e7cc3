"""What works out of the box: drawn birds whose traits are known, a tiny backbone, and a Prompt-CAM trained on them.

`README.md` in this folder says how the weights were made. Nothing here needs a network.
"""

from pathlib import Path

from .drawing import (
    PARTS,
    Species,
    bird_dataset,
    draw_bird,
    make_species,
    part_table,
    recoloured,
    swapped,
    which_parts_differ,
    write_image_folder,
)

# A `ViTModel` of 1.1 million parameters for images of 96 x 96 pixels in patches of 8: for `from_backbone` and
# `promptcam train --backbone`
BACKBONE = Path(__file__).parent / "backbone"
# Prompts for the 16 species of `make_species(16)` on it: what `pipeline("prompt-cam")` loads where no model is named
MODEL = Path(__file__).parent / "promptcam"

__all__ = [
    "BACKBONE",
    "MODEL",
    "PARTS",
    "Species",
    "bird_dataset",
    "draw_bird",
    "make_species",
    "part_table",
    "recoloured",
    "swapped",
    "which_parts_differ",
    "write_image_folder",
]
