"""Speed and memory of the forward pass: this model, the textbook implementation, and the bare backbone.

    python examples/benchmarks/forward.py --output forward.json
    python examples/benchmarks/forward.py --classes 10000 --batch-sizes 1 4
    python examples/benchmarks/forward.py --device cuda --dtype bfloat16 --batch-sizes 16 64
    python examples/benchmarks/forward.py --before ../before/modeling

All run in one process on a ViT-B/16 with random weights and take turns, so that other load on the machine affects each
of them. Times are medians per image. Compare the ratios:

- `ours` is this model, and `cached` this model within `cached_prompts()`.
- `textbook` is the textbook implementation (`textbook.py`).
- `compare` is `model.compare` of the predicted class with the runner-up, without cached prompts. It belongs beside
  `ours`.
- The limit of a training step is the bare backbone's forward pass and the gradient of its input: prompts in the first
  layer cannot be trained with less.
- `operations` are the additions and multiplications of matrix products and attention, over those of the bare backbone's
  forward pass: the ratio of times if every operation took as long. They depend on no machine.

`--before` also measures another version of `modeling/`.
"""

import argparse
import importlib.util
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedConfig, ViTConfig

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.textbook import TextbookPromptCam

TEXTBOOK_LIMIT = 2000  # above this many classes the textbook implementation takes minutes and tens of gigabytes
# Which torch's counter knows on a GPU only
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        sdpa_backward_flop_count(grad, query, key, value)
    ),
}


class PeakMemory:
    """Most memory that a block took above what there was before, in MB; None where the system does not tell."""

    def __init__(self, device: torch.device):
        self.device = device
        self.megabytes: float | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is in use now
            self._before = self._status("VmRSS")
        return self

    def __exit__(self, *exception) -> None:
        if self.device.type == "cuda":
            self.megabytes = (torch.cuda.max_memory_allocated() - self._before) / 1e6
        elif sys.platform == "linux":
            self.megabytes = (self._status("VmHWM") - self._before) / 1e6

    @staticmethod
    def _status(field: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return 1024 * int(line.split()[1])


def seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def take_turns(
    functions: dict[str, Callable[[], object]], batch_size: int, rounds: int, device: torch.device
) -> dict[str, dict[str, float | None]]:
    """For each function the median milliseconds per image, and the peak memory of one call in MB. Functions for which
    a GPU's memory does not suffice are missing."""
    peaks = {}
    for name, function in functions.items():  # also warms up
        try:
            function()
            with PeakMemory(device) as memory:
                seconds(function, device)
        except torch.OutOfMemoryError:
            continue
        peaks[name] = memory.megabytes
    names = list(peaks)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:  # each goes first, and after each other
            times[name].append(seconds(functions[name], device) * 1000 / batch_size)
    return {name: {"ms_per_image": statistics.median(values), "peak_mb": peaks[name]} for name, values in times.items()}


def saved_bytes(loss: Callable[[], torch.Tensor], model: torch.nn.Module) -> int:
    """Bytes that a forward pass keeps for backward, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()
    del result
    return sum(kept.values())


def operations(function: Callable[[], object]) -> int:
    """Additions and multiplications of a call, in matrix products, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        function()
    return counter.get_total_flops()


def model_before(modeling: Path, model: torch.nn.Module) -> torch.nn.Module:
    """The same model as another version of `modeling/` computes it."""
    spec = importlib.util.spec_from_file_location("modeling_before", modeling / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["modeling_before"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.PromptCamConfig(backbone_config=ViTConfig(), num_labels=model.config.num_labels)
    before = module.PromptCamForImageClassification(config).to(model.device, model.dtype).eval()
    before.load_state_dict(model.state_dict())
    return before


def new_model(
    num_classes: int, backbone_config: PreTrainedConfig, device: torch.device, dtype: torch.dtype
) -> PromptCamForImageClassification:
    """A model with random weights that give logits and attention some spread; those of a fresh model make all classes
    alike."""
    torch.manual_seed(0)
    config = PromptCamConfig(backbone_config=backbone_config, num_labels=num_classes)
    model = PromptCamForImageClassification(config).to(device, dtype).eval()
    for prompts in (model.class_prompts, model.agnostic_prompts):
        torch.nn.init.normal_(prompts)
    torch.nn.init.normal_(model.score_head.weight)
    return model


def contenders(
    model: PromptCamForImageClassification,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    textbook: TextbookPromptCam | None,
    compiler: Callable | None = None,
) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """What takes turns in inference and in a training step. A compiler such as `torch.compile` compiles backbone and
    model."""
    forward, backbone = (compiler(module) if compiler else module for module in (model, model.backbone))
    with model.cached_prompts():
        context = copy_context()  # in which the prompts stay cached between turns

    def limit() -> None:
        image = pixels.clone().requires_grad_()
        backbone(image).last_hidden_state.sum().backward()

    inference = {"bare": lambda: backbone(pixels).last_hidden_state, "ours": lambda: forward(pixels).logits}
    inference["cached"] = lambda: context.run(lambda: forward(pixels).logits)
    training = {"limit": limit, "ours": lambda: model.zero_grad() or forward(pixels, labels=labels).loss.backward()}
    if textbook is not None:
        inference["textbook"] = lambda: _forgetting(textbook, lambda: textbook(pixels))
        training["textbook"] = lambda: (
            model.zero_grad() or _forgetting(textbook, lambda: textbook.loss(pixels, labels).backward())
        )
    return inference, training


def _forgetting(textbook: TextbookPromptCam, call: Callable[[], object]) -> object:
    """A call without what the textbook keeps of it, which would leave no memory to the others."""
    try:
        return call()
    finally:
        textbook.attentions = []


def operations_over_bare(
    model: PromptCamForImageClassification, pixels: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    """Operations of a forward pass, within `cached_prompts()` and without, of a training step and of its limit."""
    inference, training = contenders(model, pixels, labels, textbook=None)
    counts = {"step": operations(training["ours"]), "limit": operations(training["limit"])}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.no_grad():
        inference["cached"]()  # fills the cache
        for weight in trained:
            weight.requires_grad_(False)  # otherwise the counter hooks into gradients that are not recorded here
        counts |= {name: operations(function) for name, function in inference.items()}
    for weight in trained:
        weight.requires_grad_()
    bare = counts.pop("bare")
    return {name: count / bare for name, count in counts.items()}


def benchmark(num_classes: int, batch_size: int, args: argparse.Namespace) -> dict:
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = new_model(num_classes, ViTConfig(), device, dtype)
    textbook = TextbookPromptCam(model) if args.textbook and num_classes <= TEXTBOOK_LIMIT else None
    pixels = torch.randn(batch_size, 3, 224, 224, device=device, dtype=dtype)
    labels = torch.arange(batch_size, device=device) % num_classes
    compiler = partial(torch.compile, fullgraph=True) if args.compile else None
    inference, training = contenders(model, pixels, labels, textbook, compiler)
    inference["compare"] = lambda: model.compare(pixels)
    if args.before:
        before = model_before(args.before, model)
        inference["before"] = lambda: before(pixels).logits
        training["before"] = lambda: before.zero_grad() or before(pixels, labels=labels).loss.backward()

    result: dict = {"classes": num_classes, "batch_size": batch_size}
    with torch.inference_mode():
        result["inference"] = take_turns(inference, batch_size, args.rounds, device)
        if textbook is not None:
            expected = textbook(pixels)
            result["max_difference"] = ((model(pixels).logits - expected).abs().max() / expected.abs().max()).item()
    model.train()  # dropout rates are 0: the same numbers
    result["training"] = take_turns(training, batch_size, args.rounds, device)
    result["saved_mb_per_image"] = {"ours": saved_bytes(lambda: model(pixels, labels=labels).loss, model)}
    if textbook is not None:
        result["saved_mb_per_image"]["textbook"] = saved_bytes(lambda: textbook.loss(pixels, labels), model)
    result["saved_mb_per_image"] = {
        name: value / 1e6 / batch_size for name, value in result["saved_mb_per_image"].items()
    }
    # Last, since it would leave memory allocated, which the peaks do not count then
    result["operations_over_bare"] = operations_over_bare(model.eval(), pixels, labels)
    model.zero_grad()
    return result


def benchmark_ranking(num_classes: int, args: argparse.Namespace) -> dict:
    """Greedy ranking of one image, and for scale one forward pass of it."""
    device = torch.device(args.device)
    model = new_model(num_classes, ViTConfig(), device, torch.float32)
    textbook, pixels = TextbookPromptCam(model), torch.randn(1, 3, 224, 224, device=device)
    with torch.inference_mode():
        class_index = int(model(pixels).logits.argmax())
        classes = torch.tensor([class_index], device=device)
        functions = {"forward": lambda: model(pixels), "ours": lambda: model.rank_heads(pixels, classes)}
        result: dict = {"classes": num_classes, **take_turns(functions, 1, args.rounds, device)}
        order = model.rank_heads(pixels, classes).order[0].tolist()
        ranked: list = []
        result["textbook"] = {
            "ms_per_image": 1000 * seconds(lambda: ranked.extend(textbook.rank_heads(pixels, class_index)), device)
        }
        result["same_order"] = ranked[0] == order
    return result


def show(result: dict) -> None:
    times = {
        kind: {name: row["ms_per_image"] for name, row in result[kind].items()} for kind in ("inference", "training")
    }
    print(f"\nC = {result['classes']}, batch of {result['batch_size']}")
    for kind, row in times.items():
        cells = "  ".join(f"{name} {value:8.1f} ms" for name, value in row.items())
        ratio = f"  textbook / ours {row['textbook'] / row['ours']:.2f}x" if {"textbook", "ours"} <= row.keys() else ""
        bare = times["inference"].get("bare", math.nan)
        over_bare = ", ".join(f"{name} {value / bare:.3f}" for name, value in row.items() if name != "bare")
        peaks = ", ".join(
            f"{name} {cell['peak_mb']:.0f}" for name, cell in result[kind].items() if cell["peak_mb"] is not None
        )
        print(f"  {kind:9} {cells}{ratio}  over bare: {over_bare}  peak MB: {peaks}")
    counts = result["operations_over_bare"]
    print("  operations over bare: " + ", ".join(f"{name} {count:.3f}" for name, count in counts.items()))
    print(
        "  saved for backward, MB an image: "
        + ", ".join(f"{n} {v:.1f}" for n, v in result["saved_mb_per_image"].items())
    )
    if "max_difference" in result:
        print(f"  largest difference of a logit from textbook: {result['max_difference']:.1e} of the largest logit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--rounds", type=int, default=5, help="turns that each implementation takes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument(
        "--compile", action="store_true", help="compile this model and the bare backbone with torch.compile"
    )
    parser.add_argument(
        "--no-ranking", action="store_true", help="leave out the greedy ranking, of which textbook is slow"
    )
    parser.add_argument(
        "--no-textbook", dest="textbook", action="store_false", help="leave out the textbook, slow with many classes"
    )
    parser.add_argument("--before", type=Path, help="folder of another version of modeling/ to compare with")
    parser.add_argument("--output", type=Path, help="JSON file to write the metrics to")
    args = parser.parse_args()

    machine = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{machine}; torch {torch.__version__}, transformers {transformers.__version__}, {args.dtype}")
    report: dict = {"machine": machine, "torch": torch.__version__, "dtype": args.dtype, "runs": [], "ranking": []}
    for num_classes in args.classes:
        for batch_size in args.batch_sizes:
            report["runs"].append(benchmark(num_classes, batch_size, args))
            show(report["runs"][-1])
        if args.textbook and num_classes <= TEXTBOOK_LIMIT and not args.no_ranking:
            row = benchmark_ranking(num_classes, args)
            report["ranking"].append(row)
            print(
                f"  ranking   forward {row['forward']['ms_per_image']:.0f} ms  "
                f"ours {row['ours']['ms_per_image']:.0f} ms  "
                f"textbook {row['textbook']['ms_per_image']:.0f} ms  textbook / ours "
                f"{row['textbook']['ms_per_image'] / row['ours']['ms_per_image']:.0f}x  same order: {row['same_order']}"
            )
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
