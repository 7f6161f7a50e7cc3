"""The command-line application, and how its commands report errors."""

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..files import as_text
from ..messages import cause
from ..version import __version__

# Under these headings `promptcam --help` lists the commands
HEADINGS = TRAIN_AND_DATA, LOOK, SHARE_AND_SCALE = "Train and data", "Look", "Share and scale"
CONTINUES = "The same command continues."  # after an interruption that loses nothing


class _GroupedCommands(TyperGroup):
    """Lists commands by their `rich_help_panel`. Typer does so with rich only, which cuts off long option names."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = formatter.width - 6 - max(map(len, self.commands))
        by_heading: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for name, command in self.commands.items():
            heading = getattr(command, "rich_help_panel", None) or "Other"
            by_heading.setdefault(heading, []).append((name, command.get_short_help_str(width)))
        for heading, rows in by_heading.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


app = typer.Typer(
    cls=_GroupedCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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
    format_before, warnings.formatwarning = warnings.formatwarning, _warning_line
    context.with_resource(warnings.catch_warnings())
    # Pillow warns of photographs that it still reads; larger ones are refused in a line that names them
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")

    @context.call_on_close
    def restore() -> None:
        warnings.formatwarning = format_before
        if signal.getsignal(signal.SIGINT) is _interrupt_once:  # not interrupted
            signal.signal(signal.SIGINT, before)


def _interrupt_once(number: int, frame: object) -> None:
    """The first Ctrl-C ends the command; further ones must not interrupt how it ends."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _warning_line(message: Warning | str, *where: object, **line: object) -> str:
    """A warning in the form of errors, without the line of code that it comes from."""
    return f"warning: {message}\n"


def is_main_process() -> bool:
    """Whether this process is the first, or the only one, of `accelerate launch`: the one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def failing_in_one_line(when_interrupted: str = "") -> Iterator[None]:
    """End the command in one line if the user can fix what is wrong, such as by installing an extra, or interrupts it;
    `when_interrupted` then says what is left, and how to go on."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        fail(error)
    except KeyboardInterrupt:
        interrupted(when_interrupted)


def say_written(what: str, place: str | Path, remark: str = "") -> None:
    """Say what a command has written, and where: `2 contact sheets in explained; ...`."""
    typer.echo(f"{what} in {as_text(str(place).rstrip('/'))}" + (f"; {remark}" if remark else ""))


def interrupted(remark: str = "") -> NoReturn:
    """Say so once, not in every process of `accelerate launch`, and end the command with the exit status of Ctrl-C."""
    if is_main_process():
        typer.echo(f"Interrupted. {remark}".rstrip(), err=True)
    raise typer.Exit(130) from None


def fail(message: Exception | str) -> NoReturn:
    """Print an error in one line and end the command with exit status 1."""
    typer.echo(f"error: {cause(message)}", err=True)
    raise typer.Exit(1)
