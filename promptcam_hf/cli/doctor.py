"""`promptcam doctor`."""

import typer

from .application import SHARE_AND_SCALE, app


@app.command(rich_help_panel=SHARE_AND_SCALE)
def doctor() -> None:
    """Print what a bug report needs.

    Versions, devices, caches and free space. The text contains no token and no user name.

    Example: promptcam doctor
    """
    from ..doctor import examine

    findings = examine()
    width = max(map(len, findings))
    for name, finding in findings.items():
        typer.echo(f"{name:<{width}}  {finding}")
