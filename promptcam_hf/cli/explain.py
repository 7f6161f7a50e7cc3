"""`promptcam explain` and `promptcam sheets`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .application import LOOK, app, fail, is_main_process
from .options import Backbone, BatchSize, DataType, Device, FilesFrom, Model, NumWorkers, Photographs, all_photographs

if TYPE_CHECKING:
    from ..explanation.explain import ExplainResult

OutputDir = Annotated[
    Path | None, typer.Option(help="Folder for the contact sheets and explanations.jsonl, or shards.")
]
Html = Annotated[Path | None, typer.Option(help="One page, in this file, with all photographs and their traits.")]
Save = Annotated[
    str,
    typer.Option(
        help="Also save, separated by commas: `maps` (a file for each trait), `heads` (for each head), `overlay` "
        "(maps over the photograph), `regions` (regions.csv: peaks and boxes in pixels)."
    ),
]
Format = Annotated[
    Literal["png", "npy", "svg", "pdf", "jsonl", "parquet"],
    typer.Option(
        help="Format of the saved maps. Or without files for each photograph: jsonl for explanations.jsonl alone, "
        "parquet for shards of rows."
    ),
]


@app.command(rich_help_panel=LOOK)
def explain(
    model: Model,
    photographs: Photographs = None,
    files_from: FilesFrom = None,
    output_dir: OutputDir = None,
    html: Html = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Number of most probable classes to explain.  [default: 1]")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Explain this class instead, whatever its score. Repeatable.")
    ] = None,
    top_traits: Annotated[int, typer.Option(min=1, help="Number of traits to show per class.")] = 4,
    save: Save = "",
    format: Format = "png",
    size: Annotated[
        Literal["photograph", "grid"] | None,
        typer.Option(
            help="Size of the saved maps: the photograph's, or one pixel per patch.  "
            "[default: photograph; grid for npy]"
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="With --format parquet: rows of a file.")] = 10_000,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = None,
    dtype: DataType = None,
    device: Device = None,
    backbone: Backbone = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what an earlier run wrote first.")] = False,
) -> None:
    """Show which traits speak for a class on photographs.

    Writes a contact sheet per photograph (the photograph, then the traits of each explained class, the most important
    first) and explanations.jsonl with all the numbers. If a photograph cannot be read, the others are still explained,
    and the exit status is 1.

    --html writes a page that shows all of them and can be sent to others as one file, with or without a folder.

    With --format parquet, for any number of photographs, writes files of --shard-size rows instead. The same command
    goes on after an interruption. Runs on several GPUs with `accelerate launch -m promptcam_hf explain ...`.

    Example: promptcam explain photos/test/*/*.jpg --model runs/orioles --output-dir explained/
    """
    given = all_photographs(photographs, files_from)
    options: dict[str, Any] = {"top_k": top_k, "classes": classes or None, "top_traits": top_traits}
    options |= {"batch_size": batch_size, "num_workers": num_workers, "dtype": dtype, "device": device}
    options |= {"backbone": backbone}
    if format == "parquet":
        if save or size or overwrite or html:
            fail("--format parquet: leave out --save, --size, --html and --overwrite.")
        if output_dir is None:
            fail("--format parquet: expected a folder for the shards (--output-dir).")
        _explain_shards(given, model, output_dir, {**options, "shard_size": shard_size})
    else:
        options |= {"save": [name.strip() for name in save.split(",") if name.strip()], "size": size}
        _explain(given, model, output_dir, {**options, "html": html, "format": format, "overwrite": overwrite})


def _explain(photographs: list[str], model: str, output_dir: Path | None, options: dict[str, Any]) -> None:
    from ..explanation.explain import explain

    try:
        result = explain(photographs, model, output_dir, **options)
    except (ValueError, OSError, FloatingPointError) as error:
        fail(error)
    with_sheets = options["format"] != "jsonl"
    report(result, output_dir, with_sheets, options["html"])


def report(
    result: "ExplainResult", output_dir: Path | None, with_sheets: bool = True, html: Path | None = None
) -> None:
    """Say what was written, and end the command with exit status 1 if photographs could not be read."""
    for message in result.errors.values():
        typer.echo(f"error: {message}", err=True)
    if result.record is not None and with_sheets:
        typer.echo(f"{result.num_written} contact sheets and {result.record.name} in {output_dir}")
    for file in (None if with_sheets else result.record, html):
        if file is not None:
            typer.echo(f"{result.num_written} photographs in {file}")
    if result.errors:
        fail(f"{len(result.errors)} of {len(result.errors) + result.num_written} photographs could not be read.")


def _explain_shards(photographs: list[str], model: str, output_dir: Path, options: dict[str, Any]) -> None:
    from ..explanation.shards import explain_shards

    try:
        result = explain_shards(photographs, model, output_dir, **options)
    except (ValueError, OSError, FloatingPointError) as error:
        fail(error)
    if is_main_process():
        earlier = f"; {result.num_earlier} were there already" if result.num_earlier else ""
        typer.echo(f"{result.num_photographs} photographs in {result.num_shards} new shards in {output_dir}{earlier}")
    if result.num_errors:
        typer.echo(f"{result.num_errors} photographs could not be read: the column `error` says why.", err=True)


@app.command(rich_help_panel=LOOK)
def sheets(
    folder: Annotated[Path, typer.Argument(help="Folder that `promptcam explain --format parquet` has written.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the contact sheets.")],
    where: Annotated[
        str | None, typer.Option(help="Which photographs, such as \"label == 'Scott_Oriole' and score < 0.6\".")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of sheets, at most.")] = 100,
) -> None:
    """Draw contact sheets of photographs that were explained into parquet files.

    The photographs must still be where they were. Conditions compare columns of the files, such as label, score, truth
    (the true class) and width, with each other or with values.

    Example: promptcam sheets explained/ --where "label != truth" --output-dir mistakes/
    """
    from ..explanation.sheets import draw_sheets

    try:
        count, errors = draw_sheets(folder, output_dir, where=where, limit=limit)
    except (ValueError, OSError) as error:
        fail(error)
    for message in errors.values():
        typer.echo(f"error: {message}", err=True)
    typer.echo(f"{count} contact sheets in {output_dir}")
    if errors:
        fail(f"{len(errors)} of {count + len(errors)} photographs could not be drawn.")
