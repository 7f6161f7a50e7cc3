"""`promptcam explain`."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

from ..messages import first_line
from .application import app, fail

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


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
            raise ValueError(f"--model {model}: cannot be opened ({first_line(error)})") from None
        output_dir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        fail(error)

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
        fail(f"{failed} of {len(sources)} photographs could not be read.")


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
