"""`promptcam predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..messages import counted
from .application import LOOK, app, fail, failing_in_one_line, say_written
from .options import Backbone, BatchSize, DataType, Device, FilesFrom, Model, NumWorkers, Photographs, all_photographs


@app.command(rich_help_panel=LOOK)
def predict(
    model: Model,
    photographs: Photographs = None,
    files_from: FilesFrom = None,
    output: Annotated[
        Path | None, typer.Option(help="Table to write: .csv, .json, .jsonl or .parquet.  [default: CSV, printed]")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of most probable classes to name.")] = 5,
    only: Annotated[
        Path | None,
        typer.Option(
            help="Answer only these classes, such as the species of a region: a CSV file with a column `class`, or a "
            "text file with one class per line."
        ),
    ] = None,
    unknown_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="Answer `unknown` if no class reaches this probability.")
    ] = None,
    roll_up: Annotated[
        Path | None,
        typer.Option(
            help="CSV file with the columns class,group, such as a genus for each species: answer the group if no "
            "class is probable enough (--unknown-below, or 0.5), but the group is."
        ),
    ] = None,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = None,
    dtype: DataType = None,
    device: Device = None,
    backbone: Backbone = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the table if it is there.")] = False,
) -> None:
    """Predict the classes of photographs.

    Writes a table with a row for each photograph: the answer and its probability, and the most probable classes. If a
    photograph cannot be read, its row says why, the others are still predicted, and the exit status is 1.

    Example: promptcam predict photos/ --model runs/orioles --output predictions.csv
    """
    from ..explanation.predict import predict

    options: dict[str, Any] = {"top_k": top_k, "only": only, "unknown_below": unknown_below, "roll_up": roll_up}
    options |= {"batch_size": batch_size, "num_workers": num_workers, "dtype": dtype, "device": device}
    with failing_in_one_line("" if output is None else f"{output} was not written."):
        given = all_photographs(photographs, files_from)
        result = predict(given, model, output, overwrite=overwrite, backbone=backbone, **options)
    if result.only is not None:
        classes = counted(len(result.only), "class")
        typer.echo(f"Only {classes} could be the answer; probabilities are over these alone.", err=True)
    if output is not None:
        say_written(counted(result.num_photographs, "photograph"), output)
    if result.errors:
        fail(f"{len(result.errors)} of {counted(result.num_photographs, 'photograph')} could not be read.")
