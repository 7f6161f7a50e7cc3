"""The command line: `promptcam train`, `evaluate`, `explain`, `push`, `convert`, `demo`."""

import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from tqdm.auto import tqdm

from ..training.options import EVALUATION_BATCH_SIZE, RECIPE, TrainingOptions, load_recipe, option_type

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

app = typer.Typer(
    help="Prompt-CAM: which traits, on a photograph, make this bird a Scott's Oriole and not a Baltimore Oriole.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose help cuts long names of options
)


class BackboneFamily(str, Enum):
    DINO = "dino"
    DINOV2 = "dinov2"


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
        _fail("expected --output-dir, a new folder to write to, or --resume.")
    try:
        if resume is None:
            options = TrainingOptions(**({} if recipe is None else load_recipe(recipe)) | given)
            result = training.train(options, folder)
        elif output_dir is None and recipe is None and not given:
            result = training.resume(resume)
        else:
            raise ValueError(f"--resume goes on as {resume}/{RECIPE} says; expected no other option with it.")
    except (ValueError, FloatingPointError) as error:
        _fail(error)
    except (OSError, RuntimeError, KeyboardInterrupt) as error:
        _fail(_interruption(error, folder))
    if _is_main_process():
        typer.echo(f"Accuracy {result['accuracy']:.2%} after {result['epoch']} epochs. Checkpoint: {folder}")


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
        if _is_main_process() and Path(model).is_dir() and output_dir.resolve() == Path(model).resolve() / "evaluation":
            write_model_card(model)
    except (ValueError, OSError, FloatingPointError) as error:
        _fail(error)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    repository: Annotated[str, typer.Argument(help="Where to on the Hub: org/name. Made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private if it is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made if need be.  [default: main]")] = None,
    commit_message: Annotated[str | None, typer.Option(help="What the commit says.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the model, as the Hub calls it: cc-by-4.0.")] = None,
) -> None:
    """Put a trained model on the Hub, with its model card.

    All goes in one commit: what fails leaves folder and repository as they were, and can be repeated. The card shows
    pictures of traits on your photographs. Needs a token: `hf auth login`, or HF_TOKEN.

    Example: promptcam push runs/orioles your-name/promptcam-orioles
    """
    from ..share import hub

    try:
        address = hub.push(
            folder,
            repository,
            private=private or None,
            revision=revision,
            commit_message=commit_message,
            license=license,
        )
    except (ValueError, OSError) as error:
        _fail(error)
    typer.echo(f"Pushed: {address}")


@app.command()
def explain(
    photographs: Annotated[list[str], typer.Argument(help="Photographs, or folders of them.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder or Hub id.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the contact sheets and explanations.jsonl.")],
    top_k: Annotated[int, typer.Option(min=1, help="Explain the so many most probable classes.")] = 1,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Explain this class instead, whatever its score. Repeatable.")
    ] = None,
    top_traits: Annotated[int, typer.Option(min=1, help="Traits to show of a class.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Photographs to a forward pass.")] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu. [default: a GPU if there is one]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")] = False,
) -> None:
    """Show which traits speak for a class, on photographs.

    Writes one contact sheet a photograph (the photograph, then the traits of each explained class, the most important
    first) and explanations.jsonl with every number. A photograph that cannot be read is reported, the rest is written,
    and the exit status is 1.

    Example: promptcam explain photos/test/*/*.jpg --model runs/orioles --output-dir explained/
    """
    from transformers import pipeline

    from ..explanation.drawing import contact_sheet
    from ..modeling.pipeline_promptcam import load_photograph

    try:
        sources = _find_photographs(photographs)
        record = output_dir / "explanations.jsonl"
        if record.exists() and not overwrite:
            raise ValueError(f"{record} exists; choose another --output-dir, or pass --overwrite.")
        options: dict[str, Any] = {"classes": classes} if classes else {"top_k": top_k}
        task: Any = "prompt-cam"  # `pipeline` is typed for transformers' own tasks
        try:
            traits = pipeline(task, model=model, device=device, top_traits=top_traits, **options)
        except OSError as error:
            raise ValueError(f"--model {model}: cannot be opened ({_first_line(error)})") from None
        output_dir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        _fail(error)

    failed = 0
    draft = record.with_suffix(".jsonl.part")
    with open(draft, "w") as lines, tqdm(total=len(sources), unit="photo") as progress:
        for start in range(0, len(sources), batch_size):
            rows: dict[str, dict[str, Any]] = {}
            readable = []
            for source, name in sources[start : start + batch_size]:
                rows[source] = {"photograph": source}
                try:
                    readable.append((source, name, load_photograph(source)))
                except ValueError as error:
                    failed += 1
                    progress.write(f"error: {error}", file=sys.stderr)
                    rows[source]["error"] = str(error)
            results = traits([photograph for *_, photograph in readable], batch_size=batch_size)
            for (source, name, photograph), explanations in zip(readable, results, strict=True):
                sheet = output_dir / f"{name}.png"
                contact_sheet(photograph, explanations, title=source).save(sheet)
                rows[source] |= {"sheet": sheet.name, "explanations": _plain(explanations)}
            lines.writelines(json.dumps(row) + "\n" for row in rows.values())
            progress.update(len(rows))
    os.replace(draft, record)
    typer.echo(f"{len(sources) - failed} contact sheets and {record.name} in {output_dir}")
    if failed:
        _fail(f"{failed} of {len(sources)} photographs could not be read.")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the original Prompt-CAM code.")],
    backbone_family: Annotated[BackboneFamily, typer.Option(help="What it was trained on.")],
    output_dir: Annotated[Path, typer.Option(help="New folder for the converted checkpoint.")],
    labels: Annotated[
        Path | None, typer.Option(help="Text file with a class name a line, in the order of the labels.")
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Heads of the backbone. [default: hidden size / 64]")
    ] = None,
) -> None:
    """Turn a checkpoint of the original Prompt-CAM code into one that transformers opens.

    Example: promptcam convert model.pt --backbone-family dino --output-dir promptcam-cub
    """
    from ..share.conversion import convert_checkpoint

    try:
        id2label = None if labels is None else dict(enumerate(labels.read_text().strip().splitlines()))
        model = convert_checkpoint(checkpoint, output_dir, backbone_family.value, id2label, num_attention_heads)
    except (ValueError, OSError) as error:
        _fail(error)
    typer.echo(
        f"{model.config.num_labels} classes on a {model.config.backbone_config.model_type}. Checkpoint: {output_dir}"
    )


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="New or empty folder for all that the demo writes.")] = Path(
        "runs/demo"
    ),
    classes: Annotated[int, typer.Option(min=2, help="Species to draw; four make a family of look-alikes.")] = 16,
    train: Annotated[int, typer.Option(min=1, help="Training pictures of each species.")] = 150,
    test: Annotated[int, typer.Option(min=1, help="Test pictures of each species.")] = 15,
    epochs: Annotated[int, typer.Option(min=1, help="Times through the training pictures.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other pictures.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier demo wrote there.")] = False,
) -> None:
    """See Prompt-CAM work in some minutes, without a network: on drawn birds whose traits are known.

    Draws look-alike species of birds, trains prompts for them on a tiny backbone that comes with this package, measures
    whether the maps show what tells the species apart, and writes a page about it, index.html, which any browser opens.

    Example: promptcam demo
    """
    from ..demo.run import demo

    try:
        demo(
            output_dir,
            num_classes=classes,
            train_per_class=train,
            test_per_class=test,
            epochs=epochs,
            seed=seed,
            overwrite=overwrite,
        )
    except (ValueError, OSError, FloatingPointError) as error:
        _fail(error)


def _find_photographs(arguments: list[str]) -> list[tuple[str, str]]:
    """Photographs, in the order given (those of folders sorted), each with a file name of its own for its sheet."""
    paths: list[Path] = []
    for argument in map(Path, arguments):
        if argument.is_dir():
            found = sorted(path for path in argument.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise ValueError(f"{argument} holds no images; expected files such as {argument}/bird.jpg.")
            paths += found
        else:
            paths.append(argument)
    paths = list(dict.fromkeys(paths))
    # As few folders in the name as tell all of them apart
    depth = 1
    names = [path.with_suffix("").parts[-1:] for path in paths]
    while max(Counter(names).values()) > 1 and depth < max(len(path.parts) for path in paths):
        depth += 1
        names = [path.with_suffix("").parts[-depth:] for path in paths]
    if max(Counter(names).values()) > 1:  # such as bird.jpg and bird.png
        names = [path.parts[-depth:] for path in paths]
    return [(str(path), "_".join(part.strip(os.sep) for part in name)) for path, name in zip(paths, names, strict=True)]


def _plain(explanations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Explanations as JSON holds them: maps as nested lists, no pictures."""
    return [
        explanation
        | {
            "traits": [
                {"rank": trait["rank"], "head": trait["head"], "map": trait["map"].tolist()}
                for trait in explanation["traits"]
            ]
        }
        for explanation in explanations
    ]


def _first_line(error: Exception | str) -> str:
    return str(error).strip().splitlines()[0]


def _interruption(error: BaseException, folder: Path) -> str:
    """What stopped a run from outside, and how it goes on; other errors are ours, and their traceback is shown."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return "Out of memory on the device; try --find-batch-size or --gradient-checkpointing."
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted."
    elif text.startswith("DataLoader worker"):
        text = f"{_first_line(text)}; was it out of memory? Try fewer --num-workers."
    elif isinstance(error, RuntimeError):
        raise error
    started = (folder / RECIPE).exists() and "promptcam push" not in text
    return text + (f" To go on: promptcam train --resume {folder}" if started else "")


def _is_main_process() -> bool:
    """Whether this is the one process of `accelerate launch` that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def _fail(message: Exception | str) -> NoReturn:
    text = str(message)
    if text.startswith("Caught "):  # by a worker process, whose whole traceback it is
        text = text.strip().splitlines()[-1].partition(": ")[2]
    typer.echo(f"error: {text}", err=True)
    raise typer.Exit(1)
