"""Writes the page of `promptcam demo`, for people who have not heard of Prompt-CAM before."""

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..data.class_names import readable
from ..explanation.drawing import contact_sheet, stacked
from ..files import write_atomically, write_files_atomically
from ..messages import plural
from ..modeling.images_promptcam import COLOUR_MAP, data_uri
from .album import Album, Scene
from .species import COLOURS, LIES_ON, PARTS, Species

TEMPLATE = Path(__file__).with_name("page_template.html")


def write_page(page: Path, sheets: Path, album: Album, results: Mapping[str, Any]) -> None:
    """
    Write the page, and contact sheets of what it shows.

    Args:
        page: File of the page. It contains its pictures, so it needs no other file, and no network.
        sheets: Folder for `traits.png` (a picture of each species), `look_alikes.png` and `other_eyes.png`.
        album: The examples to show.
        results: What `demo` returns, except for the times.

    Raises:
        OSError: If a file cannot be written.
    """
    members, pair, other_eyes = album.members(), album.pair(), album.other_eyes()
    views = [member.view for family in members.values() for member in family if member.view is not None]
    template = _environment(album, results).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        results=results,
        gradient=[f"rgb{tuple(map(int, COLOUR_MAP[step]))}" for step in range(0, 256, 15)],
        # To explain maps with: if possible, one that finds the mark of its species
        first=next((view for view in views if view.traits[0].role == "mark"), views[0] if views else None),
        families=members,
        pair=pair,
        other_eyes=other_eyes,
        scenes=album.interventions(),
        mistakes=album.mistakes(),
    )
    with write_files_atomically(sheets) as draft:
        for file, shown in (("traits.png", views), ("look_alikes.png", pair), ("other_eyes.png", other_eyes)):
            if shown:
                stacked([contact_sheet(view.picture, [view.explanation]) for view in shown]).save(draft / file)
    write_atomically(page, text)


def _environment(album: Album, results: Mapping[str, Any]) -> Environment:
    """What the template can call."""

    def value(path: str) -> Any:
        """A metric, by the keys that lead to it in the results, such as "traits.mass.on_background"; None if it was not
        measured."""
        return reduce(getitem, path.split("."), results)

    def metric(path: str, form: str = "percent") -> Markup:
        number = value(path)
        shown = "not measured" if number is None else percent(number) if form == "percent" else format(number, form)
        return Markup('<data value="{}" data-metric="{}">{}</data>').format(number, path, shown)

    def marks(species: Species) -> list[tuple[str, str | None]]:
        """The looks of a species' marks."""
        look_alikes = [album.species[other] for other in album.look_alikes(album.species.index(species))]
        found = []
        for part in _in_order(album.table.marks(species.name)):
            other = next((kind for kind in look_alikes if kind.shapes[part] != species.shapes[part]), None)
            found.append(look(species, part, other))
        return found

    def differences(a: Species, b: Species) -> list[dict[str, Any]]:
        parts = _in_order(album.table.differing(a.name, b.name))
        return [{"part": readable(part), "looks": (look(a, part, b), look(b, part, a))} for part in parts]

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"name": species_name, "words": readable, "plural": plural, "joined": joined}
    environment.filters |= {"percent": percent, "change": change, "source": data_uri}
    environment.globals |= {"value": value, "metric": metric, "marks": marks, "differences": differences}
    return environment


# --- Words ------------------------------------------------------------------------------------------------------------


def species_name(species: Species) -> str:
    """Amber_crowned_Mountain_Finch -> Amber-crowned Mountain Finch."""
    title = species.name.removesuffix(f"_{species.family}")
    return f"{title.replace('_', '-')} {readable(species.family)}"


def look(species: Species, part: str, other: Species | None = None) -> tuple[str, str | None]:
    """
    How a part looks.

    Args:
        species: The species.
        part: One of `PARTS`.
        other: A species to tell it from: if their shapes differ, the shape is named.

    Returns:
        Words such as "amber crown", and the colour in CSS; or "no wing bar" and None for a mark that is missing.
    """
    colour, shape = species.colours[part], species.shapes[part]
    if part in LIES_ON and colour == species.colours[LIES_ON[part]]:
        return f"no {readable(part)}", None
    is_named = shape and other is not None and shape != other.shapes[part]
    text = f"{colour} {readable(part)}" + (f" ({shape})" if is_named else "")
    return text, "#{:02x}{:02x}{:02x}".format(*COLOURS[colour])


def change(scene: Scene) -> str:
    """What was changed in a scene, such as "without its crown"."""
    if scene.without:
        return f"without its {readable(scene.without)}"
    if scene.given:
        _, (look_alike, _) = scene.probabilities
        return f"with {joined([look(look_alike, part)[0] for part in _in_order(scene.given)])}"
    return "as it is"


def _in_order(parts: Collection[str]) -> list[str]:
    return [part for part in PARTS if part in parts]


def joined(phrases: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(phrases[:-1]), *phrases[-1:]]))


def percent(share: float) -> str:
    """A share in [0, 1] as `12.3 %`."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"
