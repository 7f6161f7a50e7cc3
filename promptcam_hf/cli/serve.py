"""`promptcam app` and `promptcam space`: the application in a browser, here and on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .application import LOOK, SHARE_AND_SCALE, app, failing_in_one_line, say_written
from .options import Backbone, Device, Traits, trait_names

Examples = Annotated[
    Path | None,
    typer.Option(help="Folder of photographs to choose from; the first eight are shown.  [default: none]"),
]


@app.command("app", rich_help_panel=LOOK)
def app_command(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or Hub id.  [default: the packaged model of drawn birds]")
    ] = None,
    guide: Annotated[Path | None, typer.Option(help="Field guide to show, as `promptcam guide` writes it.")] = None,
    examples: Examples = None,
    traits: Traits = None,
    device: Device = None,
    backbone: Backbone = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.  [default: the first free one from 7860]")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also make a temporary public address.")] = False,
) -> None:
    """Look at photographs in a browser.

    Drop a photograph to see the most probable classes and the heads that speak for them. Look with the prompt of
    another class, compare two classes, or blur heads to see how much they matter. Many photographs at once give a table
    and contact sheets. Nothing is kept after a visit.

    Example: promptcam app --model runs/orioles
    """
    with failing_in_one_line():
        from ..app.serve import serve_app

        serve_app(
            model,
            guide=guide,
            examples=examples,
            traits=trait_names(traits),
            device=device,
            backbone=backbone,
            host=host,
            port=port,
            share=share,
        )


@app.command(rich_help_panel=SHARE_AND_SCALE)
def space(
    model: Annotated[str, typer.Option(help="Hub id of the model, org/name.")],
    output_dir: Annotated[Path, typer.Option(help="New folder for the files of the Space.")],
    examples: Examples = None,
    push: Annotated[str | None, typer.Option(help="Also create this Space on the Hub, org/name.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
) -> None:
    """Make a Space of the Hub that runs the application.

    Writes app.py, requirements.txt with the versions installed here, README.md with the Space's settings, and examples.
    Pushing needs a token: log in with `hf auth login`, or set HF_TOKEN.

    Example: promptcam space --model your-name/promptcam-orioles --output-dir space
    """
    with failing_in_one_line():
        from ..app.space import make_space, push_space

        folder = make_space(model, output_dir, examples=examples)
        say_written("Space", folder)
        if push is not None:
            typer.echo(f"Pushed: {push_space(folder, push, private=private or None)}")
