"""Bars and pictures as HTML. Pictures travel inside it (data URIs), so that none is written to the disk."""

from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from ..data.class_names import readable
from ..explanation.comparison_sheet import head_cells, whole_cells
from ..explanation.drawing import Cell, trait_captions
from ..modeling.images_promptcam import data_uri, draw_heatmap, reduced

PICTURE_SIDE = 360  # pixels of the longer side of a picture beside others
COMPARED_HEADS = 4


def bars(rows: Sequence[tuple[str, float]], caption: str = "", most: int = 5, full: float = 1) -> str:
    """
    A list of names, each with a bar.

    Args:
        rows: Names and shares, in [0, 1].
        caption: A line above them, as HTML.
        most: How many rows to show.
        full: The share that fills the whole width, more than 0.
    """
    items = "".join(
        f'<li><span class="name">{escape(readable(name))}</span><span class="value">{share:.1%}</span>'
        f'<span class="bar"><span style="width:{share / full:.2%}"></span></span></li>'
        for name, share in rows[:most]
    )
    heading = f"<p>{caption}</p>" if caption else ""
    return f'{heading}<ol class="pc-bars">{items}</ol>'


def head_figures(photograph: Image.Image, explanation: dict[str, Any]) -> str:
    """
    The photograph, and the maps of all heads over it, each with a box to blur the head.

    Args:
        photograph: The photograph.
        explanation: Of a class, with all heads, as `Look.explained` returns it.
    """
    small = reduced(photograph, PICTURE_SIDE)
    figures = []
    for trait in explanation["traits"]:
        (name, _, below), head = trait_captions(trait), trait["head"]
        called, small_head = f"{name} {below}".rstrip(), f" <small>{below}</small>" if below else ""
        figures.append(
            f'<figure data-head="{head}"><div class="over"><img src="{data_uri(draw_heatmap(small, trait["map"]))}" '
            f'alt="{escape(called)}, over the photograph"></div>'
            f"<figcaption><span>{escape(name)}{small_head}</span>"
            f'<label><input type="checkbox" aria-label="Blur head {head}"> blur</label></figcaption></figure>'
        )
    return f'<div class="pc-figures pc-heads" style="--photograph:url({data_uri(small)})">{"".join(figures)}</div>'


def comparison_figures(photograph: Image.Image, explanation: dict[str, Any]) -> str:
    """
    What speaks for one class and against another: all heads together, then single heads.

    Args:
        photograph: The photograph.
        explanation: Of a class, with a comparison, as `Look.explained` returns it.
    """
    a, b = readable(explanation["label"]), readable(explanation["comparison"]["label"])
    small = reduced(photograph, PICTURE_SIDE)
    legend = f'<div class="pc-legend"><span>for {escape(b)}</span><i></i><span>for {escape(a)}</span></div>'
    return legend + "".join(
        f'<div class="pc-figures">{"".join(map(_figure, cells))}</div>'
        for cells in (whole_cells(small, explanation)[1:], head_cells(small, explanation)[:COMPARED_HEADS])
    )


def _figure(cell: Cell) -> str:
    picture, caption, _, below = cell
    return (
        f'<figure><img src="{data_uri(picture)}" alt="{escape(caption)}, {escape(below)}">'
        f"<figcaption><span>{escape(caption)} <small>{escape(below)}</small></span></figcaption></figure>"
    )


def sheet_figures(sheets: Sequence[tuple[Image.Image, str]]) -> str:
    """Contact sheets, one below the other; their captions are for those who cannot see them."""
    figures = "".join(f'<div><img src="{data_uri(sheet)}" alt="{escape(caption)}"></div>' for sheet, caption in sheets)
    return f'<div class="pc-sheets">{figures}</div>'


def example_buttons(examples: Sequence[tuple[str, Image.Image]]) -> str:
    """Small photographs to choose from, with their names."""
    buttons = "".join(
        f'<button type="button" data-example="{number}" title="{escape(name)}" aria-label="Example: {escape(name)}">'
        f'<img src="{data_uri(reduced(photograph, 144))}" alt=""></button>'
        for number, (name, photograph) in enumerate(examples)
    )
    return f'<div class="pc-examples">{buttons}</div>' if buttons else ""
