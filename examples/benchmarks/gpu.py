"""What a GPU does with a ViT-B/16, in one command and under 8 minutes, as a Markdown table.

    python examples/benchmarks/gpu.py --output gpu.md
    python examples/benchmarks/gpu.py --tiny --device cpu

Forward passes and training steps with 200 to 10,000 classes and batches of 1 to 256: this model, the bare backbone, and
the textbook way (`textbook.py`, up to 2000 classes). They take turns, as in `forward.py`. Then photographs a second
from JPEG files to rows, as in `explaining.py`. Weights are random. The file is written anew after each row. What does
not fit into the GPU's memory is a cell of the table, and so is what there is no time for. `--tiny` only tests this
script.
"""

import argparse
import gc
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import ViTConfig

from promptcam_hf.files import write_atomically

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks import explaining
from examples.benchmarks.forward import TEXTBOOK_LIMIT, contenders, new_model, take_turns
from examples.benchmarks.textbook import TextbookPromptCam

SIZES = {"classes": (200, 525, 1000, 10_000), "batch_sizes": (1, 16, 64, 256), "compiled": 64, "rounds": 5}
TINY_SIZES = {"classes": (5, 2001), "batch_sizes": (2,), "compiled": 2, "rounds": 1}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
HEAD = """| arithmetic | C | batch | forward, ms a photograph | times bare | textbook, times bare | peak MB | \
training step, ms a photograph | times limit | textbook, times limit | peak MB |
|---|---|---|---|---|---|---|---|---|---|---|"""


class Case(NamedTuple):
    """A row of the table."""

    arithmetic: str  # "bf16", "TF32" or "bf16, compiled"
    classes: int
    batch_size: int


def cases(sizes: dict[str, Any]) -> Iterator[Case]:
    """The rows, the most important first."""
    for arithmetic in ("bf16", "TF32"):
        for classes in sizes["classes"]:
            for batch_size in sizes["batch_sizes"]:
                yield Case(arithmetic, classes, batch_size)
    for classes in sizes["classes"]:  # compiling takes most of a minute
        yield Case("bf16, compiled", classes, sizes["compiled"])


def measure(case: Case, device: torch.device, tiny: bool, rounds: int) -> dict[str, dict]:
    """What `take_turns` returns, of inference and of training."""
    if case.arithmetic == "TF32":
        torch.set_float32_matmul_precision("high")
    dtype = torch.float32 if case.arithmetic == "TF32" else torch.bfloat16
    model = new_model(case.classes, ViTConfig(**TINY) if tiny else ViTConfig(), device, dtype)
    size = model.config.backbone_config.image_size
    pixels = torch.randn(case.batch_size, 3, size, size, device=device, dtype=dtype)
    labels = torch.arange(case.batch_size, device=device) % case.classes
    is_compiled = "compiled" in case.arithmetic
    textbook = None if is_compiled or case.classes > TEXTBOOK_LIMIT else TextbookPromptCam(model)
    torch.compiler.reset()
    compiler = partial(torch.compile, backend="eager" if tiny else "inductor") if is_compiled else None
    inference, training = contenders(model, pixels, labels, textbook, compiler)
    with torch.inference_mode():
        result = {"inference": take_turns(inference, case.batch_size, rounds, device)}
    model.train()  # dropout rates are 0: the same numbers
    return result | {"training": take_turns(training, case.batch_size, rounds, device)}


def row(case: Case, device: torch.device, tiny: bool, rounds: int) -> str:
    """A row of the table, whatever happens."""
    try:
        result = measure(case, device, tiny, rounds)
    except torch.OutOfMemoryError:
        result = {"inference": {}, "training": {}}
    except RuntimeError as error:  # of the compiler, for example
        return _joined(case, [f"failed ({type(error).__name__})", *[""] * 7])
    finally:
        torch.set_float32_matmul_precision("highest")
        gc.collect()
        torch.cuda.empty_cache()
    cells = []
    for times, ours, least in ((result["inference"], "cached", "bare"), (result["training"], "ours", "limit")):
        with_textbook = "compiled" not in case.arithmetic and case.classes <= TEXTBOOK_LIMIT
        cells += [
            f"{times[ours]['ms_per_image']:.3g}" if ours in times else "out of memory",
            _ratio(times, ours, least),
            _ratio(times, "textbook", least) if with_textbook else "",
            f"{times[ours]['peak_mb']:.0f}" if ours in times and times[ours]["peak_mb"] is not None else "",
        ]
    return _joined(case, cells)


def _ratio(times: dict[str, dict], name: str, least: str) -> str:
    if name not in times:
        return "out of memory"
    return f"{times[name]['ms_per_image'] / times[least]['ms_per_image']:.2f}" if least in times else ""


def _joined(case: Case, cells: list[str]) -> str:
    return "| " + " | ".join([case.arithmetic, str(case.classes), str(case.batch_size), *cells]) + " |"


def explained(num_classes: int, device: torch.device, tiny: bool) -> list[str]:
    """The table of photographs a second, from JPEG files to rows, in bf16."""
    arguments = argparse.Namespace(
        photographs=8 if tiny else 2048,
        pixels=64 if tiny else 500,
        classes=num_classes,
        batch_size=4 if tiny else 128,
        rounds=1 if tiny else 2,
        num_workers=None,
        dtype="bfloat16",
        device=str(device),
        backbone_config=TINY | {"model_type": "vit"} if tiny else None,
    )
    title = f"From JPEG files of {arguments.pixels} pixels to rows, C = {arguments.classes}, bf16"
    lines = ["", f"| {title} | photographs a second | times bare |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            results = explaining.measure(arguments, Path(folder) / "birds")
        except torch.OutOfMemoryError:
            return [*lines, "| | out of memory | |"]
    for name, values in results.items():
        lines.append(f"| {name} | {values['photographs_a_second']:.0f} | {values['times_bare']:.2f} |")
    return lines


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7, help="no row begins later than this")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does this script work?")
    parser.add_argument("--output", type=Path, default=Path("gpu.md"), help="Markdown file to write")
    args = parser.parse_args(command_line)
    start, device, sizes = time.monotonic(), torch.device(args.device), TINY_SIZES if args.tiny else SIZES
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no GPU here; --tiny --device cpu tests the script.")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    speeds = explained(sizes["classes"][0], device, args.tiny)
    lines = [f"{card}; {versions}; {'a tiny model' if args.tiny else 'ViT-B/16'}", "", HEAD]
    for case in cases(sizes):
        in_time = time.monotonic() - start < 60 * args.minutes
        lines.append(
            row(case, device, args.tiny, sizes["rounds"]) if in_time else _joined(case, ["no time", *[""] * 7])
        )
        print(lines[-1], flush=True)
        write_atomically(args.output, "\n".join([*lines, *speeds]) + "\n")
    print("\n".join([*speeds, "", f"{args.output}: {card}, {time.monotonic() - start:.0f} s"]))


if __name__ == "__main__":
    main()
