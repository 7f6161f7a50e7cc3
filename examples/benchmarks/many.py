"""Memory and speed of `explain_shards` over many small photographs: does memory grow with their number?

    python examples/benchmarks/many.py --output many.json
    python examples/benchmarks/many.py --tiny  # a model with random weights that takes less time than the rest

Draws 1,000 birds of 64 pixels, hard-links them under 100,000 names, and explains these with the model that ships with
the package. Prints the resident memory after each shard, its range from the tenth to the last, photographs a second,
and the time beside that of the bare backbone with the same loader.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification, PromptCamPredictor, demo, explain_shards
from promptcam_hf.checkpoint import new_image_processor, open_pipeline, save_checkpoint
from promptcam_hf.demo.dataset import write_image_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks import explaining

MB = 1 << 20


def drawn_birds(folder: Path, number: int) -> list[Path]:
    """Draw birds of 64 pixels into a folder."""
    write_image_folder(folder, num_classes=4, train_per_class=number // 4, test_per_class=1, size=64, seed=0)
    return sorted(folder.glob("train/*/*.jpg"))


def link_photographs(files: Sequence[Path], folder: Path, photographs: int) -> None:
    """Give files as many names as there are to be photographs, 1,000 in a folder."""
    for number in range(photographs):
        file, place = files[number % len(files)], folder / f"{number // 1000:04}"
        place.mkdir(parents=True, exist_ok=True)
        name = place / f"{number:07}{file.suffix}"
        try:
            os.link(file, name)
        except OSError:  # on another disk
            shutil.copy(file, name)


def tiny_model(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    backbone = {"model_type": "vit", "image_size": 32, "patch_size": 8, **sizes}
    model = PromptCamForImageClassification(PromptCamConfig(num_labels=20, backbone_config=backbone))
    save_checkpoint(model, new_image_processor(32), folder)
    return folder


class MemoryWatch(threading.Thread):
    """Notes the resident memory of this process each time that there is a new shard."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.resident, self.stopped = folder, [], threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.2):
            shards = len(list(self.folder.glob("*.parquet")))
            if shards > len(self.resident):
                resident = psutil.Process().memory_info().rss / MB
                self.resident += [resident] * (shards - len(self.resident))
                print(f"{time.strftime('%X')} shard {shards}: {resident:.0f} MB", flush=True)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    link_photographs(drawn_birds(folder / "drawn", arguments.drawn), folder / "photographs", arguments.photographs)
    model = tiny_model(folder / "model") if arguments.tiny else demo.MODEL
    out = folder / "explained"
    watch = MemoryWatch(out)
    watch.start()
    start = time.perf_counter()
    result = explain_shards(
        folder / "photographs",
        model,
        out,
        shard_size=arguments.shard_size,
        device=arguments.device,
        progress=False,
    )
    passed = time.perf_counter() - start
    time.sleep(0.5)
    watch.stopped.set()
    size = sum(path.stat().st_size for path in out.glob("*.parquet"))
    later = watch.resident[9:]
    return {
        "photographs": result.num_photographs,
        "shards": result.num_shards,
        "resident_mb": {"tenth": later[0], "last": later[-1], "least": min(later), "most": max(later)},
        "photographs_a_second": result.num_photographs / passed,
        "bytes_a_row": size / result.num_photographs,
        **compared_with_bare(folder, model, arguments.device),
    }


def compared_with_bare(folder: Path, model: Path, device: str) -> dict[str, float]:
    """How many times as long as the bare backbone explaining takes, in turns."""
    pipe = open_pipeline(model, device=device)
    paths = sorted(folder.glob("photographs/0000/*.jpg"))[:320]
    bare, explain = explaining.BareBackbone(pipe), PromptCamPredictor(pipe, maps=4)
    turns = [[explaining.seconds(predictor, paths, 32) for predictor in (bare, explain)] for _ in range(6)][1:]
    return explaining.times_bare([turn[1] for turn in turns], [turn[0] for turn in turns])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=100_000)
    parser.add_argument("--drawn", type=int, default=1000, help="different ones among them")
    parser.add_argument("--shard-size", type=int, default=2000, help="so that there are more than ten shards")
    parser.add_argument("--tiny", action="store_true", help="a tiny model with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    if arguments.photographs < 10 * arguments.shard_size:
        parser.error(f"expected at least ten shards: --photographs {10 * arguments.shard_size} or more.")
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder))
    results |= {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "torch": torch.__version__}
    print(json.dumps(results, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
