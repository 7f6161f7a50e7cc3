"""Pictures for people: contact sheets of a photograph and its traits."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

MARGIN, CAPTION = 12, 44
INK, FAINT, PAPER = (28, 28, 32), (110, 110, 118), (255, 255, 255)


def contact_sheet(
    photograph: Image.Image, explanations: Sequence[dict[str, Any]], title: str = "", cell_height: int = 260
) -> Image.Image:
    """
    A row for each explained class: the photograph, then the class's traits, the most important first.

    Args:
        photograph: The photograph, of any size and aspect.
        explanations: What `pipeline("prompt-cam")` returns for it, heatmaps drawn.
        title: A line above, such as the file's name.
        cell_height: Height of a picture in pixels; its width follows from the photograph's aspect.

    Returns:
        An image of mode `"RGB"`.
    """
    # A panorama or a tall strip would make cells of no use beside each other
    aspect = min(max(photograph.width / photograph.height, 0.4), 2.5)
    cell = (max(1, round(cell_height * aspect)), cell_height)
    columns = 1 + max(len(explanation["traits"]) for explanation in explanations)
    top = MARGIN + (CAPTION // 2 if title else 0)
    sheet = Image.new(
        "RGB",
        (MARGIN + columns * (cell[0] + MARGIN), top + len(explanations) * (cell[1] + CAPTION + MARGIN)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        _text(draw, (MARGIN, MARGIN // 2), title, sheet.width - 2 * MARGIN, 15, FAINT)
    for row, explanation in enumerate(explanations):
        y = top + row * (cell[1] + CAPTION + MARGIN)
        suffice = explanation["num_sufficient"]
        captions = [
            (
                f"{explanation['label'].replace('_', ' ')}  {explanation['score']:.1%}",
                f"{suffice} head{'s' * (suffice != 1)} suffice{'s' * (suffice == 1)}" if suffice else "",
            )
        ]
        captions += [(f"trait {trait['rank']}", f"head {trait['head']}") for trait in explanation["traits"]]
        pictures = [photograph, *(trait["heatmap"] for trait in explanation["traits"])]
        for column, (picture, (first, second)) in enumerate(zip(pictures, captions, strict=True)):
            x = MARGIN + column * (cell[0] + MARGIN)
            sheet.paste(_fit(picture, cell), (x, y))
            _text(draw, (x, y + cell[1] + 3), first, cell[0], 17, INK)
            _text(draw, (x, y + cell[1] + 24), second, cell[0], 13, FAINT)
    return sheet


def _fit(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """The whole picture, as large as the cell allows, in the middle of it."""
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    canvas = Image.new("RGB", cell, PAPER)
    canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), ((cell[0] - size[0]) // 2, (cell[1] - size[1]) // 2))
    return canvas


def _text(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    text: str,
    width: int,
    size: int,
    colour: tuple[int, int, int],
) -> None:
    """One line of text, made smaller and then cut where it would not fit."""
    while size > 10 and draw.textlength(text, ImageFont.load_default(size)) > width:
        size -= 1
    font = ImageFont.load_default(size)
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text[:-2] + "…"
    draw.text(position, text, fill=colour, font=font)
