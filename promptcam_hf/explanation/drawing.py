"""Contact sheets of photographs and their traits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

MARGIN, CAPTION, HEADING = 12, 44, 40
INK, FAINT, PAPER = (28, 28, 32), (110, 110, 118), (255, 255, 255)


def contact_sheet(
    photograph: Image.Image, explanations: Sequence[dict[str, Any]], title: str = "", cell_height: int = 260
) -> Image.Image:
    """
    One row per explained class: the photograph, then the class's traits, the most important first.

    Args:
        photograph: The photograph, of any size and aspect ratio.
        explanations: What `pipeline("prompt-cam")` returns for it, with heatmaps.
        title: A line above the rows, such as the file name.
        cell_height: Height of each picture in pixels. The width follows from the photograph's aspect ratio.

    Returns:
        An image of mode `"RGB"`.
    """
    # The cells of a panorama or a tall strip would be of little use next to each other
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


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """One image of several, one below the other and aligned on the left."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    y = 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    return whole


class Misclassified(NamedTuple):
    """
    A photograph that was taken for another class.

    Args:
        photograph: The photograph, of any size and aspect ratio.
        name: What to call it, such as its file name.
        true_class, predicted_class: What `pipeline("prompt-cam")` returns for either class, with heatmaps.
        frequency: How often the one class is taken for the other, such as "3 of 30".
    """

    photograph: Image.Image
    name: str
    true_class: dict[str, Any]
    predicted_class: dict[str, Any]
    frequency: str


def misclassified_sheet(examples: Sequence[Misclassified], cell_height: int = 200) -> Image.Image:
    """
    Why photographs were misclassified. One row per photograph: the photograph, the most important traits of its true
    class, and those of the predicted class. Consecutive rows with the same two classes share a heading.

    Args:
        examples: One or more, all with the same number of traits.
        cell_height: Height of each picture in pixels. The width, the same in all rows, follows from the widest
            photograph.

    Returns:
        An image of mode `"RGB"`.
    """
    aspect = max(example.photograph.width / example.photograph.height for example in examples)
    width, height = cell = (round(cell_height * min(max(aspect, 0.75), 1.5)), cell_height)
    num_traits = len(examples[0].true_class["traits"])
    pairs = [(example.true_class["label"], example.predicted_class["label"]) for example in examples]
    has_heading = [row == 0 or pairs[row] != pairs[row - 1] for row in range(len(examples))]
    group = num_traits * (width + MARGIN // 3) - MARGIN // 3  # the pictures of a class are close together
    sheet = Image.new(
        "RGB",
        (
            MARGIN + width + 2 * (2 * MARGIN + group) + MARGIN,
            MARGIN + sum(has_heading) * HEADING + len(examples) * (height + CAPTION + MARGIN),
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for example, pair, is_first in zip(examples, pairs, has_heading, strict=True):
        true, predicted = (label.replace("_", " ") for label in pair)
        if is_first:
            heading = f"{true}, taken for {predicted}: {example.frequency}"
            _text(draw, (MARGIN, y), heading, sheet.width - 2 * MARGIN, 22, INK)
            y += HEADING
        sheet.paste(_fit(example.photograph, cell), (MARGIN, y))
        _text(draw, (MARGIN, y + height + 3), example.name, width, 13, FAINT)
        x = MARGIN + width + 2 * MARGIN
        for role, name, explanation in (
            ("true class", true, example.true_class),
            ("predicted class", predicted, example.predicted_class),
        ):
            traits = explanation["traits"]
            for column, trait in enumerate(traits):
                sheet.paste(_fit(trait["heatmap"], cell), (x + column * (width + MARGIN // 3), y))
            heads = ", ".join(str(trait["head"]) for trait in traits)
            _text(draw, (x, y + height + 3), f"{name}  {explanation['score']:.1%}", group, 17, INK)
            _text(draw, (x, y + height + 24), f"{role}, head{'s' * (len(traits) > 1)} {heads}", group, 13, FAINT)
            x += group + 2 * MARGIN
        y += height + CAPTION + MARGIN
    return sheet


def _fit(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """The whole picture in the middle of a cell, as large as the cell allows."""
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
    """One line of text. If it is too wide, it is made smaller, and then cut."""
    while size > 10 and draw.textlength(text, ImageFont.load_default(size)) > width:
        size -= 1
    font = ImageFont.load_default(size)
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text[:-2] + "…"
    draw.text(position, text, fill=colour, font=font)
