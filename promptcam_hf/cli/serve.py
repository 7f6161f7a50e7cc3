"""`promptcam app` and `promptcam space`: the application in a browser, here and on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .application import LOOK, app, failing_in_one_line
from .options import Backbone, Device

Examples = Annotated[
    Path | None,
    typer.Option(help="Folder of photographs to choose from; the first eight are shown.  [default: none]"),
]


@app.command("app", rich_help_panel=LOOK)
def serve_app(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or Hub id.  [default: the model of drawn birds that ships]")
    ] = None,
    guide: Annotated[Path | None, typer.Option(help="Field guide to show, as `promptcam guide` writes it.")] = None,
    examples: Examples = None,
    device: Device = None,
    backbone: Backbone = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.  [default: the first that is free from 7860 on]")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also make a temporary public address.")] = False,
) -> None:
    """Look at photographs in a browser.

    Drop a photograph to see the most probable classes and the heads that speak for them; look with another class's
    prompt, compare two classes, and blur heads to see what they are worth. Many photographs at once give a table and
    contact sheets. Nothing is kept after a visit, and nothing is sent anywhere.

    Example: promptcam app --model runs/orioles
    """
    with failing_in_one_line("app"):
        from ..app.serve import serve

        serve(
            model,
            guide=guide,
            examples=examples,
            device=device,
            backbone=backbone,
            host=host,
            port=port,
            share=share,
        )
