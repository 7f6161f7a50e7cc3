"""Class names in one line, and text files in the encodings that spreadsheets write."""

import codecs

import pytest

from promptcam_hf.data.class_names import plain_name, plain_names, read_text


def test_names_are_in_one_line_and_composed():
    assert plain_name(" Scott's\n Oriole\t(male)\r\n") == "Scott's Oriole (male)"
    assert plain_name("Te\u0301tras") == "T\u00e9tras"
    assert plain_name("M\udce9sange") == "M?sange"
    assert plain_names(["b", " a"], "birds") == {"b": "b", " a": "a"}


@pytest.mark.parametrize("names", [["a b", "a\nb"], ["Te\u0301tras", "T\u00e9tras"]])
def test_names_that_look_the_same_are_refused(names):
    with pytest.raises(ValueError, match=r"birds: the class names .* look the same") as error:
        plain_names(names, "birds")
    assert len(str(error.value).splitlines()) == 1


def test_names_without_letters_are_refused():
    with pytest.raises(ValueError, match=r"birds: a class has the name '\\n'"):
        plain_names(["wren", "\n"], "birds")


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (b"", "latin-1"),
        (b"", "cp1252"),
    ],
)
def test_text_is_read_in_the_encodings_of_spreadsheets(tmp_path, mark, encoding):
    text = "class,group\r\nMésange,Ñandú\r\n"
    (tmp_path / "map.csv").write_bytes(mark + text.encode(encoding))
    assert read_text(tmp_path / "map.csv") == text
