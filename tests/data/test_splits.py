"""From any data to the photographs to train on and those to evaluate on."""

import os
import shutil
from collections import Counter

import datasets
import pytest

from promptcam_hf.data.overview import overview
from promptcam_hf.data.splits import load_splits
from promptcam_hf.evaluation.prediction import with_model_labels

from .cases import classes_of, encoded, folder_with, write


@pytest.fixture
def orioles(tmp_path):
    files = [
        f"{split}/{name}/1.png" for split in ("train", "test") for name in ("Auk", "Hooded_Oriole", "Scott_Oriole")
    ]
    return folder_with(tmp_path / "photos", *files)


def test_label_map_makes_groups_the_classes(orioles, tmp_path):
    # As a spreadsheet writes it: in UTF-16, with columns of its own, a class twice, and white space
    rows = "class,note,group\r\nScott_Oriole,yellow,Icterus\r\nAuk,,Alca\r\nHooded_Oriole,,Icterus\t\r\nAuk,,Alca\r\n"
    (tmp_path / "map.csv").write_bytes(rows.encode("utf-16"))
    splits = load_splits(orioles, label_map=tmp_path / "map.csv")
    assert splits.names == ["Alca", "Icterus"]
    for split in (splits.train, splits.evaluation):
        for row, group in zip(split, classes_of(split), strict=True):
            assert group == ("Alca" if "Auk" in row["image"]["path"] else "Icterus")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("name,group\n", "first line is name,group; expected class,group"),
        ("class,group\nAuk,Alca\nScott_Oriole,Icterus\n", r"no group for the class 'Hooded_Oriole'\.$"),
        (
            "class,group\nAuk,Alca\nScott_Oriole,Icterus\nHooded Oriole,Icterus\n",
            "no group for the class 'Hooded_Oriole'; did you mean 'Hooded Oriole'\\?$",
        ),
        (
            "class,group\nAuk,Alca\nScott_Oriole,Icterus\nHooded_Oriole,Icterus\nScotts_Oriole,Icterus\n",
            "'Scotts_Oriole' is not a class of the data; did you mean 'Scott_Oriole'\\?$",
        ),
        ("class,group\nAuk,Alca\nAuk,Uria\n", "line 3: 'Auk' is in 'Uria', and in 'Alca' above"),
        ("class,group\nAuk\n", "line 2: expected a class and a group"),
        ("class,group\nAuk,Aves\nScott_Oriole,Aves\nHooded_Oriole,Aves\n", "one class only, 'Aves'"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(orioles, tmp_path, rows, message):
    (tmp_path / "map.csv").write_text(rows)
    with pytest.raises(ValueError, match=message):
        load_splits(orioles, label_map=tmp_path / "map.csv")


def test_class_that_is_not_evaluated_is_pointed_out(orioles, caplog):
    load_splits(orioles)
    assert not caplog.records
    (orioles / "test" / "Auk" / "1.png").unlink()
    splits = load_splits(orioles)
    assert splits.names == ["Auk", "Hooded_Oriole", "Scott_Oriole"]
    assert classes_of(splits.evaluation) == ["Hooded_Oriole", "Scott_Oriole"]
    (record,) = caplog.records
    assert "no test images of Auk" in record.getMessage()


# --- Tables that `datasets` has loaded --------------------------------------------------------------------------------


def loaded(labels: list, names: list[str] | None = None, **columns: list) -> datasets.Dataset:
    """Photographs as `datasets` holds them, with labels that are numbers of `names` if these are given."""
    label = datasets.Value("string") if names is None else datasets.ClassLabel(names=names)
    rows = {"image": [encoded(number) for number in range(len(labels))], "label": labels}
    photographs = datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image(), label=label))
    for name, column in columns.items():
        photographs = photographs.add_column(name, column)
    return photographs


def test_classes_of_splits_are_matched_by_name_not_by_position(caplog):
    train = loaded([0, 1, 2, 0, 1, 2], ["a", "b", "c"])
    for names, labels in ((["b", "c"], [1, 0]), (["c", "b", "a"], [0, 1]), (["a", "kiwi", "c", "b"], [2, 3])):
        splits = load_splits(datasets.DatasetDict(train=train, test=loaded(labels, names)))
        assert classes_of(splits.evaluation) == ["c", "b"]
    splits = load_splits(datasets.DatasetDict(train=train, test=loaded(["c", "b"])))
    assert (splits.names, classes_of(splits.evaluation)) == (["a", "b", "c"], ["c", "b"])


def test_numbers_beside_named_classes_are_these(caplog):
    rows = {"image": [encoded(0), encoded(1)], "label": [2, 1]}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    test = datasets.Dataset.from_dict(rows, features=features)
    splits = load_splits(datasets.DatasetDict(train=loaded([0, 1, 2], ["a", "b", "c"]), test=test))
    assert classes_of(splits.evaluation) == ["c", "b"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_columns_that_were_added_do_no_harm(tmp_path, in_memory):
    """Also one called `features`. `datasets` cannot add a column after those of an earlier `add_column` went."""
    stored = loaded(["a", "b", "a", "b"])
    if not in_memory:
        stored.save_to_disk(tmp_path / "stored")
        stored = datasets.load_from_disk(tmp_path / "stored")
    more = stored.add_column("features", [1, 2, 3, 4]).add_column("other 0", [1, 2, 3, 4])
    bare = stored.remove_columns("label").add_column("label", ["b", "a", "b", "a"])
    splits = load_splits(datasets.DatasetDict(train=more, test=bare))
    assert splits.train.column_names == splits.evaluation.column_names == ["image", "label"]
    assert (classes_of(splits.train), classes_of(splits.evaluation)) == (list("abab"), list("baba"))
    again = with_model_labels(splits.train, splits.names, ["b", "a"], "photos")
    assert again["label"][:] == [1, 0, 1, 0]
    named = stored.rename_column("label", "features")
    splits = load_splits(datasets.DatasetDict(train=named, test=named), label_column="features")
    assert (splits.names, splits.train[3]["image"]["bytes"]) == (["a", "b"], encoded(3))


# --- Dividing ---------------------------------------------------------------------------------------------------------


def test_training_split_alone_is_divided_by_seed_and_share():
    train = loaded(list("ab") * 10)
    images = []
    for seed, share in ((0, None), (0, 0.2), (1, 0.2), (0, 0.5)):
        splits = load_splits(datasets.DatasetDict(train=train), seed=seed, test_share=share)
        images.append([row["image"]["bytes"] for row in splits.evaluation])
        assert Counter(classes_of(splits.evaluation)) == dict.fromkeys("ab", 5 if share == 0.5 else 2)
        assert len(splits.train) + len(splits.evaluation) == 20
    assert images[0] == images[1] != images[2]
    one = datasets.DatasetDict(photos=train)  # its only split has a name of its own
    assert len(load_splits(one).evaluation) == 4
    assert len(load_splits(one, training=False).evaluation) == 20


def test_test_share_divides_photographs_with_splits_anew(tmp_path):
    folder_with(
        tmp_path, *(f"{side}/{name}/{row}.png" for side in ("train", "val", "test") for name in "ab" for row in "12")
    )
    splits = load_splits(tmp_path, test_share=0.5)
    assert (len(splits.train), len(splits.evaluation), splits.split) == (6, 6, "test")
    assert splits.division.count("\n") == 13
    assert load_splits(tmp_path).division is None
    for share in (0, 1, -0.5, 2):
        with pytest.raises(ValueError, match=f"test_share={share}: expected a share between 0 and 1"):
            load_splits(tmp_path, test_share=share)


def test_photographs_of_one_animal_stand_on_one_side(tmp_path, caplog):
    folder_with(
        tmp_path, *(f"{name}/{name}_ind{row // 3}_{row}.png" for name in "ab" for row in range(12)), "b/other.png"
    )
    splits = load_splits(tmp_path, group_by=r"_(ind\d)_")
    sides = [{row["image"]["path"].split("_")[-2] for row in split} for split in (splits.train, splits.evaluation)]
    assert len(sides[0] & {"ind0", "ind1", "ind2", "ind3"}) == 3
    assert not sides[0] & sides[1]
    assert "1 file name without a match of --group-by" in splits.notes[0]
    with pytest.raises(ValueError, match=r"--group-by '_\(seq\\\\d\)' matches no file name in .*, such as"):
        load_splits(tmp_path, group_by=r"_(seq\d)")
    with pytest.raises(ValueError, match="every class has only one group"):
        load_splits(tmp_path, group_by=r"^([ab])/")


def test_groups_of_loaded_tables(caplog):
    animals = ["w", "w", "x", "x", "y", "y", "z", "z"]
    train = loaded(list("aabbaabb"), animal=animals)
    splits = load_splits(datasets.DatasetDict(train=train), group_by="animal", test_share=0.5)
    assert {row["image"]["bytes"] for row in splits.evaluation} in (
        {encoded(number) for number in chosen} for chosen in ((0, 1, 2, 3), (0, 1, 6, 7), (4, 5, 2, 3), (4, 5, 6, 7))
    )
    with pytest.raises(ValueError, match=r"no column 'animals' for --group-by; .*did you mean 'animal'\?$"):
        load_splits(datasets.DatasetDict(train=train), group_by="animals")
    with pytest.raises(ValueError, match="--group-by label: this is the label column"):
        load_splits(datasets.DatasetDict(train=train), group_by="label")


def test_groups_on_both_sides_of_given_splits(tmp_path):
    folder_with(
        tmp_path,
        *(f"{side}/{name}/ind{row}.png" for side, row in (("train", 1), ("train", 2), ("test", 2)) for name in "ab"),
    )
    with pytest.raises(ValueError, match=r"groups in both train and test: ind2; move them, or pass --test-share"):
        load_splits(tmp_path, group_by=r"ind\d")
    splits = load_splits(tmp_path, group_by=r"ind\d", test_share=0.5)
    assert (len(splits.train), len(splits.evaluation)) in ((2, 4), (4, 2))
    rows = "".join(f"{side}/a/ind{row}.png,{side}{row},{side},x\n" for side, row in (("train", 1), ("train", 2)))
    write(tmp_path / "labels.csv", f"image,label,split,group\n{rows}test/a/ind2.png,train1,test,x\n")
    assert load_splits(tmp_path / "labels.csv").notes[-1].endswith("groups in both train and test: x.")


def test_the_same_photograph_is_never_on_both_sides(tmp_path):
    folder_with(tmp_path, *(f"{name}/{row}.png" for name in "ab" for row in range(10)))
    for name in "ab":
        for row in range(5):
            shutil.copy(tmp_path / name / f"{row}.png", tmp_path / name / f"copy {row}.png")
    for seed in range(5):
        splits = load_splits(tmp_path, test_share=0.4, seed=seed)
        assert "Leak" not in overview(splits)
        assert "more than once in train" in overview(splits)


# --- As divided before ------------------------------------------------------------------------------------------------


def paths(split) -> list[str]:
    return [row["image"]["path"] for row in split]


def test_division_is_the_same_wherever_the_folder_is(tmp_path, caplog):
    folder = folder_with(tmp_path / "photos", *(f"{name}/{row}.png" for name in "ab" for row in range(10)))
    splits = load_splits(folder, seed=3)
    (tmp_path / "split.csv").write_text(splits.division)
    folder = folder.rename(tmp_path / "moved")
    again = load_splits(folder, division=tmp_path / "split.csv")
    assert [path.replace("moved", "photos") for path in paths(again.train)] == paths(splits.train)
    assert again.division == splits.division
    measured = load_splits(folder, division=tmp_path / "split.csv", training=False)
    assert (paths(measured.evaluation), measured.split) == (paths(again.evaluation), "test")
    seen = load_splits(folder, division=tmp_path / "split.csv", training=False, split="train")
    assert (paths(seen.evaluation), seen.split) == (paths(again.train), "train")


def test_changes_since_dividing_are_told(tmp_path):
    folder = folder_with(tmp_path / "photos", *(f"{name}/{row}.png" for name in "ab" for row in range(10)))
    splits = load_splits(folder)
    (tmp_path / "split.csv").write_text(splits.division)
    os.remove(paths(splits.evaluation)[0])
    folder_with(folder, "a/new.png", "b/new.png")
    with pytest.raises(ValueError, match=r"1 photograph of .*split\.csv missing or changed, 2 new; restore"):
        load_splits(folder, division=tmp_path / "split.csv")
    measured = load_splits(folder, division=tmp_path / "split.csv", training=False)
    assert paths(measured.evaluation) == paths(splits.evaluation)[1:]
    assert "2 new; those are left out" in measured.notes[0]


def test_other_data_are_measured_whole(tmp_path):
    folder = folder_with(tmp_path / "photos", *(f"{name}/{row}.png" for name in "ab" for row in range(10)))
    (tmp_path / "split.csv").write_text(load_splits(folder).division)
    other = tmp_path / "other"  # with the same names
    for row in range(10):
        write(other / "a" / f"{row}.png", encoded(row) + b"of another size")
    folder_with(other, "b/new.png")
    measured = load_splits(other, division=tmp_path / "split.csv", training=False)
    assert (len(measured.evaluation), measured.split, measured.notes) == (11, "all", ())


def test_division_of_tables_is_by_row(tmp_path):
    train = loaded(list("ab") * 10)
    splits = load_splits(datasets.DatasetDict(train=train))
    assert splits.division.splitlines()[1].startswith("train[0],a,,")
    (tmp_path / "split.csv").write_text(splits.division)
    measured = load_splits(datasets.DatasetDict(train=train), division=tmp_path / "split.csv", training=False)
    assert [row["image"]["bytes"] for row in measured.evaluation] == [
        row["image"]["bytes"] for row in splits.evaluation
    ]
