"""Sheets that compare two classes on a photograph."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..data.class_names import readable
from ..modeling.images_promptcam import TWO_COLOURS, draw_comparison
from .drawing import (
    CAPTION,
    HEADING,
    HEADING_LABEL,
    INK,
    MARGIN,
    PAPER,
    SHEET_HEIGHT,
    Cell,
    blank_sheet,
    cell_of,
    draw_cells,
    paste_centred,
    resized,
)
from .text import draw_line, shortened

LEGEND = 44  # height in pixels
OWN_SCALE = "on its own scale"


def comparison_sheet(
    photograph: Image.Image, explanations: Sequence[dict[str, Any]], title: str = "", cell_height: int = SHEET_HEIGHT
) -> Image.Image:
    """
    For each explained class a, and the class b that it is compared with, two rows and a legend. First the photograph;
    what speaks for or against a, and for or against b, on a shared scale; and both together, which is the comparison.
    Then the comparison in single heads, those that speak most for a first. The comparison and each head have a scale of
    their own, since they may be many times weaker. Yellow speaks for a or against b, blue for b or against a.

    Args:
        photograph: The photograph, of any size and aspect ratio.
        explanations: What `pipeline("prompt-cam", compare_with=...)` returns for it; heatmaps are not needed.
        title: A line above the rows, such as the file name.
        cell_height: Height of each picture in pixels. The width follows from the photograph's aspect ratio.

    Returns:
        An image of mode `"RGB"`.
    """
    cell = cell_of(photograph, cell_height)
    photograph = resized(photograph, cell)
    columns = max(4, *(len(explanation["comparison"]["traits"]) for explanation in explanations))
    row_height = cell[1] + CAPTION + MARGIN
    sheet, y = blank_sheet(columns, cell, len(explanations) * (2 * row_height + LEGEND), title)
    for explanation in explanations:
        for cells in (whole_cells(photograph, explanation), head_cells(photograph, explanation)):
            draw_cells(sheet, y, cell, cells)
            y += row_height
        _draw_legend(sheet, y, cell[0], readable(explanation["label"]), readable(explanation["comparison"]["label"]))
        y += LEGEND
    return sheet


class ConfusedPair(NamedTuple):
    """
    Photographs of one class that were taken for another.

    Args:
        examples: Photographs of any size, each with what `pipeline("prompt-cam", classes=[true class],
            compare_with=predicted class)` returns for it; heatmaps are not needed. One or more.
        frequency: How often the one class is taken for the other, such as "3 of 30".
    """

    examples: Sequence[tuple[Image.Image, dict[str, Any]]]
    frequency: str


def confused_pairs_sheet(pairs: Sequence[ConfusedPair], cell_height: int = 150) -> Image.Image:
    """
    A heading and a row for each pair: photographs, each with the comparison of its true class (yellow) with the
    predicted one (blue).

    Args:
        pairs: One or more.
        cell_height: Height and width of the room for a picture, in pixels.

    Returns:
        An image of mode `"RGB"`.
    """
    cell = cell_height, cell_height
    width, height = 2 * cell_height + 2 * MARGIN, HEADING + cell_height + MARGIN  # of an example; of a row
    columns = max(2, *(len(pair.examples) for pair in pairs))
    sheet = Image.new("RGB", (2 * MARGIN + columns * width, MARGIN + len(pairs) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, pair in enumerate(pairs):
        y, first = MARGIN + row * height, pair.examples[0][1]
        true, predicted = readable(first["label"]), readable(first["comparison"]["label"])
        both = f"{shortened(true, HEADING_LABEL)} (yellow), taken for {shortened(predicted, HEADING_LABEL)} (blue)"
        draw_line(draw, (MARGIN, y), both, sheet.width - 2 * MARGIN, 18, INK, f": {pair.frequency}")
        for column, (photograph, explanation) in enumerate(pair.examples):
            photograph = resized(photograph, cell)
            compared = draw_comparison(photograph, explanation["comparison"]["map"])
            for place, picture in enumerate((photograph, compared)):
                x = MARGIN + column * width + place * (cell_height + MARGIN // 2)
                paste_centred(sheet, picture, (x, y + HEADING - MARGIN // 2), cell)
    return sheet


def whole_cells(photograph: Image.Image, explanation: dict[str, Any]) -> list[Cell]:
    """The pictures for all heads together."""
    comparison = explanation["comparison"]
    own, other = comparison["own"], comparison["other"]
    scale = max(float(np.abs(values).max()) for values in (own, other))
    a, b, count = readable(explanation["label"]), readable(comparison["label"]), comparison["num_sufficient"]
    # The rest of the difference between the logits is not in patches: [CLS], prompts, heads that gather nothing
    own_score, other_score = explanation["score"], comparison["score"]
    is_for_lower = (comparison["map"].sum() > 0) != (own_score > other_score) and own_score != other_score
    together = "in sum for the class that scores lower" if is_for_lower else f"both together, {OWN_SCALE}"
    enough = f"{count} head{'s' * (count != 1)} alone keep{'s' * (count == 1)} it above {b}" if count else ""
    score_of_b = f"  {comparison['score']:.1%}"
    return [
        (photograph, a, f"  {explanation['score']:.1%}", enough),
        (draw_comparison(photograph, own, scale), a, "", "yellow: for it, blue: against it"),
        (draw_comparison(photograph, -other, scale), b, score_of_b, "yellow: against it, blue: for it"),
        (draw_comparison(photograph, comparison["map"]), "the comparison", "", together),
    ]


def head_cells(photograph: Image.Image, explanation: dict[str, Any]) -> list[Cell]:
    """The pictures for single heads."""
    cells: list[Cell] = []
    for trait in explanation["comparison"]["traits"]:
        head, name = f"head {trait['head']}", trait.get("trait")
        captions = (name, "", f"{head}, {OWN_SCALE}") if name else (head, "", OWN_SCALE)
        cells.append((draw_comparison(photograph, trait["map"]), *captions))
    return cells


def _draw_legend(sheet: Image.Image, y: int, cell_width: int, a: str, b: str) -> None:
    """The colours, with what they mean at both ends."""
    draw, size = ImageDraw.Draw(sheet), (sheet.width - 2 * MARGIN, LEGEND // 2 - 8)
    sheet.paste(Image.fromarray(TWO_COLOURS[None]).resize(size, Image.Resampling.BILINEAR), (MARGIN, y))
    for text, x in ((f"for {b}", MARGIN), (f"for {a}", sheet.width - MARGIN - cell_width)):
        draw_line(draw, (x, y + size[1] + 3), text, cell_width, 15, INK)
