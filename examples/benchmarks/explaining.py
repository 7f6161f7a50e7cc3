"""Photographs a second, from JPEG files to rows: predictions and explanations, and the bare backbone behind the same
loader.

    python examples/benchmarks/explaining.py --output explaining.json
    python examples/benchmarks/explaining.py --device cuda --dtype bfloat16 --photographs 2000 --batch-size 128

The model is a ViT-B/16 with random weights, the photographs are drawn birds. All take turns, so that other load on the
machine affects each of them; the ratios, medians over the rounds, are what to look at.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification, PromptCamPipeline, PromptCamPredictor
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.demo.dataset import write_image_folder


class BareBackbone(PromptCamPredictor):
    """The backbone without prompts, classes and answers."""

    def _predict(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        with torch.inference_mode():
            self.model.backbone(pixel_values.to(self.model.device)).last_hidden_state.float().cpu()
        return {}


def photographs_a_second(predictor: PromptCamPredictor, paths: list[Path], batch_size: int) -> float:
    start = time.perf_counter()
    for _ in predictor.stream(paths, batch_size):
        pass
    return len(paths) / (time.perf_counter() - start)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    write_image_folder(folder, num_classes=4, train_per_class=8, test_per_class=1, size=arguments.pixels, seed=0)
    files = sorted(folder.glob("train/*/*.jpg"))
    paths = [files[number % len(files)] for number in range(arguments.photographs)]
    torch.manual_seed(0)
    config = PromptCamConfig(num_labels=arguments.classes, backbone_config=arguments.backbone_config)
    model = PromptCamForImageClassification(config)
    image_processor = new_image_processor(config.backbone_config.image_size)
    pipe = PromptCamPipeline(model=model, image_processor=image_processor, device=arguments.device)
    options: dict[str, Any] = {"dtype": arguments.dtype, "num_workers": arguments.num_workers}
    predictors = {
        "bare backbone": BareBackbone(pipe, **options),
        "predict": PromptCamPredictor(pipe, **options),
        "explain": PromptCamPredictor(pipe, maps=4, **options),
    }
    speeds: dict[str, list[float]] = {name: [] for name in predictors}
    for predictor in predictors.values():  # warms up
        photographs_a_second(predictor, paths[: arguments.batch_size], arguments.batch_size)
    for _ in range(arguments.rounds):
        for name, predictor in predictors.items():
            speeds[name].append(photographs_a_second(predictor, paths, arguments.batch_size))
    bare = speeds["bare backbone"]
    return {
        name: {
            "photographs_a_second": statistics.median(values),
            "times_bare": statistics.median(b / value for b, value in zip(bare, values, strict=True)),
        }
        for name, values in speeds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=96, help="in each round")
    parser.add_argument("--pixels", type=int, default=500, help="width of the photographs")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-workers", type=int, help="threads that read photographs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbone-config", type=json.loads, help="JSON; default: a ViT-B/16")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder) / "birds")
    print("| | photographs a second | times bare |\n|---|---|---|")
    for name, row in results.items():
        print(f"| {name} | {row['photographs_a_second']:.2f} | {row['times_bare']:.2f} |")
    if arguments.output is not None:
        about = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "options": {name: value for name, value in vars(arguments).items() if name != "output"},
        }
        arguments.output.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
