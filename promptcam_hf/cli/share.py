"""`promptcam push` and `promptcam convert`: models to and from elsewhere."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .application import app, fail


class BackboneFamily(str, Enum):
    DINO = "dino"
    DINOV2 = "dinov2"


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    repository: Annotated[str, typer.Argument(help="Where to on the Hub: org/name. Made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private if it is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made if need be.  [default: main]")] = None,
    commit_message: Annotated[str | None, typer.Option(help="What the commit says.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the model, as the Hub calls it: cc-by-4.0.")] = None,
) -> None:
    """Put a trained model on the Hub, with its model card.

    All goes in one commit: what fails leaves folder and repository as they were, and can be repeated. The card shows
    pictures of traits on your photographs. Needs a token: `hf auth login`, or HF_TOKEN.

    Example: promptcam push runs/orioles your-name/promptcam-orioles
    """
    from ..share import hub

    try:
        address = hub.push(
            folder,
            repository,
            private=private or None,
            revision=revision,
            commit_message=commit_message,
            license=license,
        )
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(f"Pushed: {address}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the original Prompt-CAM code.")],
    backbone_family: Annotated[BackboneFamily, typer.Option(help="What it was trained on.")],
    output_dir: Annotated[Path, typer.Option(help="New folder for the converted checkpoint.")],
    labels: Annotated[
        Path | None, typer.Option(help="Text file with a class name a line, in the order of the labels.")
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Heads of the backbone. [default: hidden size / 64]")
    ] = None,
) -> None:
    """Turn a checkpoint of the original Prompt-CAM code into one that transformers opens.

    Example: promptcam convert model.pt --backbone-family dino --output-dir promptcam-cub
    """
    from ..share.conversion import convert_checkpoint

    try:
        id2label = None if labels is None else dict(enumerate(labels.read_text().strip().splitlines()))
        model = convert_checkpoint(checkpoint, output_dir, backbone_family.value, id2label, num_attention_heads)
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(
        f"{model.config.num_labels} classes on a {model.config.backbone_config.model_type}. Checkpoint: {output_dir}"
    )
