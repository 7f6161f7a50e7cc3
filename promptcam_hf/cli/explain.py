"""`promptcam explain`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .application import LOOK, app, fail

if TYPE_CHECKING:
    from ..explanation.explain import ExplainResult


@app.command(rich_help_panel=LOOK)
def explain(
    photographs: Annotated[list[str], typer.Argument(help="Photographs, folders of them, or URLs.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder or Hub id.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the contact sheets and explanations.jsonl.")],
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Number of most probable classes to explain.  [default: 1]")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Explain this class instead, whatever its score. Repeatable.")
    ] = None,
    top_traits: Annotated[int, typer.Option(min=1, help="Number of traits to show per class.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Photographs per forward pass.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, or the number of a GPU.  [default: a GPU if there is one]")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Where the backbone is now, if --model holds only prompts."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the sheets of an earlier run first.")] = False,
) -> None:
    """Show which traits speak for a class on photographs.

    Writes a contact sheet per photograph (the photograph, then the traits of each explained class, the most important
    first) and explanations.jsonl with all the numbers. If a photograph cannot be read, the others are still explained,
    and the exit status is 1.

    Example: promptcam explain photos/test/*/*.jpg --model runs/orioles --output-dir explained/
    """
    from ..explanation.explain import explain

    try:
        result = explain(
            photographs,
            model,
            output_dir,
            top_k=top_k,
            classes=classes or None,
            top_traits=top_traits,
            batch_size=batch_size,
            device=device,
            backbone=backbone,
            overwrite=overwrite,
        )
    except (ValueError, OSError, FloatingPointError) as error:
        fail(error)
    report(result, output_dir)


def report(result: "ExplainResult", output_dir: Path) -> None:
    """Say what was written, and end the command with exit status 1 if photographs could not be read."""
    for message in result.errors.values():
        typer.echo(f"error: {message}", err=True)
    typer.echo(f"{result.num_written} contact sheets and {result.record.name} in {output_dir}")
    if result.errors:
        fail(f"{len(result.errors)} of {len(result.errors) + result.num_written} photographs could not be read.")
