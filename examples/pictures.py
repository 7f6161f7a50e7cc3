"""Draw the pictures of README and documentation: drawn birds, and what the model in this package looks at.

python examples/pictures.py docs/images
"""

import sys
from pathlib import Path

from transformers import pipeline

from promptcam_hf import demo
from promptcam_hf.explanation.drawing import contact_sheet, stacked

SEED = 8
LOOK_ALIKES = ("Charcoal_crowned_Warbler", "Russet_throated_Warbler")

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
traits = pipeline("prompt-cam", device="cpu")
species = {each.name: each for each in demo.make_species(traits.model.config.num_labels)}
birds = {name: demo.draw_bird(species[name], SEED, size=260)[0] for name in LOOK_ALIKES}

# Two look-alikes in the same scene, each with the heads that speak for it
sheets = [contact_sheet(bird, traits(bird, classes=[name])) for name, bird in birds.items()]
stacked(sheets).save(folder / "traits.png")

# All heads of one class, the most important first
bird = birds[LOOK_ALIKES[1]]
contact_sheet(bird, traits(bird, classes=[LOOK_ALIKES[1]], top_traits=6)).save(folder / "heads.png")

# One bird through the prompts of two classes
contact_sheet(bird, traits(bird, classes=list(LOOK_ALIKES[::-1]))).save(folder / "two_prompts.png")
