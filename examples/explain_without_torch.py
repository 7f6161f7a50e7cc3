"""Predict and explain a photograph with a model of `promptcam export`. Needs numpy, pillow and onnxruntime, not torch.

python examples/explain_without_torch.py orioles.onnx scott_oriole.jpg overlay.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photograph, output = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["promptcam"])

prepare = about["preprocessing"]  # photograph -> pixel_values (1, 3, height, width)
upright = ImageOps.exif_transpose(Image.open(photograph)).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
colour = tuple(int(255 * mean) for mean in prepare["image_mean"])
seen = ImageOps.pad(image, (max(image.size),) * 2, color=colour) if prepare.get("do_pad") else image
small = seen.resize((prepare["size"]["width"], prepare["size"]["height"]), prepare["resample"])
pixels = np.asarray(small, np.float32) * prepare["rescale_factor"]
pixels = (pixels - np.float32(prepare["image_mean"])) / np.float32(prepare["image_std"])
inputs = {"pixel_values": pixels.transpose(2, 0, 1)[None], "classes": np.array([-1])}  # -1: the most probable class
result = {node.name: value[0] for node, value in zip(session.get_outputs(), session.run(None, inputs), strict=True)}
weights = np.exp((result["logits"] - result["logits"].max()) / about["temperature"])
label, order = result["explained"], result["order"]
print(f"{about['classes'][label]} {weights[label] / weights.sum():.4f}")
print("heads, most important first:", *order)
print("heads that suffice:", result["num_sufficient"])

# The map of the most important head over the photograph: what it does not attend to becomes dark
grid = Image.fromarray(result["trait_maps"][order[0]])
middle, half = np.divide(grid.size, 2), np.divide(image.size, seen.size) * grid.size / 2  # of the photograph in it
first = np.floor(middle - half + 1e-3)  # patch that shows some of the photograph; those before are padding
inner = grid.crop((*first, *(grid.size - first)))
trait_map = inner.resize(image.size, Image.Resampling.BICUBIC, (*(middle - half - first), *(middle + half - first)))
strength = np.asarray(trait_map).clip(0) / np.asarray(trait_map).max()
Image.fromarray((np.asarray(image) * (0.25 + 0.75 * strength[..., None])).astype(np.uint8)).save(output)
