"""Photographs in folders: a folder for each class, or the class in the names of the files."""

import pytest

from promptcam_hf.data.photographs import find_unreadable
from promptcam_hf.data.splits import load_splits

from .cases import classes_of, folder_with, table, write


def test_classes_of_a_folder_are_sorted_and_every_photograph_is_found(bird_folder):
    splits = load_splits(bird_folder)
    assert splits.names == sorted(path.name for path in (bird_folder / "train").iterdir())
    assert (len(splits.train), len(splits.evaluation)) == (24, 12)
    assert (splits.name, splits.split, splits.hub_id) == ("photos", "test", None)
    for split in (splits.train, splits.evaluation):
        assert all(splits.names[row["label"]] in row["image"]["path"] for row in split)


@pytest.mark.parametrize("name", ["test", "validation", "val"])
def test_evaluation_set_may_have_any_of_its_names(tmp_path, name):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/b/1.jpg", f"{name}/a/2.jpg", f"{name}/a/3.jpg")
    splits = load_splits(tmp_path)
    assert (len(splits.train), sorted(splits.evaluation["label"]), splits.names) == (2, [0, 0, 1], ["a", "b"])


def test_folder_may_have_any_name_and_other_files_in_it(tmp_path):
    folder = folder_with(tmp_path / "wrens [2020] *", "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/0.png")
    write(folder / "train" / "metadata.csv", "file_name,label\na/1.png,5\nb/1.png,6\n")
    write(folder / "notes.csv", "a,b\n1,2\n")
    splits = load_splits(folder)
    assert (splits.name, splits.names, splits.train.column_names) == (folder.name, ["a", "b"], ["image", "label"])
    assert classes_of(splits.train) == ["a", "b"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no folder 'train'"),
        (["train/a/1.png", "train/b/1.png"], "no images in test/ or validation/, and none of train can be held out"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"], "no training images of c"),
        (["train/1.png", "train/2.png", "test/1.png"], "train holds fewer than two folders"),
        (["train/a/1.png", "test/a/1.png"], "train holds fewer than two folders"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(tmp_path, files, message):
    folder_with(tmp_path, *files)
    with pytest.raises(ValueError, match=message) as error:
        load_splits(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_folder_without_images_and_no_folder_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        load_splits(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        load_splits(tmp_path / "missing")


def test_folder_of_images_has_no_columns_to_choose(bird_folder):
    with pytest.raises(ValueError, match="leave out --image-column and --label-column"):
        load_splits(bird_folder, label_column="species")


def test_links_deeper_folders_and_all_types_are_used(tmp_path, caplog):
    folder = tmp_path / "birds"
    for split in ("train", "test"):
        folder_with(folder, *(f"{split}/{name}" for name in ("__a/1.jfif", "__a/x/2.avif", "b/1", "b/2.jp2")))
        folder_with(tmp_path, f"far/{split}/1.jpg")
        (folder / split / "c").symlink_to(tmp_path / "far" / split)
        folder_with(folder, f"{split}/b/._1.jpg", f"{split}/b/.thumbs/1.jpg")
    splits = load_splits(folder)
    assert splits.names == ["__a", "b", "c"]
    for split in (splits.train, splits.evaluation):
        assert classes_of(split) == ["__a", "__a", "b", "b", "c"]
    assert not caplog.records
    assert len(find_unreadable(splits.train)) == 0


def test_what_is_left_out_is_named(tmp_path, caplog):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "train/.c/1.png")
    folder_with(tmp_path, "train/a/0.jpg.txt", "train/b/Thumbs.db", "test/b/metadata.csv", "test/notes.txt")
    (tmp_path / "train" / "d").mkdir()
    (tmp_path / "train" / "e").symlink_to(tmp_path / "missing")
    splits = load_splits(tmp_path)
    assert (splits.names, len(splits.train), len(splits.evaluation)) == (["a", "b"], 2, 2)
    assert [record.getMessage().replace(str(tmp_path), "") for record in caplog.records] == [
        "/train: hidden folders left out: .c.",
        "/train: links that lead nowhere left out: e.",
        ": 4 files left out (2 with .txt, 1 with .csv, 1 with .db).",
        ": folders without photographs left out: d.",
    ]


def test_class_names_of_folders_and_tables_are_in_one_line(tmp_path):
    folder_with(tmp_path / "folder", "train/a\nb/1.png", "train/c/1.png", "test/a b/1.png")
    splits = load_splits(tmp_path / "folder")
    assert (splits.names, classes_of(splits.evaluation)) == (["a b", "c"], ["a b"])
    for split in ("train", "test"):
        write(tmp_path / "table" / f"{split}.parquet", table(["c\td", "a\nb"]))
        write(tmp_path / "alike" / f"{split}.parquet", table(["c", "a\nb", "a b"]))
    splits = load_splits(tmp_path / "table")
    assert (splits.names, classes_of(splits.train)) == (["a b", "c d"], ["c d", "a b"])
    with pytest.raises(ValueError, match=r"alike: the class names 'a\\nb' and 'a b' look the same"):
        load_splits(tmp_path / "alike")
    folder_with(tmp_path / "folder", "train/a b/1.png")
    with pytest.raises(ValueError, match=r"train: the class names .* look the same"):
        load_splits(tmp_path / "folder")


@pytest.mark.parametrize(
    ("train", "test", "split"), [("Training", "test_set", "test"), ("TRAIN", "Valid", "validation")]
)
def test_case_and_spelling_of_splits_and_letters_do_not_matter(tmp_path, train, test, split):
    folder_with(tmp_path, f"{train}/Te\u0301tras/1.png", f"{train}/b/1.png", f"{test}/T\u00e9tras/1.png")
    splits = load_splits(tmp_path)
    assert (splits.split, splits.names, classes_of(splits.evaluation)) == (
        split,
        ["T\u00e9tras", "b"],
        ["T\u00e9tras"],
    )


def test_two_folders_for_one_split_are_refused(tmp_path):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "validation/a/1.png", "valid/a/1.png")
    with pytest.raises(ValueError, match="two folders for one split, val and valid"):
        load_splits(tmp_path)


def test_folders_without_splits_are_divided(tmp_path):
    folder_with(tmp_path, *(f"{name}/{number}.png" for name in ("a", "b", "c") for number in range(5)))
    splits = load_splits(tmp_path)
    assert (splits.names, splits.split) == (["a", "b", "c"], "test")
    assert (classes_of(splits.evaluation), len(splits.train)) == (["a", "b", "c"], 12)
    whole = load_splits(tmp_path, training=False)  # photographs of somebody else
    assert (whole.split, len(whole.evaluation), len(whole.train)) == ("all", 15, 0)


def test_folder_of_training_photographs_alone_is_divided(tmp_path):
    folder_with(tmp_path, *(f"train/{name}/{number}.png" for name in "ab" for number in range(4)))
    splits = load_splits(tmp_path)
    assert (classes_of(splits.evaluation), len(splits.train)) == (["a", "b"], 6)
    with pytest.raises(ValueError, match=r"no images in test/ or validation/; found train\.$"):
        load_splits(tmp_path, training=False)


def test_classes_that_are_numbers_are_in_the_order_of_the_numbers(tmp_path):
    folder_with(tmp_path, *(f"train/{name}/1.png" for name in ("1", "2", "10", "plot 9", "plot 10")))
    folder_with(tmp_path, "test/10/1.png", "test/2/2.png", "test/plot 9/1.png")
    splits = load_splits(tmp_path)
    assert splits.names == ["1", "2", "10", "plot 9", "plot 10"]
    assert sorted(splits.evaluation["label"]) == [1, 2, 3]
    for row in splits.evaluation:
        assert f"/{splits.names[row['label']]}/" in row["image"]["path"]


def test_what_other_programs_leave_behind_is_no_class(tmp_path, caplog):
    folder_with(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png", "a/.ipynb_checkpoints/1.png", "a/__MACOSX/2.png")
    folder_with(tmp_path, "__MACOSX/a/._1.png", "__MACOSX/3.png", ".ipynb_checkpoints/4.png", "@eaDir/5.png")
    splits = load_splits(tmp_path)
    assert (splits.names, len(splits.train), len(splits.evaluation)) == (["a", "b"], 2, 2)
    note = f"{tmp_path}: hidden folders left out: .ipynb_checkpoints, @eaDir, __MACOSX."
    assert splits.notes == (note,)
    assert [record.getMessage() for record in caplog.records] == [note]


def test_test_folder_may_lack_a_class_or_have_an_empty_one(tmp_path, caplog):
    folder_with(tmp_path, *(f"train/{name}/1.png" for name in "abcd"), "test/b/1.png", "test/d/1.png")
    (tmp_path / "test" / "c").mkdir()
    splits = load_splits(tmp_path)
    assert (splits.names, classes_of(splits.evaluation)) == (["a", "b", "c", "d"], ["b", "d"])
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: no test images of a, c, so their accuracy cannot be measured."
    ]


def test_class_that_is_spelled_differently_in_test_is_named(tmp_path):
    folder_with(tmp_path, "train/Finch/1.png", "train/Jay/1.png", "test/finch/1.png")
    with pytest.raises(ValueError, match=r"no training images of finch; did you mean 'Finch'\?$"):
        load_splits(tmp_path)


def test_folder_around_the_data_and_folders_beside_the_splits(tmp_path, caplog):
    folder_with(tmp_path, *(f"birds/birds/{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    folder_with(tmp_path, "birds/birds/more/1.png")
    splits = load_splits(tmp_path / "birds")
    assert (splits.names, len(splits.train)) == (["a", "b"], 2)
    assert splits.notes == (f"{tmp_path}/birds/birds: folders beside test, train left out: more.",)


@pytest.mark.parametrize("kinds", [["test_parts"], ["test_parts", "test_without"]])
def test_masks_without_their_photographs_are_not_taken_for_the_data(tmp_path, kinds):
    for kind in kinds:
        folder_with(tmp_path / "birds", f"{kind}/auk/1.png", f"{kind}/wren/1.png")
    with pytest.raises(ValueError, match=r"birds has no folder 'train'; expected train/<class>"):
        load_splits(tmp_path / "birds")


@pytest.mark.parametrize("pattern", [r"^(.+?)_\d+", r"^[A-Z][a-z]+(?=_)", r"([A-Z]\w*?)_"])
def test_class_may_be_in_the_names_of_the_files(tmp_path, pattern):
    names = [f"{name}_{number}.png" for name in ("Finch", "Jay") for number in range(4)]
    folder_with(tmp_path, *names[:-1], f"more/{names[-1]}", "1.png", "notes.txt")
    splits = load_splits(tmp_path, label_pattern=pattern)
    assert (splits.names, classes_of(splits.evaluation), len(splits.train)) == (["Finch", "Jay"], ["Finch", "Jay"], 6)
    files, photographs = splits.notes
    assert files.endswith("1 file left out (1 with .txt).")
    assert photographs.endswith("left out: 1.png.")


def test_class_may_be_in_the_path_and_splits_in_folders(tmp_path):
    folder_with(
        tmp_path, *(f"{split}/Ara/{name}/1.png" for split in ("Train", "Test") for name in ("macao", "ararauna"))
    )
    splits = load_splits(tmp_path, label_pattern=r"/([^/]+)/[^/]+$")
    assert (splits.names, len(splits.train), classes_of(splits.evaluation)) == (
        ["ararauna", "macao"],
        2,
        ["ararauna", "macao"],
    )
    assert load_splits(tmp_path / "Train", label_pattern=r"/([^/]+)/", training=False).names == ["ararauna", "macao"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"--label-pattern '\(' is not a regular expression \("),
        ("Finch", "--label-pattern 'Finch': expected a regular expression such as"),
        (r"^(\d+)-", r"matches no file name in .*, such as 'Finch_1\.png'; expected one that finds the class"),
    ],
)
def test_patterns_that_find_nothing_are_refused(tmp_path, pattern, message):
    folder_with(tmp_path, "Finch_1.png", "Jay_1.png")
    with pytest.raises(ValueError, match=message):
        load_splits(tmp_path, label_pattern=pattern)


def test_flat_folder_hints_at_the_pattern(tmp_path):
    folder_with(tmp_path, "Finch_1.png", "Jay_1.png")
    with pytest.raises(ValueError, match=r"--label-pattern to find the class in the file names\.$"):
        load_splits(tmp_path)
