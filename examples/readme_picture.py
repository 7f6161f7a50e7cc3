"""Draw the README's picture: two look-alikes in the same scene, and what the model in this package looks at.

python examples/readme_picture.py examples/traits.png
"""

import sys

from transformers import pipeline

from promptcam_hf import demo
from promptcam_hf.explanation.drawing import contact_sheet, stacked

SPECIES, SEED = ("Charcoal_crowned_Warbler", "Russet_throated_Warbler"), 8

pipe = pipeline("prompt-cam")
sheets = []
for species in demo.make_species(16):
    if species.name in SPECIES:
        bird, _ = demo.draw_bird(species, SEED, size=260)
        sheets.append(contact_sheet(bird, pipe(bird, classes=[species.name])))
stacked(sheets).save(sys.argv[1])
