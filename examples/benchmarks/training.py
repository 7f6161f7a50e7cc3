"""What the training loop costs above the bare forward, backward and optimiser step; how fast photographs are decoded;
what cached features gain.

    python examples/benchmarks/training.py --output training.json
    python examples/benchmarks/training.py --batch-size 64 --mixed-precision bf16 --num-workers 8

All on a ViT-B/16 with random weights and drawn photographs. "Bare" steps run on one batch that lies in memory
already; "loop" steps are those of `promptcam train`, from decoding the photographs to the line in the log. The two
take turns, in a process each, so that what else the machine does meets both, and memory of one is not counted for the
other. Medians of the steps' times; ratios are what to look at.
"""

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTModel

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import TrainTransform, load_splits
from promptcam_hf.training.options import TrainingOptions
from promptcam_hf.training.trainer import PromptCamTrainer
from promptcam_hf.training.views import Views

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.forward import PeakMemory
from promptcam_hf.demo.synthetic_birds import write_image_folder

WARM_UP = 2


class TimedRun(_Run):
    """A training run that notes when each step ends, and stops after a number of them."""

    def __init__(self, options: TrainingOptions, output_dir: Path, steps: int):
        super().__init__(options, output_dir)
        self.ends: list[float] = []
        self.steps = steps

    def _step(self, *arguments) -> dict:
        if len(self.ends) > self.steps:
            raise StopIteration
        row = super()._step(*arguments)
        self.ends.append(time.perf_counter())
        return row

    def measure(self) -> dict:
        with PeakMemory(self.accelerator.device) as memory, contextlib.suppress(StopIteration):
            self.go()
        seconds = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return {"step_s": statistics.median(seconds[WARM_UP:]), "peak_mb": memory.megabytes}


class BareRun(TimedRun):
    """Forward, backward and optimiser step on a batch that is there already, nothing else."""

    def measure(self) -> dict:
        device = self.accelerator.device
        trainable = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.005, momentum=0.9, weight_decay=1e-3)
        self.model.to(device).train()
        size = self.options.batch_size
        pixels = torch.randn(size, 3, 224, 224, device=device)
        labels = torch.arange(size, device=device) % self.model.num_labels
        seconds = []
        with PeakMemory(device) as memory:
            for _ in range(self.steps):
                start = time.perf_counter()
                with self.accelerator.autocast():
                    loss = self.model(pixels, labels=labels).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                loss.item()
                seconds.append(time.perf_counter() - start)
        return {"step_s": statistics.median(seconds[WARM_UP:]), "peak_mb": memory.megabytes}


def measure(folder: Path, mode: str, args: argparse.Namespace) -> dict:
    """In this process: `bare` or `loop`, `loop-k` with k prompted layers, `cached-k` on cached features."""
    kind, _, layers = mode.partition("-")
    options = TrainingOptions(
        data=folder / "photos",
        backbone=folder / "backbone",
        epochs=1000,
        batch_size=args.batch_size,
        num_prompted_layers=int(layers) if layers else None,
        mixed_precision=args.mixed_precision,
        cache_features=1 if kind == "cached" else 0,
        num_workers=args.num_workers,
        compile=args.compile,
    )
    with tempfile.TemporaryDirectory(dir=folder) as output:
        run = (BareRun if kind == "bare" else TimedRun)(options, Path(output) / "run", args.steps)
        return run.measure()


def loading(folder: Path, num_workers: int, seconds: float = 10.0) -> float:
    """Photographs a second that come out of the loader, augmented, when nothing else is done."""
    splits = load_splits(folder / "photos")
    views = Views(splits.train, TrainTransform(new_image_processor(224)), seed=0)
    items = [(epoch, index) for epoch in range(100) for index in range(len(views))]
    batches = iter(DataLoader(views, batch_size=16, sampler=items, num_workers=num_workers))
    for _ in range(4):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches)["labels"])
    return count / (time.perf_counter() - start)


def prepare(folder: Path, num_classes: int, batch_size: int) -> None:
    torch.manual_seed(0)
    ViTModel(ViTConfig(), add_pooling_layer=False).save_pretrained(folder / "backbone")
    per_class = max(1, -(-4 * batch_size // num_classes))
    write_image_folder(folder / "photos", num_classes, train_per_class=per_class, test_per_class=1, size=400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="in each turn, the first 2 not counted")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--modes", nargs="+", default=["bare", "loop", "loop-1", "cached-1", "loop-2", "cached-2"])
    parser.add_argument("--output", type=Path, help="JSON file to write the figures to")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # folder and mode: a turn, in its own process
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
            print(f"decoding and augmenting, {workers} workers: {speed:6.1f} images a second")
        turns: dict[str, list[dict]] = {mode: [] for mode in args.modes}
        for _ in range(args.rounds):
            for mode in args.modes:
                command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(folder), mode]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                turns[mode].append(json.loads(done.stdout.splitlines()[-1]))
        report["modes"] = {
            mode: {key: statistics.median(turn[key] for turn in rows) for key in rows[0]}
            for mode, rows in turns.items()
        }
    for mode, row in report["modes"].items():
        print(f"{mode:9} {1000 * row['step_s']:8.1f} ms a step, peak {row['peak_mb']:.0f} MB above the model")
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
