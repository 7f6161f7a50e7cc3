"""Parts and the folders that they are kept in."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptcam_hf.data.parts import PartFolder, PartTable, has_parts, read_mask

PARTS = ("crown", "beak", "wing", "leaf")
# Two of one family that differ in the crown, a third that differs from both in the beak, too, and a stranger
LOOKS = {
    "robin": {"crown": "red", "beak": "thin", "wing": "brown"},
    "wren": {"crown": "brown", "beak": "thin", "wing": "brown"},
    "finch": {"crown": "blue", "beak": "thick", "wing": "brown"},
    "heron": {"crown": "red", "beak": "long", "wing": "grey"},
}
FAMILIES = {"robin": "small", "wren": "small", "finch": "small", "heron": "large"}


@pytest.fixture
def table() -> PartTable:
    return PartTable(PARTS, LOOKS, FAMILIES, frozenset({"leaf"}))


@pytest.fixture
def folder(table, tmp_path) -> Path:
    """One image, its mask, and two other scenes of it."""
    table.save(tmp_path)
    for name in ("test/robin/1.jpg", "test_without/crown/robin/1.jpg", "test_swapped/wren/robin/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    (tmp_path / "test_parts" / "robin").mkdir(parents=True)
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % 5).save(tmp_path / "test_parts/robin/1.png")
    return tmp_path


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_what_tells_classes_apart(table):
    assert table.differing("robin", "wren") == table.differing("wren", "robin") == {"crown"}
    assert table.differing("robin", "heron") == {"beak", "wing"}
    assert table.differing("robin", "robin") == set()
    assert table.look_alikes("robin") == ["wren", "finch"]
    assert table.distinguishing("robin") == {"crown", "beak"}
    assert table.marks("robin") == {"crown"}  # the beak is that of the wren
    assert table.marks("finch") == {"crown", "beak"}
    assert table.look_alikes("heron") == []
    assert table.distinguishing("heron") == table.marks("heron") == set()


def test_without_families_the_nearest_classes_are_the_look_alikes():
    table = PartTable(PARTS, LOOKS)
    assert table.look_alikes("robin") == ["wren"]
    assert table.look_alikes("finch") == ["robin", "wren"]
    assert table.look_alikes("heron") == ["robin"]
    assert PartTable(PARTS, {"robin": {}}).look_alikes("robin") == []


def test_a_part_without_a_look_is_the_same_everywhere_but_where_it_has_one():
    table = PartTable(PARTS, {"a": {}, "b": {}, "c": {"beak": "thin"}})
    assert table.differing("a", "b") == set()
    assert table.differing("a", "c") == {"beak"}


def test_a_table_is_read_as_it_was_written(table, tmp_path):
    for written in (table, PartTable(PARTS, LOOKS)):
        assert not has_parts(tmp_path / "not here")
        written.save(tmp_path)
        assert has_parts(tmp_path)
        assert PartTable.load(tmp_path) == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PARTS, {"robin": {"crwon": "red"}}), "robin has a look for 'crwon'; expected one of crown, beak, wing, leaf"),
        ((PARTS, LOOKS, {"robin": "small"}), "finch has no family; expected one for each class, or none at all"),
        ((PARTS, LOOKS, {}, frozenset({"leaves"})), "'leaves' in surroundings is not a part; expected one of crown"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PartTable(*arguments)


@pytest.mark.parametrize("content", ["", "[]", '{"parts": ["crown"]}', '{"parts": [], "classes": {"robin": {}}}'])
def test_files_that_are_no_table_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"has no parts\.json"):
        PartTable.load(tmp_path)
    (tmp_path / "parts.json").write_text(content)
    with pytest.raises(ValueError, match=r"parts\.json: expected 'parts', and 'looks' for each of the 'classes'"):
        PartTable.load(tmp_path)


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_files_are_found_by_their_image(folder):
    parts, image = PartFolder(folder), folder / "test/robin/1.jpg"
    parts.check([image])
    assert parts.mask(image, (6, 4)).tolist() == (np.arange(24).reshape(4, 6) % 5).tolist()
    assert parts.without(image) == {"crown": folder / "test_without/crown/robin/1.jpg"}
    assert parts.swapped(image) == {"wren": folder / "test_swapped/wren/robin/1.png"}
    assert parts.without(folder / "test/robin/2.jpg") == parts.swapped(folder / "test/wren/1.jpg") == {}


def test_images_without_a_mask_or_a_class_are_told(folder):
    parts = PartFolder(folder)
    with pytest.raises(ValueError, match=r"test_parts.robin.2\.png is missing; expected a mask for each test image"):
        parts.check([folder / "test/robin/1.jpg", folder / "test/robin/2.jpg"])
    with pytest.raises(ValueError, match=r"parts\.json has no class 'dodo'; expected all classes of test/"):
        parts.check([folder / "test/dodo/1.jpg"])
    with pytest.raises(ValueError, match=r"validation.robin.1\.jpg is not in .*test; expected one from there"):
        parts.check([folder / "validation/robin/1.jpg"])


def test_masks_that_do_not_fit_are_told(folder):
    parts, image = PartFolder(folder), folder / "test/robin/1.jpg"
    with pytest.raises(
        ValueError, match=r"robin.1\.png: a mask of 6 x 4 pixels; expected 4 x 6, the size of its image"
    ):
        parts.mask(image, (4, 6))
    Image.fromarray(np.full((4, 6), 5, dtype=np.uint8)).save(folder / "test_parts/robin/1.png")
    with pytest.raises(ValueError, match=r"robin.1\.png: the mask has the value 5; expected at most 4"):
        parts.mask(image, (6, 4))


@pytest.mark.parametrize(
    ("name", "what", "meant"), [("test_without/crwon", "crwon", "crown"), ("test_swapped/robbin", "robbin", "robin")]
)
def test_folders_of_unknown_names_are_told(folder, name, what, meant):
    (folder / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"{what}: '{what}' is not in parts\.json; did you mean '{meant}'\?"):
        PartFolder(folder)


def test_masks_with_and_without_a_palette_are_read_by_their_values(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(values).save(tmp_path / "plain.png")
    palette = Image.fromarray(values).convert("P")
    palette.putpalette([*range(255, -1, -1)] * 3)
    palette.save(tmp_path / "palette.png")
    for name in ("plain.png", "palette.png"):
        mask = read_mask(tmp_path / name)
        assert mask.dtype == np.uint8
        assert mask.tolist() == values.tolist()


def test_what_is_no_mask_is_refused(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=r"colour\.png: a mask of mode RGB; expected one channel"):
        read_mask(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text(json.dumps({}))
    for name in ("text.png", "missing.png"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as a mask"):
            read_mask(tmp_path / name)
