"""Which layout data have: the folders of shared/cases/layouts, as people have them."""

import pytest

from promptcam_hf.data.photographs import find_unreadable
from promptcam_hf.data.splits import load_splits

from ..conftest import SHARED
from .cases import folder_with

BIRDS = ["Finch", "Jay", "Thrush"]


def layout(name: str):
    folder = SHARED / "cases" / "layouts" / name
    if not folder.is_dir():
        pytest.skip("the folders of shared/cases/layouts are not here")
    return folder


@pytest.mark.parametrize(
    ("name", "names", "train", "evaluation", "left_out"),
    [
        ("all_is_avif", BIRDS, 12, 6, None),
        ("base", BIRDS, 12, 6, None),
        ("capital", BIRDS, 12, 6, None),
        ("class_starts_with_two_underscores", ["Finch", "Jay", "__unknown"], 12, 6, None),
        ("flat_and_csv", BIRDS, 9, 3, None),
        ("half_in_a_subfolder", BIRDS, 12, 6, None),
        ("imagefolder_metadata", BIRDS, 12, 6, None),
        ("metadata_in_class", BIRDS, 12, 6, "6 files left out (6 with .csv)"),
        ("nfc_and_nfd", ["Finch", "Jay", "T\u00e9tras"], 12, 6, None),
        ("no_split", BIRDS, 9, 3, None),
        ("valid", BIRDS, 12, 6, None),
        ("validation_and_test", BIRDS, 12, 6, None),
        ("zip_in_class", BIRDS, 12, 6, "1 file left out (1 with .zip)"),
    ],
)
def test_folders_as_people_have_them(name, names, train, evaluation, left_out):
    folder = layout(name)
    splits = load_splits(folder)
    assert (splits.names, len(splits.train), len(splits.evaluation)) == (names, train, evaluation)
    assert splits.notes == ((f"{folder}: {left_out}.",) if left_out else ())
    assert {*splits.train["label"]} == {*splits.evaluation["label"]} == {0, 1, 2}
    assert find_unreadable(splits.train) == find_unreadable(splits.evaluation) == {}


def test_what_cannot_be_read_is_counted():
    """HEIC photographs without the extra; a link that was copied as a file."""
    splits = load_splits(layout("half_is_heic"))
    assert len(splits.train) + sum("2 with .heic" in note for note in splits.notes) * 2 == 12
    splits = load_splits(layout("class_is_symlink"))
    assert splits.names == BIRDS or "2 files left out (2 with no ending)" in splits.notes[0]


def test_parquet_in_a_folder_of_classes_does_not_count(tmp_path):
    folder_with(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    (tmp_path / "train" / "features.parquet").write_text("not a table")
    splits = load_splits(tmp_path)
    assert (splits.names, splits.notes) == (["a", "b"], (f"{tmp_path}: 1 file left out (1 with .parquet).",))
