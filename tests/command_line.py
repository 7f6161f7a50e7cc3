"""The command line, in this process."""

from typing import Any

from typer.testing import CliRunner, Result

from promptcam_hf.cli import app


def promptcam(*arguments: Any, input: Any = None) -> Result:
    """What a command prints, and its exit status."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=input)
