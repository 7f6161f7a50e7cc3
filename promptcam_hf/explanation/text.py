"""Lines of text in pictures: any script, any length."""

from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SMALLEST, LONGEST = 10, 400  # points; characters, of which no picture has room for more
# Latin, Greek, Cyrillic and more, in every installation; then the fonts of Linux, macOS and Windows for other scripts
FONTS = (
    str(Path(__file__).parent / "font" / "DejaVuSans.ttf"),
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "msgothic.ttc",
    "Nirmala.ttf",
)
NO_CHARACTER = "\uffff"  # which every font draws as its missing glyph


def draw_line(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    text: str,
    width: int,
    size: int,
    colour: tuple[int, int, int],
    end: str = "",
) -> None:
    """
    Draw one line of text. If it is too wide, it is made smaller, and then cut.

    Args:
        draw: Where to draw.
        position: The upper left corner, in pixels.
        text: The text. Line breaks and other white space become single spaces.
        width: The most that the line may take, in pixels.
        size: Size of the letters, in points.
        colour: Their colour.
        end: What follows the text and is never cut, such as a percentage.
    """
    text = one_line(text)
    path = font_for(text + end)
    while size > SMALLEST and draw.textlength(text + end, _font(path, size)) > width:
        size -= 1
    font = _font(path, size)
    if draw.textlength(text + end, font) > width:
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if draw.textlength(f"{text[:middle]}…{end}", font) > width:
                too_long = middle
            else:
                fits = middle
        text = text[:fits] + "…"
    draw.text(position, text + end, fill=colour, font=font)


def one_line(text: str) -> str:
    """The text with its white space as single spaces, without what cannot be drawn, and at most 400 characters long."""
    text = shortened(" ".join(text.split()), LONGEST)
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def shortened(text: str, most: int) -> str:
    """The text or, if it has more characters than that, its beginning."""
    return text if len(text) <= most else text[:most] + "…"


def font_for(text: str) -> str:
    """The first font that has all characters of a text, or else the first of those that have the most."""
    return max(_available(), key=lambda path: sum(_has(path, character) for character in text))


@cache
def _available() -> tuple[str, ...]:
    found = []
    for path in FONTS:
        try:
            _font(path, SMALLEST)
        except OSError:  # not on this machine
            continue
        found.append(path)
    return tuple(found)


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _has(path: str, character: str) -> bool:
    """Whether a font has a character: whether it looks other than a missing one."""
    return character.isspace() or _picture(path, character) != _picture(path, NO_CHARACTER)


def _picture(path: str, character: str) -> bytes:
    picture = Image.new("L", (48, 48))
    ImageDraw.Draw(picture).text((8, 8), character, fill=255, font=_font(path, 20))
    return picture.tobytes()
