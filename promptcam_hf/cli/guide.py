"""`promptcam traits`, `promptcam key` and `promptcam guide`."""

from pathlib import Path
from typing import Annotated

import typer

from ..messages import counted
from .application import CONTINUES, LOOK, app, failing_in_one_line, say_written
from .options import Backbone, BatchSize, Device, Model

DATA = Annotated[str, typer.Option(help="Photographs, as for `promptcam train`.")]


@app.command(rich_help_panel=LOOK)
def traits(
    model: Model,
    data: DATA,
    output_dir: Annotated[Path, typer.Option(help="Folder for the vocabulary. An earlier one in it is replaced.")],
    parts: Annotated[
        int | None, typer.Option(min=1, help="Number of parts.  [default: the number with the best silhouette]")
    ] = None,
    looks: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of looks of a part.  [default: as many as fit best]")
    ] = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    backbone: Backbone = None,
) -> None:
    """List the traits that a model looks at, over all photographs.

    Clusters what the important heads of each photograph look at, first into parts and then into looks of a part. A
    trait is a look of a part. Writes traits.csv, class_traits.csv, occurrences.parquet, consistency.csv, results.json
    and a picture of each trait in crops/. Write names into names.csv, and the key, the guide and
    `promptcam explain --traits` say "red crown" instead of "trait 12". A run that was interrupted continues. Needs:
    pip install 'promptcam-hf[guide]', or in a clone: pip install '.[guide]'.

    Example: promptcam traits --model runs/orioles --data photos/ --output-dir runs/orioles/traits
    """
    from ..guide.traits import make_traits

    with failing_in_one_line(CONTINUES):
        result = make_traits(
            model,
            data,
            output_dir,
            parts=parts,
            looks=looks,
            batch_size=batch_size,
            device=device,
            backbone=backbone,
        )
    for reason in result.unreadable:
        typer.echo(f"left out: {reason}", err=True)
    for name in result.lost_names:
        typer.echo(f"no trait is like {name!r} any more; the name is kept in names_without_trait.csv", err=True)
    found = result.results
    consistency = found["consistency"]
    typer.echo(f"consistency of heads {consistency['consistency']} (shuffled: {consistency['shuffled']})")
    for kind in ("parts", "traits"):
        if kind in found:
            typer.echo(
                f"{kind} against masks: purity {found[kind]['purity']:.2f} (chance {found[kind]['chance_purity']:.2f}),"
                f" adjusted mutual information {found[kind]['adjusted_mutual_information']:.2f} (chance 0)"
            )
    say_written(f"{counted(found['num_traits'], 'trait')} of {counted(found['num_parts'], 'part')}", output_dir)


@app.command(rich_help_panel=LOOK)
def key(
    model: Model,
    data: DATA,
    traits: Annotated[Path, typer.Option(help="Folder of `promptcam traits`.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the key. An earlier one in it is replaced.")],
    batch_size: BatchSize = 16,
    device: Device = None,
    backbone: Backbone = None,
) -> None:
    """Write an identification key, as field guides have them.

    A key reads like "1a red crown: go to 2; 1b no red crown: go to 5". It is built from training photographs and
    followed automatically on test photographs, to say how often it is right. Writes key.txt, key.json, and key.html
    with crops.

    Example: promptcam key --model runs/orioles --data photos/ --traits runs/traits --output-dir runs/key
    """
    from ..guide.identification import make_key

    with failing_in_one_line():
        result = make_key(model, data, traits, output_dir, batch_size=batch_size, device=device, backbone=backbone)
    for reason in result["unreadable"]:
        typer.echo(f"left out: {reason}", err=True)
    photographs = counted(result["num_photographs"], f"{result['split']} photograph")
    say_written(
        counted(len(result["couplets"]), "couplet"),
        output_dir,
        f"the key names {result['accuracy']:.1%} of {photographs} correctly (chance {result['chance']:.1%}, the model "
        f"{result['model_accuracy']:.1%})",
    )


@app.command(rich_help_panel=LOOK)
def guide(
    model: Model,
    data: DATA,
    output_dir: Annotated[Path, typer.Option(help="Folder for the guide. An earlier one in it is brought up to date.")],
    traits: Annotated[
        Path | None,
        typer.Option(help="Folder of `promptcam traits`.  [default: traits/ in --output-dir]"),
    ] = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    backbone: Backbone = None,
) -> None:
    """Make a field guide: a website of the species and their traits.

    The site needs no server and no network: open index.html, or print its pages. It has a page for each species
    (photographs, traits, and what it is mistaken for), one for each pair of species that the model mistakes for each
    other, and one with all traits. Name the traits in traits/names.csv and run the command again. A run that was
    interrupted continues. Needs: pip install 'promptcam-hf[guide]', or in a clone: pip install '.[guide]'.

    Example: promptcam guide --model runs/orioles --data photos/ --output-dir runs/guide
    """
    from ..guide.site import make_guide

    with failing_in_one_line(CONTINUES):
        result = make_guide(
            model, data, output_dir, traits=traits, batch_size=batch_size, device=device, backbone=backbone
        )
    for note in result.notes:
        typer.echo(note, err=True)
    found = f"{result.num_species} species and {counted(result.num_pairs, 'pair')}"
    say_written(found, output_dir, f"{counted(result.num_written, 'file')} written")
