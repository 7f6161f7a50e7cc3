"""`promptcam explain` and `promptcam sheets`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..messages import counted
from .application import CONTINUES, LOOK, app, fail, failing_in_one_line, is_main_process, say_written
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

if TYPE_CHECKING:
    from ..explanation.explain import ExplainResult

# After an interruption: without --overwrite, sheets that are there would be refused
SHEETS_STAY = "The sheets that are done stay; to start again, add --overwrite."

OutputDir = Annotated[
    str | None,
    typer.Option(help="Folder for the contact sheets and explanations.jsonl; for shards, also s3://bucket/folder."),
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
        help="Format of the saved maps. Or, instead of files for each photograph: jsonl for explanations.jsonl alone, "
        "parquet for shards of rows."
    ),
]
Size = Annotated[
    Literal["photograph", "grid"] | None,
    typer.Option(
        help="Size of the saved maps: the photograph's, or one pixel per patch.  [default: photograph; grid for npy]"
    ),
]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="With --format parquet: what divides the work; ray on a cluster.")
]
NumActors = Annotated[
    int | None,
    typer.Option(min=1, help="With --engine ray: number of processes.  [default: as many as the GPUs allow]"),
]
NumGpus = Annotated[
    float | None, typer.Option(min=0, help="With --engine ray: GPUs for each process.  [default: 1 if there is one]")
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
    traits: Traits = None,
    save: Save = "",
    format: Format = "png",
    size: Size = None,
    shard_size: Annotated[int, typer.Option(min=1, help="With --format parquet: rows of a file.")] = 10_000,
    engine: Engine = "local",
    num_actors: NumActors = None,
    num_gpus: NumGpus = None,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = None,
    dtype: DataType = None,
    device: Device = None,
    backbone: Backbone = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what an earlier run wrote first.")] = False,
) -> None:
    """Show which traits speak for a class on photographs.

    Writes a contact sheet for each photograph (the photograph, then the traits of each explained class, the most
    important first) and explanations.jsonl with all the numbers. If a photograph cannot be read, the others are still
    explained, and the exit status is 1.

    --html writes one page with all photographs, a single file to send to others. --output-dir is then optional.

    --format parquet is for any number of photographs. It writes files of --shard-size rows instead of sheets. After an
    interruption, the same command continues. It runs on several GPUs with
    `accelerate launch -m promptcam_hf explain ...`, and on a cluster with --engine ray.

    Example: promptcam explain photos/test/*/*.jpg --model runs/orioles --output-dir explained/
    """
    given = all_photographs(photographs, files_from)
    options: dict[str, Any] = {"top_k": top_k, "classes": classes or None, "top_traits": top_traits}
    options |= {"batch_size": batch_size, "num_workers": num_workers, "dtype": dtype, "device": device}
    options |= {"backbone": backbone, "traits": traits}
    if format == "parquet":
        if save or size or overwrite or html:
            fail("--format parquet: leave out --save, --size, --html and --overwrite.")
        if output_dir is None:
            fail("--format parquet: expected a folder for the shards (--output-dir).")
        if output_dir.startswith("memory:"):
            fail(f"{output_dir}: memory does not outlast this command; expected a folder on a disk or in a bucket.")
        pool = {"num_actors": num_actors, "num_gpus": num_gpus}
        _explain_shards(given, model, output_dir, {**options, "shard_size": shard_size}, engine, pool)
    else:
        if engine != "local":
            fail(f"--engine {engine} needs --format parquet.")
        options |= {"save": [name.strip() for name in save.split(",") if name.strip()], "size": size}
        _explain(given, model, output_dir, {**options, "html": html, "format": format, "overwrite": overwrite})


def _explain(photographs: list[str], model: str, output_dir: str | None, options: dict[str, Any]) -> None:
    from ..explanation.explain import explain

    has_sheets = output_dir is not None and options["format"] != "jsonl"
    with failing_in_one_line(SHEETS_STAY if has_sheets else "Nothing was written."):
        options["traits"] = trait_names(options["traits"])
        result = explain(photographs, model, output_dir, **options)
    if result.num_by_default and not options["classes"]:
        wins = f"On {result.num_by_default} of {counted(result.num_written, 'photograph')} the class wins even with all"
        typer.echo(f"{wins} heads blurred, so the order of its maps says little.", err=True)
    report(result, options["format"] != "jsonl", options["html"])


def report(result: "ExplainResult", with_sheets: bool = True, html: Path | None = None, remark: str = "") -> None:
    """Say what was written, and end the command with exit status 1 if photographs could not be read."""
    for message in result.errors.values():
        typer.echo(f"error: {message}", err=True)
    if result.record is not None and with_sheets:
        sheets = counted(result.num_written, "contact sheet")
        say_written(f"{sheets} and {result.record.name}", result.record.parent, remark)
    for file in (None if with_sheets else result.record, html):
        if file is not None:
            say_written(counted(result.num_written, "photograph"), file)
    if result.errors:
        total = counted(len(result.errors) + result.num_written, "photograph")
        fail(f"{len(result.errors)} of {total} could not be read.")


def _explain_shards(
    photographs: list[str], model: str, output_dir: str, options: dict[str, Any], engine: str, pool: dict[str, Any]
) -> None:
    from ..explanation.ray_engine import explain_on_ray
    from ..explanation.shards import explain_shards

    if engine == "ray" and options["device"] is not None:
        fail("--engine ray: leave out --device; --num-gpus says whether GPUs are used.")
    if engine != "ray" and any(value is not None for value in pool.values()):
        fail("--num-actors and --num-gpus need --engine ray.")
    with failing_in_one_line(CONTINUES):
        options["traits"] = trait_names(options["traits"])
        if engine == "ray":
            del options["device"]
            result = explain_on_ray(photographs, model, output_dir, **options, **pool)
        else:
            result = explain_shards(photographs, model, output_dir, **options)
    if is_main_process():
        earlier = f"{counted(result.num_earlier, 'shard')} already there" if result.num_earlier else ""
        written = f"{counted(result.num_photographs, 'photograph')} in {counted(result.num_shards, 'new shard')}"
        say_written(written, output_dir, earlier)
    if result.num_errors:
        unread = counted(result.num_errors, "photograph")
        typer.echo(f"{unread} could not be read: the column `error` says why.", err=True)


@app.command(rich_help_panel=LOOK)
def sheets(
    folder: Annotated[str, typer.Argument(help="Folder that `promptcam explain --format parquet` has written.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the contact sheets.")],
    where: Annotated[
        str | None, typer.Option(help="Which photographs, such as \"label == 'Scott_Oriole' and score < 0.6\".")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of sheets.")] = 100,
) -> None:
    """Draw contact sheets from what `explain --format parquet` wrote.

    The photographs must still be where they were. Conditions compare columns of the files, such as label, score, truth
    (the true class) and width, with each other or with values.

    Example: promptcam sheets explained/ --where "label != truth" --output-dir mistakes/
    """
    from ..explanation.sheets import draw_sheets

    with failing_in_one_line():
        count, errors = draw_sheets(folder, output_dir, where=where, limit=limit)
    for message in errors.values():
        typer.echo(f"error: {message}", err=True)
    say_written(counted(count, "contact sheet"), output_dir)
    if errors:
        fail(f"{len(errors)} of {counted(count + len(errors), 'photograph')} could not be drawn.")
