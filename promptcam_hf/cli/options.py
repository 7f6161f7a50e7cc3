"""Options that several commands have."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..training.options import TrainingOptions

if TYPE_CHECKING:
    from ..guide.trait_names import TraitNames

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
    list[Path] | None, typer.Option(help="File that lists photographs, one per line; the same as @list.txt.")
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

Traits = Annotated[
    Path | None,
    typer.Option(
        help="Folder of `promptcam traits`, made with this model: says what each head shows, by the names in names.csv."
    ),
]


def trait_names(folder: Path | None) -> "TraitNames | None":
    """What `--traits` names, as the functions take it."""
    if folder is None:
        return None
    from ..guide.trait_names import TraitNames

    return TraitNames(folder)


def all_photographs(photographs: list[str] | None, files_from: list[Path] | None) -> list[str]:
    """What the command line names, as the functions take it."""
    return [*(photographs or []), *(f"@{path}" for path in files_from or [])]


def with_training_options(*names: str) -> Callable[[Callable], Callable]:
    """Give a command options that are fields of `TrainingOptions`: those of the names, or all. It gets them as keyword
    arguments, without those that were not given on the command line, so that a recipe can give them."""

    def decorate(command: Callable) -> Callable:
        parameters = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        own = {parameter.name for parameter in parameters}
        for name in names or TrainingOptions.model_fields:
            field = TrainingOptions.model_fields[name]
            default = "no" if field.default is False else field.default
            help = f"{field.description}" + ("" if default is None else f"  [default: {default}]")
            hint: Any = Annotated[field.annotation | None, typer.Option(help=help)]  # type: ignore[operator]
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))

        @wraps(command)
        def call(**given: Any) -> Any:
            return command(**{name: value for name, value in given.items() if name in own or value is not None})

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate
