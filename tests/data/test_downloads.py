"""CUB-200-2011 and Oxford-IIIT Pet as they are unpacked."""

import os

import pytest

from promptcam_hf.data.photographs import find_unreadable
from promptcam_hf.data.splits import load_splits

from .cases import classes_of, encoded, write


@pytest.fixture
def cub(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    images = ["010.Wren/w1.jpg", "010.Wren/w2.jpg", "002.Auk/a1.jpg", "002.Auk/a2.jpg"]
    for number, image in enumerate(images):
        write(folder / "images" / image, encoded(number))
    write(folder / "images.txt", "".join(f"{number} {image}\n" for number, image in enumerate(images, start=1)))
    write(folder / "image_class_labels.txt", "1 10\n2 10\n3 2\n4 2\n")
    write(folder / "train_test_split.txt", "1 0\n2 1\n3 1\n4 0\n")
    write(folder / "classes.txt", "2 002.Auk\n10 010.Wren\n")
    return folder


def test_cub_has_its_official_split_and_order(cub):
    for folder in (cub, cub.parent):
        splits = load_splits(folder)
        assert (splits.name, splits.split, splits.names) == ("CUB-200-2011", "test", ["Auk", "Wren"])
        for split, images in ((splits.train, ["w2", "a1"]), (splits.evaluation, ["w1", "a2"])):
            assert classes_of(split) == ["Wren", "Auk"]
            assert [path["path"] for path in split["image"]] == [
                str(cub / "images" / name / f"{image}.jpg")
                for name, image in zip(("010.Wren", "002.Auk"), images, strict=True)
            ]


def test_damaged_cub_is_refused(cub):
    (cub / "classes.txt").rename(cub / "classes")
    with pytest.raises(ValueError, match=r"classes\.txt is missing"):
        load_splits(cub)
    (cub / "classes").rename(cub / "classes.txt")
    write(cub / "train_test_split.txt", "1 0\n2 1\n3 1\n")
    with pytest.raises(ValueError, match=r"image 4 of images\.txt has no split"):
        load_splits(cub)
    write(cub / "train_test_split.txt", "1 1\n2 1\n3 1\n4 1\n")
    with pytest.raises(ValueError, match="no images in test/ or validation/; found train"):
        load_splits(cub, training=False)
    write(cub / "train_test_split.txt", "1 0\n2\n")
    with pytest.raises(ValueError, match=r"train_test_split\.txt, line 2: 1 column; expected 2"):
        load_splits(cub)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_in_cub_are_refused(cub):
    (cub / "images" / "010.Wren" / "w2.jpg").unlink()
    os.mkfifo(cub / "images" / "010.Wren" / "w2.jpg")
    write(cub / "images.txt", "1 010.Wren/w1.jpg\n2 010.Wren/w2.jpg\n3 /dev/zero\n4 002.Auk/a2.jpg\n")
    faults = find_unreadable(load_splits(cub).train)
    assert len(faults) == 2
    assert all("not a regular file" in fault for fault in faults.values())


def test_pets_have_their_official_split_and_order(tmp_path):
    write(
        tmp_path / "annotations" / "trainval.txt",
        "#Image CLASS-ID SPECIES BREED\nwheaten_terrier_7 10 2 9\nBengal_3 2 1 1\n",
    )
    write(tmp_path / "annotations" / "test.txt", "Bengal_1 2 1 1\nwheaten_terrier_2 10 2 9\nBengal_20 2 1 1\n")
    splits = load_splits(tmp_path)
    assert (splits.name, splits.split, splits.names) == ("Oxford-IIIT Pet", "test", ["Bengal", "wheaten_terrier"])
    assert splits.train["image"][0]["path"] == str(tmp_path / "images" / "wheaten_terrier_7.jpg")
    assert splits.train["label"][:] == [1, 0]
    assert splits.evaluation["label"][:] == [0, 1, 0]
