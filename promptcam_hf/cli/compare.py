"""`promptcam compare`."""

from pathlib import Path
from typing import Annotated

import typer

from .application import LOOK, app, failing_in_one_line
from .explain import SHEETS_STAY, report
from .options import (
    Backbone,
    BatchSize,
    DataType,
    Device,
    FilesFrom,
    Model,
    NumWorkers,
    Photographs,
    Traits,
    all_photographs,
    trait_names,
)


@app.command(rich_help_panel=LOOK)
def compare(
    model: Model,
    output_dir: Annotated[Path, typer.Option(help="Folder for the sheets and explanations.jsonl.")],
    photographs: Photographs = None,
    files_from: FilesFrom = None,
    b: Annotated[
        str,
        typer.Option("--b", help="The class to compare with, or auto: the runner-up. It also replaces B where A is B."),
    ] = "auto",
    a: Annotated[
        str | None, typer.Option("--a", help="The class to explain.  [default: the most probable on each photograph]")
    ] = None,
    top_traits: Annotated[int, typer.Option(min=1, help="Number of heads to show.")] = 4,
    traits: Traits = None,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = None,
    dtype: DataType = None,
    device: Device = None,
    backbone: Backbone = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the sheets of an earlier run first.")] = False,
) -> None:
    """Show what speaks for class A and against class B.

    Writes a sheet for each photograph, and explanations.jsonl with all the numbers. A sheet has what speaks for or
    against A, for or against B, both together, and the same in single heads. Yellow is for A, blue is for B. If a
    photograph cannot be read, the others are still compared, and the exit status is 1.

    Example: promptcam compare photos/test/*/*.jpg --model runs/orioles --b Baltimore_Oriole --output-dir compared/
    """
    from ..explanation.compare import compare
    from ..modeling.pipeline_promptcam import loose_name

    with failing_in_one_line(SHEETS_STAY):
        result = compare(
            all_photographs(photographs, files_from),
            model,
            output_dir,
            a=a,
            b=b,
            top_traits=top_traits,
            traits=trait_names(traits),
            batch_size=batch_size,
            num_workers=num_workers,
            dtype=dtype,
            device=device,
            backbone=backbone,
            overwrite=overwrite,
        )
    counts = result.compared_with
    with_b = counts[b] or sum(count for name, count in counts.items() if loose_name(name) == loose_name(b))
    replaced = 0 if b == "auto" else result.num_written - with_b
    report(result, remark=f"on {replaced} of these, A is {b} itself, so B is the runner-up" if replaced else "")
