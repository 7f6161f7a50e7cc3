"""The command-line application, and how its commands report errors."""

import os
from typing import NoReturn

import typer

app = typer.Typer(
    help="Train, use and share Prompt-CAM models, which show the traits that make this bird a Scott's Oriole and not a "
    "Baltimore Oriole.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with it, the help cuts off long option names
)


def is_main_process() -> bool:
    """Whether this process is the first, or the only one, of `accelerate launch`: the one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def fail(message: Exception | str) -> NoReturn:
    """Print an error in one line and end the command with exit status 1."""
    text = str(message)
    if text.startswith("Caught "):  # what torch makes of an error in a worker process: its whole traceback
        text = text.strip().splitlines()[-1].partition(": ")[2]
    typer.echo(f"error: {text}", err=True)
    raise typer.Exit(1)
