"""What works out of the box, without a network: drawn birds whose traits are known, a tiny backbone, a Prompt-CAM
trained on these birds, and `promptcam demo`.

Public: `MODEL` and `BACKBONE` (the folders of the shipped weights), `Species`, `PARTS`, `make_species`, `draw_bird`,
`write_image_folder`, `bird_dataset`, `part_table`, `which_parts_differ`, `swapped` and `recoloured`.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import bird_dataset, write_image_folder
    from .drawing import draw_bird
    from .species import PARTS, Species, make_species, part_table, recoloured, swapped, which_parts_differ

# A `ViTModel` with 1.1 million parameters, for images of 96 x 96 pixels in patches of 8: for `from_backbone` and
# `promptcam train --backbone`
BACKBONE = Path(__file__).parent / "backbone"
# A Prompt-CAM for the 16 species of `make_species(16)` on that backbone: the default of `pipeline("prompt-cam")`
MODEL = Path(__file__).parent / "promptcam"

_MODULE_OF = {"bird_dataset": "dataset", "write_image_folder": "dataset", "draw_bird": "drawing"}
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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import promptcam_hf` stays light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF.get(name, 'species')}", __name__), name)
