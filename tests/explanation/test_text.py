# ruff: noqa: RUF001  (letters that look alike are meant)
import string

import pytest
from PIL import Image, ImageDraw

from promptcam_hf.explanation import text
from promptcam_hf.explanation.text import FONTS, draw_line, font_for, one_line


def drawn(line: str, width: int = 200, end: str = "") -> Image.Image:
    picture = Image.new("RGB", (600, 40), "white")
    draw_line(ImageDraw.Draw(picture), (4, 4), line, width, 17, (0, 0, 0), end)
    return picture


LATIN = "éñ×øµßçãůŁşőđþ"
GREEK, CYRILLIC = "αβγδΩς", "жщыЯёЇ"


@pytest.mark.parametrize("letter", LATIN + GREEK + CYRILLIC + "–…“’°♂♀")
def test_letters_are_drawn_and_are_no_boxes(letter):
    assert drawn(letter).tobytes() != drawn(" ").tobytes()
    assert not text._has(FONTS[0], "鷦")
    assert text._has(FONTS[0], letter)
    assert font_for(string.ascii_letters + letter) == FONTS[0]


def test_other_scripts_are_drawn_with_a_font_that_has_them(monkeypatch):
    monkeypatch.setattr(text, "_available", lambda: ("ours", "Latin too", "Chinese"))
    monkeypatch.setattr(text, "_has", lambda font, letter: letter.isascii() or font == "Chinese")
    assert [font_for(line) for line in ("wren", "鷦鷯 wren")] == ["ours", "Chinese"]


def test_line_that_is_too_wide_is_made_smaller_and_then_cut():
    for line in ("wren " * 12, "x" * 4000, "\n" * 4000 + "x" * 4000):
        for end in ("", "  99.9%"):
            ink = drawn(line, 200, end).convert("L").point(lambda value: 255 - value).getbbox()
            assert 150 < ink[2] <= 206
    assert drawn("x" * 4000, 200, "  99.9%").tobytes() != drawn("x" * 4000, 200, "  11.1%").tobytes()


def test_one_line_has_no_line_breaks_nor_what_cannot_be_drawn():
    assert one_line("House\n \tWren\r\n") == "House Wren"
    assert one_line("a\udcffb\0c") == "a\ufffdb\ufffdc"
    assert drawn("a\udcffb\0c").tobytes() != drawn("").tobytes()
    assert len(one_line("x" * 10**6)) == 401
