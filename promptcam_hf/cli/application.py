"""The command-line application, and how its commands report errors."""

import os
import signal
from typing import Annotated, NoReturn

import typer

from ..messages import cause
from ..version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with it, the help cuts off long option names
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"promptcam-hf {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, use and share Prompt-CAM models, which show the traits that make this bird a Scott's Oriole and not a
    Baltimore Oriole."""
    before = signal.signal(signal.SIGINT, _interrupt_once)

    @context.call_on_close
    def restore() -> None:
        if signal.getsignal(signal.SIGINT) is _interrupt_once:  # not interrupted
            signal.signal(signal.SIGINT, before)


def _interrupt_once(number: int, frame: object) -> None:
    """The first Ctrl-C ends the command; further ones must not interrupt how it ends."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def is_main_process() -> bool:
    """Whether this process is the first, or the only one, of `accelerate launch`: the one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def fail(message: Exception | str) -> NoReturn:
    """Print an error in one line and end the command with exit status 1."""
    typer.echo(f"error: {cause(message)}", err=True)
    raise typer.Exit(1)
