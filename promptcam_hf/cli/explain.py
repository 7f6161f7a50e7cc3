"""`promptcam explain`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .application import app, fail


@app.command()
def explain(
    model: Annotated[str, typer.Option(help="Checkpoint folder or Hub id.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the contact sheets and explanations.jsonl.")],
    photographs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Photographs, folders of them, patterns or URLs; @list.txt for a list, - for one on standard input."
        ),
    ] = None,
    files_from: Annotated[
        list[Path] | None, typer.Option(help="List of photographs, one in each line; the same as @list.txt.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Number of most probable classes to explain.  [default: 1]")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Explain this class instead, whatever its score. Repeatable.")
    ] = None,
    top_traits: Annotated[int, typer.Option(min=1, help="Number of traits to show per class.")] = 4,
    save: Annotated[
        str,
        typer.Option(
            help="Also save, separated by commas: `maps` (a file for each trait), `heads` (for each head), `overlay` "
            "(maps over the photograph), `regions` (regions.csv: peaks and boxes in pixels)."
        ),
    ] = "",
    format: Annotated[Literal["png", "npy", "svg", "pdf"], typer.Option(help="Format of the saved maps.")] = "png",
    size: Annotated[
        Literal["photograph", "grid"] | None,
        typer.Option(
            help="Size of the saved maps: the photograph's, or a pixel a patch.  [default: photograph; grid for npy]"
        ),
    ] = None,
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
            [*(photographs or []), *(f"@{path}" for path in files_from or [])],
            model,
            output_dir,
            top_k=top_k,
            classes=classes or None,
            top_traits=top_traits,
            save=[name.strip() for name in save.split(",") if name.strip()],
            format=format,
            size=size,
            batch_size=batch_size,
            device=device,
            backbone=backbone,
            overwrite=overwrite,
        )
    except (ValueError, OSError, FloatingPointError) as error:
        fail(error)
    for message in result.errors.values():
        typer.echo(f"error: {message}", err=True)
    typer.echo(f"{result.num_written} contact sheets and {result.record.name} in {output_dir}")
    if result.errors:
        fail(f"{len(result.errors)} of {len(result.errors) + result.num_written} photographs could not be read.")
