"""`promptcam train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..messages import first_line
from ..training.options import RECIPE, TrainingOptions, load_recipe
from .application import TRAIN_AND_DATA, app, fail, interrupted, is_main_process, say_written
from .options import Device, with_training_options


@app.command(rich_help_panel=TRAIN_AND_DATA)
@with_training_options()
def train(
    output_dir: Annotated[Path | None, typer.Option(help="New folder for everything that training writes.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file with options. Options on the command line override it.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder of an interrupted run to continue, instead of all other options but --device."),
    ] = None,
    device: Device = None,
    **given: Any,
) -> None:
    """Train prompts for your classes on a frozen backbone.

    The defaults suit most photographs of species. The output folder gets the last checkpoint, the best one in best/,
    the evaluation, the model card, the log, and states to resume from. `promptcam explain --model` and
    pipeline("prompt-cam", model=...) open it. A tenth of the training photographs is held out until the last epochs, to
    calibrate the probabilities. Use several GPUs with `accelerate launch -m promptcam_hf train ...`.

    Example: promptcam train --data photos/ --backbone facebook/dinov2-small --output-dir runs/orioles
    """
    folder = resume or output_dir
    if folder is None:
        fail("expected --output-dir (a new folder) or --resume.")
    if resume is not None and not (output_dir is None and recipe is None and not given):
        fail(f"--resume uses the options in {resume}/{RECIPE}; expected no other option with it but --device.")
    try:
        result = _train(folder, resume is not None, recipe, given, device)
    except KeyboardInterrupt:
        interrupted(_how_to_resume(folder).lstrip())
    if is_main_process():
        say_written("Checkpoint", folder, f"accuracy {result['accuracy']:.2%} after epoch {result['epoch']}")


def _train(
    folder: Path, is_resumed: bool, recipe: Path | None, given: dict[str, Any], device: str | None
) -> dict[str, Any]:
    """Train, or go on with a run. Ends the command with one line if it fails."""
    import torch

    from ..share import run

    try:
        if is_resumed:
            return run.resume(folder, device=device)
        options = TrainingOptions(**({} if recipe is None else load_recipe(recipe)) | given)
        return run.train(options, folder, device=device)
    except (ValueError, FloatingPointError, run.PushError) as error:
        fail(error)
    except torch.OutOfMemoryError:
        fail("Out of memory on the device; try --find-batch-size or --gradient-checkpointing.")
    except OSError as error:
        fail(f"{error}{_how_to_resume(folder)}")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # torch has no class for a worker that was killed
            raise
        fail(f"{first_line(error)}; was it out of memory? Try fewer --num-workers.{_how_to_resume(folder)}")


def _how_to_resume(folder: Path) -> str:
    """The end of a message about an interrupted run, if it had begun."""
    return f" To resume: promptcam train --resume {folder}" if (folder / RECIPE).exists() else ""
