import io
import shutil
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptcam_hf.explanation.sources import collect, reopen


@pytest.fixture(scope="module")
def photographs(bird_folder):
    return sorted(bird_folder.glob("test/*/*.jpg"))[:5]


@pytest.fixture
def tar(photographs, tmp_path):
    """As WebDataset packs photographs; one name occurs twice."""
    path = tmp_path / "birds.tar"
    with tarfile.open(path, "w") as file:
        for number, photograph in enumerate([*photographs, photographs[0]]):
            content = photograph.read_bytes()
            for name, data in ((f"Scott_Oriole/{number % 5}.jpg", content), (f"Scott_Oriole/{number}.cls", b"3")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def table(photographs, tmp_path):
    """As `datasets` writes photographs; the fourth row has none."""
    path = tmp_path / "birds.parquet"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["wren", "oriole"])})
    images = [{"bytes": photograph.read_bytes(), "path": None} for photograph in photographs]
    images[3] = None
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1, -1]}, features=features)
    data.to_parquet(path, batch_size=2)
    return path


def contents(collection, start=0, stop=10**9):
    """The name, true class, and bytes or error of photographs."""
    found = []
    for name, image, truth in collection.read(start, stop):
        try:
            content = image() if callable(image) else Path(image).read_bytes()
        except ValueError as error:
            content = str(error)
        found.append((name, truth, content))
    return found


def test_members_of_tar_files(tar, photographs):
    collection = collect(tar)
    names = [f"{tar}/Scott_Oriole/{name}" for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "0.jpg#2")]
    files = [*photographs, photographs[0]]
    expected = [(name, "Scott_Oriole", file.read_bytes()) for name, file in zip(names, files, strict=True)]
    assert len(collection) == 6
    assert contents(collection) == expected
    assert contents(collection, 2, 4) == expected[2:4]
    assert reopen(names[1]) == files[1].read_bytes()
    assert reopen(names[5]) == files[0].read_bytes()


def test_of_a_tar_file_that_is_cut_off_the_beginning_is_read(tar):
    whole = contents(collect(tar))
    content = tar.read_bytes()
    tar.write_bytes(content[: content.index(whole[3][2]) + 100])
    collection = collect(tar)
    found = contents(collection)
    assert len(collection) == len(found)
    assert found[:3] == whole[:3]
    assert all("cut off" in message for *_, message in found[3:])
    assert len(found) in (4, 5)  # the member, and that the file ends there


def test_rows_of_parquet_files(table, photographs):
    collection = collect([table.parent])
    found = contents(collection)
    assert [name for name, *_ in found] == [f"{table}[{row}]" for row in range(5)]
    assert [truth for _, truth, _ in found] == ["wren", "oriole", "wren", "oriole", None]
    assert [content for *_, content in found[:3]] == [path.read_bytes() for path in photographs[:3]]
    assert found[3][2] == f"{table}[3]: the row has no image; expected the bytes of an image file."
    for start in range(5):
        assert contents(collection, start, start + 2) == found[start : start + 2]
    assert reopen(f"{table}[4]") == photographs[4].read_bytes()


def test_of_a_parquet_file_that_is_damaged_the_rest_is_read(table):
    whole = contents(collect(table))
    content = bytearray(table.read_bytes())
    group = pq.ParquetFile(table).metadata.row_group(1).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    table.write_bytes(content)
    found = contents(collect(table))
    assert [name for name, *_ in found] == [name for name, *_ in whole]
    assert found[:2] == whole[:2]
    assert found[4:] == whole[4:]
    assert all("cannot be read" in message for *_, message in found[2:4])


def test_data_sets_streamed_or_not(table, photographs):
    whole = datasets.load_dataset("parquet", data_files=str(table), split="train")
    for data in (whole, whole.to_iterable_dataset()):
        if not hasattr(data, "__len__"):
            data.info.splits = datasets.SplitDict.from_split_dict({"train": {"name": "train", "num_examples": 5}})
            data._split = datasets.NamedSplit("train")
        collection = collect(data)
        assert len(collection) == 5
        found = contents(collection, 1, 4)
        assert [(truth, content) for _, truth, content in found[:2]] == [
            ("oriole", photographs[1].read_bytes()),
            ("wren", photographs[2].read_bytes()),
        ]
        assert found[2][2].endswith("the row has no image; expected the bytes of an image file.")
    with pytest.raises(ValueError, match="does not say how many photographs it has"):
        collect(datasets.IterableDataset.from_generator(lambda: iter(()), features=whole.features))


def test_mixtures_keep_their_order(tar, table, photographs):
    collection = collect([photographs[0], tar, photographs[1], photographs[2], table])
    found = contents(collection)
    assert len(collection) == len(found) == 1 + 6 + 2 + 5
    assert [name for name, *_ in (found[0], *found[7:9])] == [str(path) for path in photographs[:3]]
    for start in range(0, 14, 3):
        assert contents(collection, start, start + 5) == found[start : start + 5]
    assert found[0][1] == photographs[0].parent.name


def test_folders_may_hold_photographs_and_packed_ones(table, tar, photographs):
    shutil.copy(photographs[0], table.parent / "loose.jpg")
    names = [name for name, *_ in contents(collect(table.parent))]
    assert names[0] == str(table.parent / "loose.jpg")
    assert [name for name in names if name.startswith(str(table))] == [f"{table}[{row}]" for row in range(5)]
    assert len(names) == 1 + 5 + 6


def test_no_two_photographs_have_the_same_name(tar, table, photographs):
    again = [tar, photographs[0], table, tar, photographs[0], photographs[0].parent, table.parent]
    names = [name for name, *_ in contents(collect(again))]
    assert len(set(names)) == len(names)
    assert set(names) == {name for name, *_ in contents(collect([tar, photographs[0].parent, table]))}


def test_files_in_buckets(photographs, tmp_path):
    """A disk stands in for the bucket: what pyarrow reads by a URI it reads alike."""
    (tmp_path / "list.txt").write_text(f"file://{photographs[0]}\nfile://{tmp_path}/none.jpg\nnowhere://there/a.jpg\n")
    found = contents(collect(f"@{tmp_path / 'list.txt'}"))
    assert found[0] == (f"file://{photographs[0]}", photographs[0].parent.name, photographs[0].read_bytes())
    assert found[1][2] == f"file://{tmp_path}/none.jpg: no such file."
    assert found[2][2].startswith("nowhere://there/: no file system for it")
    assert reopen(found[0][0]) == photographs[0].read_bytes()


def test_fingerprints_change_with_the_input(tar, table, photographs):
    whole = collect(photographs).fingerprint()
    assert whole == collect(list(photographs)).fingerprint()
    assert whole != collect(photographs[::-1]).fingerprint()
    for path in (tar, table):
        before = collect(path).fingerprint()
        assert before == collect(path).fingerprint()
        path.write_bytes(path.read_bytes() + (b"" if path == table else bytes(1024)))
        assert before != collect(path).fingerprint()


def test_what_cannot_be_read_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"species": ["wren"]}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), tmp_path / "two.parquet")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    for source, message in (
        ("text.tar", r"text\.tar: not a tar file that is whole and not compressed"),
        ("missing.tar", r"missing\.tar: cannot be read \(No such file"),
        ("empty.tar", r"empty\.tar holds no images"),
        ("empty.parquet", r"empty\.parquet: no images in it"),
        ("text.parquet", r"text\.parquet: cannot be read as a parquet file"),
        ("missing.parquet", r"missing\.parquet: cannot be read"),
        ("none.parquet", r"none\.parquet: none of its columns \(species\) holds images"),
        ("two.parquet", r"two\.parquet: the columns a, b could hold images"),
        ("nobody/nothing", "nobody/nothing: no such file, and no dataset on the Hub"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            collect(source)
        assert "\n" not in str(error.value)
