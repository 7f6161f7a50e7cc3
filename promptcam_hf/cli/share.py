"""`promptcam push`, `promptcam convert` and `promptcam export`: sharing models, and models from the original code."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .application import SHARE_AND_SCALE, app, failing_in_one_line, say_written
from .options import Backbone


@app.command(rich_help_panel=SHARE_AND_SCALE)
def push(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    repository: Annotated[str, typer.Argument(help="Hub repository, org/name. Created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, created if it does not exist.  [default: main]")] = None,
    commit_message: Annotated[
        str | None, typer.Option(help="Commit message.  [default: Prompt-CAM of <number> classes]")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence of the model, by its identifier on the Hub, such as cc-by-4.0.")
    ] = None,
) -> None:
    """Push a trained model to the Hub, with its model card.

    Everything goes into one commit. If anything fails, folder and repository stay as they were, and you can push again.
    The model card shows photographs of your data, with their traits. Needs a token: log in with `hf auth login`, or set
    HF_TOKEN.

    Example: promptcam push runs/orioles your-name/promptcam-orioles
    """
    from ..share import hub

    with failing_in_one_line():
        address = hub.push(
            folder,
            repository,
            private=private or None,
            revision=revision,
            commit_message=commit_message,
            license=license,
        )
    typer.echo(f"Pushed: {address}")


@app.command(rich_help_panel=SHARE_AND_SCALE)
def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(help="Checkpoint of the original Prompt-CAM code: a file, or org/repository:file on the Hub."),
    ],
    output_dir: Annotated[Path, typer.Option(help="New folder for the converted checkpoint.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Class names in label order: a UTF-8 text file, one per line; or the folder of the data set."
        ),
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Attention heads in each layer.  [default: hidden size / 64]")
    ] = None,
) -> None:
    """Convert a checkpoint of the original Prompt-CAM code.

    Afterwards transformers can load it.

    Example: promptcam convert model.pt --output-dir promptcam-cub
    """
    from ..share.conversion import convert_checkpoint, read_labels

    with failing_in_one_line():
        id2label = None if labels is None else read_labels(labels)
        model = convert_checkpoint(checkpoint, output_dir, id2label, num_attention_heads)
    config = model.config
    say_written("Checkpoint", output_dir, f"{config.num_labels} classes on a {config.backbone_config.model_type}")


@app.command(rich_help_panel=SHARE_AND_SCALE)
def export(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id.")],
    output: Annotated[Path, typer.Option(help="File to write.")],
    format: Annotated[Literal["onnx"], typer.Option(help="Format of the file.")] = "onnx",
    quantize: Annotated[
        Literal["int8"] | None,
        typer.Option(help="Store weights as 8-bit integers: a third of the size.  [default: 32-bit floats]"),
    ] = None,
    backbone: Backbone = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Export a model for machines without torch.

    ONNX Runtime runs the file. It predicts, gives the trait maps of a class, and ranks the heads.

    Example: promptcam export runs/orioles --output orioles.onnx
    """
    from ..share.export import export_onnx

    with failing_in_one_line():
        export_onnx(model, output, quantize=quantize, backbone=backbone, overwrite=overwrite)
    say_written("Model", output, f"{output.stat().st_size / 1e6:.1f} MB")
