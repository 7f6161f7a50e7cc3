"""The command line: `promptcam train`, `explain`, `convert`."""

import json
import os
import sys
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from tqdm.auto import tqdm

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

app = typer.Typer(
    help="Prompt-CAM: which traits, on a photograph, make this bird a Scott's Oriole and not a Baltimore Oriole.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class BackboneFamily(str, Enum):
    DINO = "dino"
    DINOV2 = "dinov2"


class Precision(str, Enum):
    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder with train/<class>/*.jpg, and test/ or validation/ alike.")],
    backbone: Annotated[str, typer.Option(help="Hub id or local folder of a ViT (DINO, ...) or DINOv2.")],
    output_dir: Annotated[Path, typer.Option(help="New folder for the checkpoint.")],
    epochs: Annotated[int, typer.Option(help="Times through the training images.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Images a step, on each device.")] = 16,
    learning_rate: Annotated[float | None, typer.Option(help="Of SGD. [default: 0.005; DINOv2 0.001]")] = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="Epochs of rising learning rate. [default: a fifth, at most 20]")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.")] = 1e-3,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels of a side. [default: the backbone's; DINOv2 224]")
    ] = None,
    class_prompt_layer: Annotated[
        int | None, typer.Option(help="Layer in which the class prompts enter, from 1. [default: the last]")
    ] = None,
    num_agnostic_prompts: Annotated[
        int | None, typer.Option(help="Prompts in each prompted layer before it. [default: one a class]")
    ] = None,
    num_prompted_layers: Annotated[
        int | None, typer.Option(help="Only the last so many layers get prompts. [default: all]")
    ] = None,
    prompt_dropout: Annotated[float | None, typer.Option(help="Dropout on prompts. [default: 0.1; DINOv2 0]")] = None,
    drop_path_rate: Annotated[float | None, typer.Option(help="Stochastic depth. [default: 0.1; DINOv2 0]")] = None,
    mixed_precision: Annotated[Precision, typer.Option(help="Arithmetic of the forward pass.")] = Precision.NO,
    num_workers: Annotated[
        int | None, typer.Option(help="Processes that decode photographs. [default: one a core, at most 8]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
) -> None:
    """Train prompts for your classes on a frozen, pre-trained backbone.

    The defaults are the paper's recipe. Each epoch ends with an evaluation and a checkpoint in the output folder, which
    `promptcam explain --model` and pipeline("prompt-cam", model=...) open.

    Example: promptcam train --data photos/ --backbone facebook/dino-vitb16 --output-dir runs/orioles
    """
    arguments = dict(locals())
    from .training import TrainingOptions
    from .training import train as run

    try:
        result = run(TrainingOptions(**arguments | {"mixed_precision": mixed_precision.value}))
    except (ValueError, OSError, FloatingPointError) as error:
        _fail(error)
    typer.echo(f"Accuracy {result['accuracy']:.2%} after {result['epoch']} epochs. Checkpoint: {output_dir}")


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

    from .drawing import contact_sheet
    from .modeling.pipeline_promptcam import load_photograph

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
    from .conversion import convert_checkpoint

    try:
        id2label = None if labels is None else dict(enumerate(labels.read_text().strip().splitlines()))
        model = convert_checkpoint(checkpoint, output_dir, backbone_family.value, id2label, num_attention_heads)
    except (ValueError, OSError) as error:
        _fail(error)
    typer.echo(
        f"{model.config.num_labels} classes on a {model.config.backbone_config.model_type}. Checkpoint: {output_dir}"
    )


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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _fail(message: Exception | str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
