"""`promptcam train`."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..messages import first_line
from ..training.options import RECIPE, TrainingOptions, load_recipe, option_type
from .application import app, fail, is_main_process


def _with_training_options(command: Callable) -> Callable:
    """Give a command an option for each field of `TrainingOptions`, which it gets as keyword arguments: None if not
    said, so that a recipe can say it."""
    parameters = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for option in fields(TrainingOptions):
        kind, choices = option_type(option)
        default = option.metadata["shown"] or ("no" if option.default is False else option.default)
        help = option.metadata["help"] + ("" if default is None else f"  [default: {default}]")
        accepted: Any = kind if choices is None else Literal[choices]
        hint = Annotated[accepted | None, typer.Option(help=help)]
        parameters.append(inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@app.command()
@_with_training_options
def train(
    output_dir: Annotated[Path | None, typer.Option(help="New folder for all that training writes.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML file with options; those given here go before it.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the interrupted run in this folder, instead of all other options.")
    ] = None,
    **given: Any,
) -> None:
    """Train prompts for your classes on a frozen, pre-trained backbone.

    The defaults are the paper's recipe. The output folder gets the last checkpoint, which `promptcam explain --model`
    and pipeline("prompt-cam", model=...) open, the best one in best/, its evaluation and model card, a log, and states
    from which an interrupted run goes on. Runs on several GPUs with `accelerate launch -m promptcam_hf train ...`.

    Example: promptcam train --data photos/ --backbone facebook/dino-vitb16 --output-dir runs/orioles
    """
    from ..training import trainer as training

    given = {name: value for name, value in given.items() if value is not None}
    folder = resume or output_dir
    if folder is None:
        fail("expected --output-dir, a new folder to write to, or --resume.")
    try:
        if resume is None:
            options = TrainingOptions(**({} if recipe is None else load_recipe(recipe)) | given)
            result = training.train(options, folder)
        elif output_dir is None and recipe is None and not given:
            result = training.resume(resume)
        else:
            raise ValueError(f"--resume goes on as {resume}/{RECIPE} says; expected no other option with it.")
    except (ValueError, FloatingPointError) as error:
        fail(error)
    except (OSError, RuntimeError, KeyboardInterrupt) as error:
        fail(_interruption(error, folder))
    if is_main_process():
        typer.echo(f"Accuracy {result['accuracy']:.2%} after {result['epoch']} epochs. Checkpoint: {folder}")


def _interruption(error: BaseException, folder: Path) -> str:
    """What stopped a run from outside, and how it goes on; other errors are ours, and their traceback is shown."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return "Out of memory on the device; try --find-batch-size or --gradient-checkpointing."
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted."
    elif text.startswith("DataLoader worker"):
        text = f"{first_line(text)}; was it out of memory? Try fewer --num-workers."
    elif isinstance(error, RuntimeError):
        raise error
    started = (folder / RECIPE).exists() and "promptcam push" not in text
    return text + (f" To go on: promptcam train --resume {folder}" if started else "")
