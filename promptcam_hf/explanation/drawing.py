"""Contact sheets of photographs and their traits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ..data.class_names import readable
from ..modeling.html_promptcam import heads_suffice
from ..modeling.images_promptcam import draw_heatmap, encoded
from .text import draw_line, shortened

MARGIN, CAPTION, HEADING = 12, 44, 40
INK, FAINT, PAPER = (28, 28, 32), (110, 110, 118), (255, 255, 255)
HEADING_LABEL = 60  # characters of a class name in a heading, at most
SHEET_HEIGHT = 260  # of each picture in a contact sheet, in pixels
SOFTWARE = "promptcam explain"  # what the header of a contact sheet's file says


def contact_sheet(
    photograph: Image.Image, explanations: Sequence[dict[str, Any]], title: str = "", cell_height: int = SHEET_HEIGHT
) -> Image.Image:
    """
    One row per explained class: the photograph, then the class's traits, the most important first.

    Args:
        photograph: The photograph, of any size and aspect ratio.
        explanations: What `pipeline("prompt-cam")` returns for it. Heatmaps are not needed: they are drawn anew, at the
            size of the pictures.
        title: A line above the rows, such as the file name.
        cell_height: Height of each picture in pixels. The width follows from the photograph's aspect ratio.

    Returns:
        An image of mode `"RGB"`.
    """
    cell = cell_of(photograph, cell_height)
    photograph = resized(photograph, cell)
    columns = 1 + max(len(explanation["traits"]) for explanation in explanations)
    row_height = cell[1] + CAPTION + MARGIN
    sheet, top = blank_sheet(columns, cell, len(explanations) * row_height, title)
    for row, explanation in enumerate(explanations):
        enough = heads_suffice(explanation["num_sufficient"])
        cells: list[Cell] = [(photograph, readable(explanation["label"]), f"  {explanation['score']:.1%}", enough)]
        cells += [(draw_heatmap(photograph, trait["map"]), *trait_captions(trait)) for trait in explanation["traits"]]
        draw_cells(sheet, top + row * row_height, cell, cells)
    return sheet


def trait_captions(trait: dict[str, Any]) -> tuple[str, str, str]:
    """The caption of a trait, its end and its second line: its name, or without a vocabulary its rank, and its head;
    the head alone if the vocabulary has no name for it."""
    head, name = f"head {trait['head']}", trait.get("trait", f"trait {trait['rank']}")
    return (name, "", head) if name else (head, "", "")


def titled(name: str, truth: str | None, answer: str) -> str:
    """
    The title of a sheet: the name of a photograph, and before it its true class and the answer, if they differ.

    Args:
        name: The name of the photograph.
        truth: Its true class, which its folder or label names; None if that is no class of the model.
        answer: The class that the model names.
    """
    wrong = None if truth in (None, answer) else f"Truth: {readable(truth)}, answer: {readable(answer)}"
    return f"{wrong}: {name}" if wrong else name


def shrunk(photograph: Image.Image, cell_height: int = SHEET_HEIGHT) -> Image.Image:
    """A photograph at the size at which `contact_sheet` shows it, so that the whole need not be kept in memory."""
    return resized(photograph, cell_of(photograph, cell_height))


def write_sheet(sheet: Image.Image) -> bytes:
    """The content of a PNG file with a contact sheet, which says that it is one."""
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    return encoded(sheet, "PNG", pnginfo=info)


def is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet, whatever its name. Only the header is read."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except Exception:  # Pillow raises all kinds of errors on damaged files
        return False


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
        true_class, predicted_class: What `pipeline("prompt-cam")` returns for either class; heatmaps are not needed.
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
        true, predicted = map(readable, pair)
        if is_first:
            both = f"{shortened(true, HEADING_LABEL)}, taken for {shortened(predicted, HEADING_LABEL)}"
            draw_line(draw, (MARGIN, y), both, sheet.width - 2 * MARGIN, 22, INK, f": {example.frequency}")
            y += HEADING
        photograph = resized(example.photograph, cell)
        paste_centred(sheet, photograph, (MARGIN, y), cell)
        draw_line(draw, (MARGIN, y + height + 3), example.name, width, 13, FAINT)
        x = MARGIN + width + 2 * MARGIN
        for role, name, explanation in (
            ("true class", true, example.true_class),
            ("predicted class", predicted, example.predicted_class),
        ):
            traits = explanation["traits"]
            for column, trait in enumerate(traits):
                heatmap = draw_heatmap(photograph, trait["map"])
                paste_centred(sheet, heatmap, (x + column * (width + MARGIN // 3), y), cell)
            heads = ", ".join(str(trait["head"]) for trait in traits)
            draw_line(draw, (x, y + height + 3), name, group, 17, INK, f"  {explanation['score']:.1%}")
            draw_line(draw, (x, y + height + 24), f"{role}, head{'s' * (len(traits) > 1)} {heads}", group, 13, FAINT)
            x += group + 2 * MARGIN
        y += height + CAPTION + MARGIN
    return sheet


# A picture, its caption, the end of the caption, which is never cut, and a second line
Cell = tuple[Image.Image, str, str, str]


def blank_sheet(columns: int, cell: tuple[int, int], height: int, title: str) -> tuple[Image.Image, int]:
    """A sheet with a title, if there is one, and room for columns of cells; and where the room begins, from the top."""
    top = MARGIN + (CAPTION // 2 if title else 0)
    sheet = Image.new("RGB", (MARGIN + columns * (cell[0] + MARGIN), top + height), PAPER)
    if title:
        draw_line(ImageDraw.Draw(sheet), (MARGIN, MARGIN // 2), title, sheet.width - 2 * MARGIN, 15, FAINT)
    return sheet, top


def draw_cells(sheet: Image.Image, y: int, cell: tuple[int, int], cells: Sequence[Cell]) -> None:
    """Draw a row of pictures and their captions."""
    draw = ImageDraw.Draw(sheet)
    for column, (picture, first, end, second) in enumerate(cells):
        x = MARGIN + column * (cell[0] + MARGIN)
        paste_centred(sheet, picture, (x, y), cell)
        draw_line(draw, (x, y + cell[1] + 3), first, cell[0], 17, INK, end)
        draw_line(draw, (x, y + cell[1] + 24), second, cell[0], 13, FAINT)


def cell_of(photograph: Image.Image, height: int) -> tuple[int, int]:
    """Width and height of the pictures beside each other in a contact sheet. Those of a panorama or of a tall strip
    would be of little use, so its pictures do not fill the cell."""
    aspect = min(max(photograph.width / photograph.height, 0.4), 2.5)
    return max(1, round(height * aspect)), height


def resized(photograph: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """The whole photograph, as large as the cell allows."""
    scale = min(cell[0] / photograph.width, cell[1] / photograph.height)
    size = (max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale)))
    return photograph.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def paste_centred(sheet: Image.Image, picture: Image.Image, position: tuple[int, int], cell: tuple[int, int]) -> None:
    """Put a picture in the middle of a cell."""
    x, y = ((cell[axis] - picture.size[axis]) // 2 + position[axis] for axis in (0, 1))
    sheet.paste(picture, (x, y))
