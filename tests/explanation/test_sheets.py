import tarfile

import pytest
from PIL import Image

from promptcam_hf.explanation.shards import explain_shards, load_explanations
from promptcam_hf.explanation.sheets import draw_sheets, parse_where

from ..command_line import promptcam


@pytest.fixture(scope="module")
def folder(checkpoint, bird_folder, tmp_path_factory):
    """Shards of four photographs, one of which cannot be read, and of one in a tar file."""
    work = tmp_path_factory.mktemp("work")
    paths = sorted(bird_folder.glob("test/*/*.jpg"))
    (work / "bad.jpg").write_text("no image")
    with tarfile.open(work / "birds.tar", "w") as tar:
        tar.add(paths[4], "five.jpg")
    given = [*paths[:3], work / "bad.jpg", work / "birds.tar"]
    explain_shards(given, checkpoint, work / "out", shard_size=2, device="cpu", progress=False)
    return work / "out"


def test_sheets_of_the_rows_that_fit(folder, tmp_path):
    rows = [row for row in load_explanations(folder) if row["error"] is None]
    label = rows[0]["label"]
    expected = [row for row in rows if row["label"] == label and row["score"] > 0.01]
    options = ["--where", f"label == '{label}' and score > 0.01", "--output-dir", tmp_path / "some"]
    done = promptcam("sheets", folder, *options)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"{len(expected)} contact sheets in {tmp_path / 'some'}"
    assert draw_sheets(folder, tmp_path / "all", progress=False) == (4, {})
    assert (tmp_path / "all" / "five.png").is_file()
    for path in (tmp_path / "all").iterdir():
        assert Image.open(path).info["Software"] == "promptcam explain"
    assert draw_sheets(folder, tmp_path / "two", limit=2, progress=False) == (2, {})


def test_what_does_not_fit(folder, tmp_path):
    for where, message in (
        ("lable == 'x'", "there is no column lable, but photograph, error, truth"),
        ("score < 'high'", r"where=\"score < 'high'\": "),
        ("score > 2", "no rows that could be read fit 'score > 2'"),
        ("__import__('os').remove('x')", "is no comparison; expected comparisons of columns"),
        ("label == open('x').read()", "is no column, text or number"),
        ("label in label", "label is no list"),
        ("label is 'x'", "'is' is for None only"),
        ("(", "expected comparisons of columns"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_sheets(folder, tmp_path / "out", where=where, progress=False)
    (tmp_path / "five.png").write_text("mine")
    with pytest.raises(ValueError, match=r"five\.png exists; choose another folder"):
        draw_sheets(folder, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["five.png"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("n < 3 and name != 'b'", ["a", "c"]),
        ("n == 4 or not n > 1", ["a", "d"]),
        ("1 < n <= 3", ["b", "c"]),
        ("name in ['a', 'd'] and n not in (4,)", ["a"]),
        ("m is None", ["b"]),
        ("m is not None and m == n", ["c"]),
        ("n == -1", []),
    ],
)
def test_conditions_mean_what_python_means(where, expected):
    import pyarrow as pa

    table = pa.table({"name": list("abcd"), "n": [1, 3, 2, 4], "m": [5, None, 2, 5]})
    assert table.filter(parse_where(where, table.schema.names))["name"].to_pylist() == expected
