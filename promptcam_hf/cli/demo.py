"""`promptcam demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .application import LOOK, app, failing_in_one_line


@app.command(rich_help_panel=LOOK)
def demo(
    output_dir: Annotated[Path, typer.Option(help="New or empty folder for everything the demo writes.")] = Path(
        "runs/demo"
    ),
    classes: Annotated[
        int, typer.Option(min=2, max=512, help="Number of species. Four make a family of look-alikes.")
    ] = 16,
    train: Annotated[int, typer.Option(min=1, help="Training pictures of each species.")] = 150,
    test: Annotated[int, typer.Option(min=1, help="Test pictures of each species.")] = 15,
    epochs: Annotated[int, typer.Option(min=1, help="Training epochs.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of pictures and training.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier demo wrote to the output folder.")
    ] = False,
) -> None:
    """See Prompt-CAM at work on drawn birds, offline.

    Draws look-alike species of birds whose traits are known, trains prompts for them on a tiny backbone that comes with
    this package, measures whether the trait maps show what tells the species apart, and writes a page about it:
    index.html, which any browser opens.

    Example: promptcam demo
    """
    from ..demo.run import demo

    with failing_in_one_line():
        demo(
            output_dir,
            num_classes=classes,
            train_per_class=train,
            test_per_class=test,
            epochs=epochs,
            seed=seed,
            overwrite=overwrite,
        )
