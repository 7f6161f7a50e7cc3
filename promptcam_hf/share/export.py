"""Models for machines without torch: ONNX files that classify photographs and rank the heads.

Shapes: B photographs, C classes, H heads.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

from ..checkpoint import open_pipeline
from ..data.photographs import input_size
from ..files import draft_of, writing_to
from ..messages import check_installed, first_line
from ..modeling import PromptCamForImageClassification, PromptCamPipeline
from ..modeling.backbone_promptcam import family_of
from ..modeling.head_ranking_promptcam import rank_heads
from ..version import __version__

METADATA = "promptcam"
OUTPUTS = ("logits", "explained", "trait_maps", "order", "blurred_probability", "num_sufficient")
LARGEST = 2**31 - 2**24  # bytes of weights: an ONNX file, a protobuf message, ends at 2 GiB


class _Explained(nn.Module):
    """What the graph computes: the ranking of `rank_heads`, of one class of each image."""

    def __init__(self, model: PromptCamForImageClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer = self.model.last_layer(pixel_values)
        explained = torch.where(classes < 0, layer.logits.argmax(dim=-1), classes)
        ranking = rank_heads(self.model, layer, explained, 1)
        return tuple(ranking.classes if name == "explained" else ranking[name] for name in OUTPUTS)


def export_onnx(
    model: str | os.PathLike,
    output: str | os.PathLike,
    *,
    quantize: Literal["int8"] | None = None,
    backbone: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> None:
    """
    Write a model as an ONNX file, which ONNX Runtime runs without torch (`examples/explain_without_torch.py`).

    Inputs: `pixel_values`, float32 `(B, channels, height, width)`, photographs as the image processor makes them;
    `classes`, int64 `(B,)`, the class to explain on each, -1 for the one that scores highest. Outputs: `logits`
    `(B, C)`; `explained` `(B,)`, the explained classes; and of these, as `rank_heads` returns them, `trait_maps`
    `(B, H, grid_height, grid_width)`, `order` `(B, H)`, `blurred_probability` `(B, H)` and `num_sufficient` `(B,)`.

    The metadata entry `promptcam` is JSON: `classes` (names, in the order of the logits), `temperature` (probabilities
    are the softmax of logits / temperature), `preprocessing` (as in `preprocessor_config.json`), `model`, `quantize`,
    and versions.

    Args:
        model: Checkpoint folder or Hub id.
        output: The file to write. Folders are created.
        quantize: "int8" stores the weights of matrix products as 8-bit integers, with one scale for each output, and
            rounds the activations that they are multiplied with to 8 bits too (ONNX Runtime's dynamic quantisation).
        backbone: Where the backbone is now (Hub id or folder), for a checkpoint that holds only prompts.
        overwrite: Whether to replace the file if it exists.

    Raises:
        ValueError: If the model cannot be opened or exported, the file exists, or an argument is out of range.
        ModuleNotFoundError: If packages of the extra `onnx` are missing.
        OSError: If the file cannot be written.

    Example:

    ```python
    >>> from promptcam_hf import export_onnx

    >>> export_onnx("runs/orioles", "orioles.onnx", quantize="int8")
    ```
    """
    output = Path(output).expanduser()
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize}: expected int8.")
    _check_output(output, overwrite)
    check_installed("onnx", "onnx", "onnxscript", "onnxruntime")
    pipe = open_pipeline(model, device="cpu", backbone=backbone)
    name, size = f"model={os.fspath(model)}", input_size(pipe.image_processor)
    network = _Explained(pipe.model.float()).eval()
    config: Any = pipe.model.config.backbone_config
    if sum(weight.nbytes for weight in network.parameters()) > LARGEST:
        raise ValueError(f"{name}: its weights take more than 2 GB, too many for one ONNX file.")
    example = torch.zeros(2, config.num_channels, *size)
    graph = _to_onnx(network, example, f"{name}, a {family_of(config.model_type).name}")
    with writing_to(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    _check_output(output, overwrite)  # another run may have written it since
    with draft_of(output) as draft:
        _write(graph, json.dumps(_about(pipe, model, quantize)), quantize, draft)


def _check_output(output: Path, overwrite: bool) -> None:
    """Refuse a file that could not be written after the work."""
    if output.is_dir():
        raise ValueError(f"{output} is a folder; expected a file to write.")
    if not (there := next(folder for folder in output.absolute().parents if folder.exists())).is_dir():
        raise ValueError(f"{output}: {there} is a file; expected a folder.")
    if os.path.lexists(output) and not overwrite:
        raise ValueError(f"{output} exists; choose another name, or overwrite it (--overwrite).")


def _about(pipe: PromptCamPipeline, model: str | os.PathLike, quantize: str | None) -> dict[str, Any]:
    """What the metadata entry holds."""
    config: Any = pipe.model.config
    is_folder = Path(model).expanduser().is_dir()  # its path is of no use elsewhere
    return {
        "model": Path(model).expanduser().resolve().name if is_folder else os.fspath(model),
        "commit": getattr(config, "_commit_hash", None),
        "classes": [config.id2label[label] for label in range(config.num_labels)],
        "temperature": config.temperature,
        "preprocessing": json.loads(pipe.image_processor.to_json_string()),
        "quantize": quantize,
        "promptcam_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _to_onnx(module: nn.Module, pixel_values: torch.Tensor, name: str) -> Any:
    """The graph (an `onnx.ModelProto`) of a module that maps `pixel_values` and `classes` to `OUTPUTS`, for any batch
    size. Here, `pixel_values` are two or more example images. Errors call the module `name`."""
    batch = {0: torch.export.Dim("batch")}
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                module,
                (pixel_values, torch.full((len(pixel_values),), -1)),
                input_names=["pixel_values", "classes"],
                output_names=list(OUTPUTS),
                dynamic_shapes=(batch, batch),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"{name}: torch {torch.__version__} cannot export it to ONNX ({reason}).") from None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of the exporter."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write(graph: Any, about: str, quantize: str | None, path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if quantize is not None:
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / "int8.onnx"
            quantize_dynamic(graph, small, weight_type=QuantType.QInt8, per_channel=True)
            graph = onnx.load(small)
    del graph.metadata_props[:]
    graph.producer_name, graph.producer_version = "promptcam-hf", __version__
    onnx.helper.set_model_props(graph, {METADATA: about})
    path.write_bytes(graph.SerializeToString())
