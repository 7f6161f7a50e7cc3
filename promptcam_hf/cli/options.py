"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Photographs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Photographs, folders of them, patterns or URLs; @list.txt for a list, - for one on standard input. "
        "`predict`, and `explain --format parquet`, also take tar and parquet files and datasets on the Hub "
        "(org/name:split)."
    ),
]
Model = Annotated[str, typer.Option(help="Checkpoint folder or Hub id.")]
FilesFrom = Annotated[
    list[Path] | None, typer.Option(help="List of photographs, one in each line; the same as @list.txt.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Photographs per forward pass.")]
NumWorkers = Annotated[
    int | None, typer.Option(min=1, help="Threads that read photographs.  [default: one per core, at most 8]")
]
DataType = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Data type of the backbone's arithmetic.  [default: the checkpoint's]"),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 or mps, or the number of a GPU.  [default: a GPU if there is one]")
]
Backbone = Annotated[str | None, typer.Option(help="Where the backbone is now, if --model holds only prompts.")]


def all_photographs(photographs: list[str] | None, files_from: list[Path] | None) -> list[str]:
    """What the command line names, as the functions take it."""
    return [*(photographs or []), *(f"@{path}" for path in files_from or [])]
