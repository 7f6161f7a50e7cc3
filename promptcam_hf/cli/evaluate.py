"""`promptcam evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..training.options import EVALUATION_BATCH_SIZE
from .application import app, fail, is_main_process


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Checkpoint folder or Hub id.")],
    data: Annotated[
        str, typer.Option(help="Photographs, as for `promptcam train`; those for training are not needed.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder for the report; an earlier report in it is replaced.")],
    batch_size: Annotated[
        int, typer.Option(min=1, help="Photographs to a forward pass, on each device.")
    ] = EVALUATION_BATCH_SIZE,
    num_workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode photographs.  [default: one a core, at most 8]")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="As for `promptcam train`.")] = None,
    label_column: Annotated[str | None, typer.Option(help="As for `promptcam train`.")] = None,
    label_map: Annotated[Path | None, typer.Option(help="As for `promptcam train`.")] = None,
    traits: Annotated[bool, typer.Option("--traits", help="Measure, too, whether the maps show traits.")] = False,
    faithfulness_images: Annotated[
        int | None,
        typer.Option(min=1, help="For --traits: photographs to measure insertion and deletion on.  [default: 200]"),
    ] = None,
) -> None:
    """Measure a model on test photographs, and show what it takes for what, and why.

    Writes results.json (accuracy, top-5 and macro accuracy, calibration error), per_class.csv, confusions.csv, and
    confusions.png: of the most frequent confusions some photographs, with what the true and the predicted class look
    at. A report in the folder evaluation/ of a checkpoint goes into its model card. Runs on several GPUs with
    `accelerate launch -m promptcam_hf evaluate ...`.

    With --traits, also traits.json: how fast the class is lost as what its maps look at is deleted, and won as it is
    inserted. If the data have masks of parts, and parts.json, also whether the maps look at the parts that tell a class
    from its look-alikes, and whether those parts matter.

    Example: promptcam evaluate --model runs/orioles --data photos/ --output-dir runs/orioles/evaluation
    """
    from ..evaluation import evaluation
    from ..share.model_card import write_model_card

    try:
        evaluation.evaluate(
            model,
            data,
            output_dir,
            batch_size=batch_size,
            num_workers=num_workers,
            image_column=image_column,
            label_column=label_column,
            label_map=label_map,
            traits=traits,
            faithfulness_images=faithfulness_images,
        )
        if is_main_process() and Path(model).is_dir() and output_dir.resolve() == Path(model).resolve() / "evaluation":
            write_model_card(model)
    except (ValueError, OSError, FloatingPointError) as error:
        fail(error)
