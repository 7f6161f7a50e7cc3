"""What ONNX Runtime and 8-bit integers change: accuracy, explanations, size, and speed.

    python examples/benchmarks/small.py --model runs/birds20 --data ../shared/data/birds20 --folder runs/small
    python examples/benchmarks/small.py --model runs/birds20 --folder runs/small --measure speed

The model's ONNX files are written to the folder, and used again if they are there. Accuracy is that on the photographs
in `test/`; all ways see the same pixels. Speed is the median time of one photograph, prediction and ranking of the
heads; all ways take turns. The row of torchao is there if torchao is installed. Results go to `small.json` in the
folder.
"""

import argparse
import importlib.util
import io
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from promptcam_hf import PromptCamPipeline, export_onnx
from promptcam_hf.checkpoint import open_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.forward import take_turns

# Pixels (B, 3, height, width) -> label (B,) and order of the heads (B, H)
Way = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def with_torch(pipe: PromptCamPipeline) -> Way:
    def way(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode(), pipe.model.cached_prompts():
            ranking = pipe.model.rank_heads(torch.from_numpy(pixels))
        return ranking.classes[:, 0].numpy(), ranking.order[:, 0].numpy()

    return way


def with_onnx(file: Path) -> Way:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def way(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"pixel_values": pixels, "classes": np.full(len(pixels), -1)}
        label, order = session.run(["explained", "order"], inputs)
        return label, order

    return way


def ways(model: str, folder: Path) -> tuple[dict[str, Way], dict[str, float]]:
    """The ways to run the model, and their sizes in MB."""
    pipe = open_pipeline(model, device="cpu")
    pipe.model.float().eval()
    found, sizes = {"torch": with_torch(pipe)}, {"torch": _saved_megabytes(pipe.model)}
    for name, quantize in (("ONNX Runtime", None), ("ONNX Runtime, int8", "int8")):
        file = folder / f"{quantize or 'float32'}.onnx"
        if not file.exists():
            export_onnx(model, file, quantize=quantize)
        found[name], sizes[name] = with_onnx(file), file.stat().st_size / 1e6
    if importlib.util.find_spec("torchao") is not None:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        small = open_pipeline(model, device="cpu")
        quantize_(small.model.float().eval(), Int8WeightOnlyConfig())
        found["torchao, int8 weights"] = with_torch(small)
        sizes["torchao, int8 weights"] = _saved_megabytes(small.model)
    return found, sizes


def _saved_megabytes(model: torch.nn.Module) -> float:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / 1e6


def accuracy(model: str, data: Path, found: dict[str, Way], batch_size: int, every: int) -> dict[str, dict[str, float]]:
    """For each way the accuracy, and how often label, most important head, and the whole order are those of torch."""
    pipe = open_pipeline(model, device="cpu")
    files = sorted(path for path in (data / "test").glob("*/*") if path.suffix.lower() in (".jpg", ".png"))[::every]
    truth = np.array([pipe.model.config.label2id[path.parent.name] for path in files])
    answers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in found}
    for start in tqdm(range(0, len(files), batch_size), unit="batch"):
        photographs = [pipe.preprocess(str(path)) for path in files[start : start + batch_size]]
        pixels = torch.cat([photograph["pixel_values"] for photograph in photographs]).numpy()
        for name, way in found.items():
            answers[name].append(way(pixels))
    joined = {name: [np.concatenate(part) for part in zip(*parts, strict=True)] for name, parts in answers.items()}
    label, order = joined["torch"]
    return {
        name: {
            "accuracy": float((labels == truth).mean()),
            "same_label": float((labels == label).mean()),
            "same_first_head": float((orders[:, 0] == order[:, 0])[labels == label].mean()),
            "same_order": float((orders == order).all(axis=1)[labels == label].mean()),
        }
        for name, (labels, orders) in joined.items()
    }


def speed(model: str, found: dict[str, Way], rounds: int) -> dict[str, dict[str, float | None]]:
    size = open_pipeline(model, device="cpu").image_processor.size
    pixels = np.random.default_rng(0).standard_normal((1, 3, size["height"], size["width"]), dtype=np.float32)
    functions = {name: (lambda way=way: way(pixels)) for name, way in found.items()}
    times = take_turns(functions, 1, rounds, torch.device("cpu"))
    return {name: {"ms": row["ms_per_image"]} for name, row in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--data", type=Path, help="folder with test/CLASS/photograph.jpg; needed for the accuracy")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the ONNX files and the results")
    parser.add_argument("--measure", nargs="+", choices=("accuracy", "speed"), default=["accuracy", "speed"])
    parser.add_argument("--every", type=int, default=1, help="take only each Nth photograph")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15, help="turns that each way takes for the speed")
    args = parser.parse_args()
    if "accuracy" in args.measure and args.data is None:
        parser.error("--measure accuracy needs --data.")
    found, sizes = ways(args.model, args.folder)
    output = args.folder / "small.json"
    results = json.loads(output.read_text()) if output.exists() else {}
    results["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    rows = results.setdefault("ways", {name: {"megabytes": size} for name, size in sizes.items()})
    if "accuracy" in args.measure:
        for name, row in accuracy(args.model, args.data, found, args.batch_size, args.every).items():
            rows[name] |= row
    if "speed" in args.measure:
        for name, row in speed(args.model, found, args.rounds).items():
            rows[name] |= row
    output.write_text(json.dumps(results, indent=1) + "\n")
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.4g}" if column in row else "" for column in columns) + " |")


if __name__ == "__main__":
    main()
