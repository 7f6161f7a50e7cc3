"""`promptcam evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .application import TRAIN_AND_DATA, app, failing_in_one_line, is_main_process, say_written
from .options import Backbone, Device, Model, with_training_options


@app.command(rich_help_panel=TRAIN_AND_DATA)
@with_training_options("image_column", "label_column", "split_column", "label_pattern", "label_map", "on_bad_image")
def evaluate(
    model: Model,
    data: Annotated[
        str, typer.Option(help="Photographs, as for `promptcam train`; training photographs are not needed.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder for the report. An earlier report in it is replaced.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Photographs per forward pass, on each device.")] = 16,
    num_workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read photographs.  [default: one per core, at most 8]")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split to measure.  [default: the first of validation and test that has photographs]"),
    ] = None,
    device: Device = None,
    backbone: Backbone = None,
    traits: Annotated[bool, typer.Option("--traits", help="Also measure whether the maps show the traits.")] = False,
    faithfulness_images: Annotated[
        int, typer.Option(min=1, help="With --traits: number of photographs for insertion, deletion and the like.")
    ] = 200,
    **data_options: Any,
) -> None:
    """Measure a model on test photographs, and show its mistakes.

    Writes results.json (accuracy and its 95 % interval, top-5 and macro accuracy, calibration error),
    per_class.csv, confusions.csv, and pictures: traits.png shows the traits of some classes, confusions.png the
    most frequent confusions with the traits of both classes, and comparisons.png, for every confusion, what speaks
    for the true class and for the predicted one. If the report is in the folder evaluation/ of a checkpoint, the
    model card shows it. Runs on several GPUs with `accelerate launch -m promptcam_hf evaluate ...`.

    With --traits, also writes traits.json: how quickly the class's probability falls when the pixels with the most
    attention are deleted, and how quickly it rises when they are inserted; how similar the maps are if the prompts or
    the last layer are random; and the same for the comparison of the class with the runner-up. If the data have masks
    of parts and parts.json, also whether the maps are on the parts that distinguish a class from its look-alikes, and
    whether the prediction depends on those parts. On CUB-200-2011, how near the maps point to the parts in which the
    species differs from the runner-up.

    Example: promptcam evaluate --model runs/orioles --data photos/ --output-dir runs/orioles/evaluation
    """
    from ..evaluation.evaluate import evaluate
    from ..share.model_card import write_model_card

    with failing_in_one_line():
        evaluate(
            model,
            data,
            output_dir,
            batch_size=batch_size,
            num_workers=num_workers,
            split=split,
            device=device,
            backbone=backbone,
            traits=traits,
            faithfulness_images=faithfulness_images,
            **data_options,
        )
        if is_main_process() and Path(model).is_dir() and output_dir.resolve() == Path(model).resolve() / "evaluation":
            write_model_card(model)
    if is_main_process():
        say_written("Report", output_dir)
