"""Photographs a second, from JPEG files to rows: predictions and explanations, and the bare backbone behind the same
loader.

    python examples/benchmarks/explaining.py --output explaining.json
    python examples/benchmarks/explaining.py --device cuda --dtype bfloat16 --photographs 2000 --batch-size 128

The model is a ViT-B/16 with random weights, the photographs are drawn birds. All take turns, so that other load on the
machine affects each of them. Compare the ratios, which are medians over the rounds. On a busy CPU, the ratio of the
processor time says more than that of the time that passes.
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

    def _predict(self, pixel_values: torch.Tensor, shares: torch.Tensor) -> dict[str, Any]:
        with torch.inference_mode():
            self.model.backbone(pixel_values).last_hidden_state.float().cpu()
        return {}


def seconds(predictor: PromptCamPredictor, paths: list[Path], batch_size: int) -> tuple[float, float]:
    """The time that passes, and the processor time of all threads."""
    start = time.perf_counter(), time.process_time()
    for _ in predictor.stream(paths, batch_size):
        pass
    return time.perf_counter() - start[0], time.process_time() - start[1]


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
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in predictors}
    for predictor in predictors.values():  # warms up
        seconds(predictor, paths[: arguments.batch_size], arguments.batch_size)
    for _ in range(arguments.rounds):
        for name, predictor in predictors.items():
            times[name].append(seconds(predictor, paths, arguments.batch_size))
    return {
        name: {"photographs_a_second": len(paths) / statistics.median(passed for passed, _ in values)}
        | times_bare(values, times["bare backbone"])
        for name, values in times.items()
    }


def times_bare(values: list[tuple[float, float]], bare: list[tuple[float, float]]) -> dict[str, float]:
    """How many times as long as the bare backbone in the same round, by either clock."""
    ratios = [(value[0] / b[0], value[1] / b[1]) for value, b in zip(values, bare, strict=True)]
    passed, processor = map(statistics.median, zip(*ratios, strict=True))
    return {"times_bare": passed, "times_bare_processor": processor}


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
    print("| | photographs a second | times bare | processor time, times bare |\n|---|---|---|---|")
    for name, row in results.items():
        print("| " + " | ".join([name, *(f"{value:.2f}" for value in row.values())]) + " |")
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
