"""The converter for FunnyBirds: what it writes, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import funnybirds
from promptcam_hf.data.parts import PartTable, read_mask
from promptcam_hf.data.splits import load_splits

from ..conftest import SHARED

PARTS = ("body", "beak", "eye", "clutter")
# Beak and eye of each class
VARIANTS = {"species_00": (3, 1), "species_01": (3, 2), "species_02": (0, 1), "species_03": (1, 0)}


def palette_mask(values: np.ndarray, file: Path) -> None:
    mask = Image.fromarray(values.astype(np.uint8)).convert("P")
    mask.putpalette([level for value in range(8) for level in (30 * value, 10, 200)])
    mask.save(file)


@pytest.fixture
def source(tmp_path) -> Path:
    """Two training images and a test image of four classes, 12 x 8 pixels."""
    folder = tmp_path / "source"
    rng = np.random.default_rng(0)
    for number, name in enumerate(VARIANTS):
        for split, count in (("train", 2), ("test", 1)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
                image.save(folder / split / name / f"{split}_{number:02}_{index:04}.jpg")
        (folder / "test_parts" / name).mkdir(parents=True)
        values = np.arange(96).reshape(8, 12) % (len(PARTS) + 1)
        palette_mask(values, folder / "test_parts" / name / f"test_{number:02}_0000.png")
    classes = [
        {
            "class": number,
            "name": name,
            "parts": {
                "beak": {"variant": beak, "model": f"beak0{beak + 1}.glb", "color": "yellow"},
                "eye": {"variant": eye, "model": f"eye0{eye + 1}.glb"},
            },
        }
        for number, (name, (beak, eye)) in enumerate(VARIANTS.items())
    ]
    (folder / "classes.json").write_text(json.dumps({"part_index": ["background", *PARTS], "classes": classes}))
    return folder


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["funnybirds.py", *map(str, arguments)])
    funnybirds.main()


def test_folder_has_images_masks_and_parts(source, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "birds"
    command(monkeypatch, source, folder)
    assert "4 classes that differ from their look-alikes in 1 to 2 of the parts body, beak, eye." in (
        capsys.readouterr().out
    )
    table = PartTable.load(folder)
    assert (table.names, table.surroundings, table.families) == (PARTS, {"clutter"}, {})
    assert table.looks["species_00"] == {"beak": "3 beak04 yellow", "eye": "1 eye02"}
    for a, of_a in VARIANTS.items():
        for b, of_b in VARIANTS.items():
            differing = {part for part, x, y in zip(("beak", "eye"), of_a, of_b, strict=True) if x != y}
            assert table.differing(a, b) == differing
    assert table.distinguishing("species_00") == {"beak", "eye"}
    assert table.look_alikes("species_01") == ["species_00"]

    for file in source.glob("t*/*/*"):
        assert (folder / file.relative_to(source)).read_bytes() == file.read_bytes()
    splits = load_splits(folder)
    assert (splits.names, len(splits.train), len(splits.evaluation)) == (list(VARIANTS), 8, 4)
    assert sorted(path.name for path in folder.iterdir()) == ["parts.json", "test", "test_parts", "train"]


def test_real_birds_have_their_masks(tmp_path):
    source = SHARED / "data" / "funnybirds20"
    if not source.is_dir():
        pytest.skip("the rendered birds of shared/data/funnybirds20 are not here")
    folder = tmp_path / "birds"
    table = funnybirds.convert(source, folder)
    assert table.names == ("body", "beak", "eye", "foot", "tail", "wing", "clutter")
    assert all(looks.keys() == {"beak", "eye", "foot", "tail", "wing"} for looks in table.looks.values())
    variants = {
        entry["name"]: {part: look["variant"] for part, look in entry["parts"].items()}
        for entry in json.loads((source / "classes.json").read_text())["classes"]
    }
    for a in variants:
        for b in variants:  # a look is a variant, and nothing else
            assert table.differing(a, b) == {part for part in variants[a] if variants[a][part] != variants[b][part]}
    assert all(table.distinguishing(name) for name in table.looks)

    splits = load_splits(folder)
    assert splits.names == list(table.looks)
    assert (len(splits.train), len(splits.evaluation)) == (1800, 300)
    is_seen = np.zeros(8, dtype=bool)
    for image in splits.evaluation["image"]:
        path = Path(image["path"])
        mask = read_mask(folder / "test_parts" / path.parent.name / f"{path.stem}.png")
        assert mask.shape == (256, 256)
        is_seen[np.unique(mask)] = True
    assert is_seen.all()


def _no_mask(source: Path) -> None:
    (source / "test_parts" / "species_01" / "test_01_0000.png").unlink()


def _other_size(source: Path) -> None:
    palette_mask(np.zeros((9, 12)), source / "test_parts" / "species_01" / "test_01_0000.png")


def _unknown_part(source: Path) -> None:
    palette_mask(np.full((8, 12), 5), source / "test_parts" / "species_01" / "test_01_0000.png")


def _unknown_class(source: Path) -> None:
    (source / "train" / "species_01").rename(source / "train" / "species_1")


def _part_that_is_not_named(source: Path) -> None:
    file = source / "classes.json"
    file.write_text(file.read_text().replace('"eye", "clutter"', '"clutter"'))


def _no_background(source: Path) -> None:
    file = source / "classes.json"
    file.write_text(file.read_text().replace('"background", ', ""))


def _no_classes(source: Path) -> None:
    (source / "classes.json").write_text('{"part_index": ["background", "beak"]}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_mask, r"test_01_0000.png: cannot be read as a mask"),
        (_other_size, r"test_01_0000.png: 12 x 9 pixels; expected those of"),
        (_unknown_part, r"test_01_0000.png: value 5; classes.json names parts up to 4"),
        (_unknown_class, r"species_1: no class in classes.json"),
        (_part_that_is_not_named, r"species_00 has a look for 'eye'"),
        (_no_background, r"value 0 in the masks is 'body'"),
        (_no_classes, r"expected 'part_index' and 'classes'"),
        (lambda source: (source / "classes.json").unlink(), r"classes.json cannot be read \(No such file"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(spoil, message, source, tmp_path, monkeypatch):
    spoil(source)
    with pytest.raises(SystemExit, match=rf"error: .*{message}"):
        command(monkeypatch, source, tmp_path / "birds")
    assert not (tmp_path / "birds").exists()


def test_no_folder_is_overwritten(source, tmp_path):
    (tmp_path / "birds").mkdir()
    funnybirds.convert(source, tmp_path / "birds")  # an empty folder is accepted
    with pytest.raises(ValueError, match="exists and is not empty"):
        funnybirds.convert(source, tmp_path / "birds")
