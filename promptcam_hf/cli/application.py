"""What all commands share: the application, and how errors are shown."""

import os
from typing import NoReturn

import typer

app = typer.Typer(
    help="Prompt-CAM: which traits, on a photograph, make this bird a Scott's Oriole and not a Baltimore Oriole.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose help cuts long names of options
)


def is_main_process() -> bool:
    """Whether this is the one process of `accelerate launch` that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def fail(message: Exception | str) -> NoReturn:
    text = str(message)
    if text.startswith("Caught "):  # by a worker process, whose whole traceback it is
        text = text.strip().splitlines()[-1].partition(": ")[2]
    typer.echo(f"error: {text}", err=True)
    raise typer.Exit(1)
