"""What the training loop costs compared with bare forward, backward and optimiser steps, how fast photographs are
decoded, and what cached features gain.

    python examples/benchmarks/training.py --output training.json
    python examples/benchmarks/training.py --batch-size 64 --mixed-precision bf16 --num-workers 8

The model is a ViT-B/16 with random weights, the photographs are drawn birds. "Bare" steps run on one batch that is
already in memory. "Loop" steps are those of `promptcam train`, from decoding the photographs to the line in the log.
The modes take turns, each in a process of its own, so that other work on the machine affects all of them and memory is
measured for each. The table shows medians of the steps' times; compare the ratios.
"""

import argparse
import contextlib
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTModel

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import TrainTransform
from promptcam_hf.data.splits import load_splits
from promptcam_hf.training.options import TrainingOptions
from promptcam_hf.training.trainer import PromptCamTrainer
from promptcam_hf.training.views import Views

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.forward import PeakMemory
from promptcam_hf.demo.dataset import write_image_folder

WARM_UP = 2


def bare_steps(
    model: PromptCamForImageClassification, accelerator: Accelerator, args: argparse.Namespace
) -> list[float]:
    """When each step ends, on a batch that is in memory already."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.005, momentum=0.9, weight_decay=1e-3)
    model.train()
    pixels = torch.randn(args.batch_size, 3, 224, 224, device=accelerator.device)
    labels = torch.arange(args.batch_size, device=accelerator.device) % model.num_labels
    ends = [time.perf_counter()]
    for _ in range(args.steps):
        with accelerator.autocast():
            loss = model(pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        ends.append(time.perf_counter())
    return ends


class EnoughSteps(Exception):
    """Raised to end a run."""


def loop_steps(trainer: PromptCamTrainer, steps: int) -> list[float]:
    """When each step of a run ends."""
    ends: list[float] = []

    def note(row: dict) -> None:
        ends.append(time.perf_counter())
        if len(ends) > steps:
            raise EnoughSteps

    trainer.on_step = note
    with contextlib.suppress(EnoughSteps):
        trainer.train()
    return ends


def measure(folder: Path, mode: str, args: argparse.Namespace) -> dict:
    """In this process: `bare` or `loop`, `loop-k` with k prompted layers, `cached-k` on cached features."""
    kind, _, layers = mode.partition("-")
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    splits = load_splits(folder / "photos")
    model = PromptCamForImageClassification.from_backbone(
        folder / "backbone",
        id2label=dict(enumerate(splits.names)),
        num_prompted_layers=int(layers) if layers else None,
        prompt_dropout=0.1,
        drop_path_rate=0.1,
    ).to(accelerator.device)
    options = TrainingOptions(
        epochs=1000,
        batch_size=args.batch_size,
        mixed_precision=args.mixed_precision,
        crops="paper",  # as large as the images of `bare_steps`
        cache_features=1 if kind == "cached" else 0,
        num_workers=args.num_workers,
        compile=args.compile,
    )
    with tempfile.TemporaryDirectory(dir=folder) as output, PeakMemory(accelerator.device) as memory:
        if kind == "bare":
            ends = bare_steps(model, accelerator, args)
        else:
            features = folder / "features"
            trainer = PromptCamTrainer(options, Path(output) / "run", splits, model, features_dir=features)
            ends = loop_steps(trainer, args.steps)
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return {"step_s": statistics.median(seconds[WARM_UP:]), "peak_mb": memory.megabytes}


def loading(folder: Path, num_workers: int, seconds: float = 10.0) -> float:
    """Photographs per second that are decoded and augmented while nothing else is done."""
    splits = load_splits(folder / "photos")
    views = Views(splits.train, TrainTransform(new_image_processor(224)), seed=0)
    items = [(epoch, index) for epoch in range(100) for index in range(len(views))]
    batches = iter(DataLoader(views, batch_size=16, sampler=items, num_workers=num_workers))
    for _ in range(4):
        next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["labels"])
        if time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


def prepare(folder: Path, num_classes: int, batch_size: int) -> None:
    torch.manual_seed(0)
    ViTModel(ViTConfig(), add_pooling_layer=False).save_pretrained(folder / "backbone")
    per_class = max(1, -(-4 * batch_size // num_classes))
    write_image_folder(folder / "photos", num_classes, train_per_class=per_class, test_per_class=1, size=400)


def turn(folder: Path, mode: str) -> dict:
    """One turn of a mode, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(folder), mode]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="steps per turn; the first 2 are not counted")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each mode")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--modes", nargs="+", default=["bare", "loop", "loop-1", "cached-1", "loop-2", "cached-2"])
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # folder and mode: one turn, in its own process
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1], args)), file=sys.__stdout__)
        return

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{name}, {torch.get_num_threads()} CPU threads; torch {torch.__version__}, batch of {args.batch_size}")
    report: dict = {"machine": name, "batch_size": args.batch_size, "classes": args.classes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, args.classes, args.batch_size)
        report["images_per_second"] = {workers: loading(folder, workers) for workers in (0, 1, 2)}
        for workers, speed in report["images_per_second"].items():
            print(f"decoding and augmenting, {workers} workers: {speed:6.1f} images per second")
        for mode in args.modes:
            if mode.startswith("cached"):  # so that no turn builds the cache
                turn(folder, mode)
        turns: dict[str, list[dict]] = {mode: [] for mode in args.modes}
        for _ in range(args.rounds):
            for mode in args.modes:
                turns[mode].append(turn(folder, mode))
        report["modes"] = {
            mode: {key: statistics.median(turn[key] for turn in rows) for key in rows[0]}
            for mode, rows in turns.items()
        }
    for mode, row in report["modes"].items():
        print(f"{mode:9} {1000 * row['step_s']:8.1f} ms per step, peak {row['peak_mb']:.0f} MB above the model")
    for mode, other, what in (
        ("loop", "bare", "the loop costs"),
        ("loop-1", "cached-1", "cached features, 1 prompted layer, gain"),
        ("loop-2", "cached-2", "cached features, 2 prompted layers, gain"),
    ):
        if {mode, other} <= report["modes"].keys():
            a, b = report["modes"][mode], report["modes"][other]
            time_ratio, memory_ratio = a["step_s"] / b["step_s"], a["peak_mb"] / b["peak_mb"]
            print(f"{what}: {time_ratio:.3f}x the time of a step, {memory_ratio:.3f}x the memory")
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
