import numpy as np
import pytest

from promptcam_hf.guide.names import carry_names, display_name, match_traits, read_names, write_names
from promptcam_hf.guide.vocabulary import Vocabulary


def vocabulary(*centroids) -> Vocabulary:
    centroids = np.array(centroids, dtype=np.float32)
    count, dimensions = centroids.shape
    return Vocabulary(
        mean=np.zeros(dimensions),
        parts=centroids[:1],
        projections=np.eye(dimensions)[None],
        looks=centroids,
        part=np.zeros(count, dtype=int),
        centroids=centroids,
        reach=np.zeros(count),
    )


def test_names_are_read_as_spreadsheets_write_them(tmp_path):
    assert read_names(tmp_path) == {}
    text = "trait,name,remark\r\n1,  red   crown ,\r\n2,,\r\n3,äußerer Flügel,x\r\n"
    (tmp_path / "names.csv").write_bytes(text.encode("cp1252"))
    names = read_names(tmp_path, 3)
    assert names == {1: "red crown", 3: "äußerer Flügel"}
    assert [display_name(names, trait) for trait in (1, 2)] == ["red crown", "trait 2"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("number,name\n1,x", r"names.csv: its first line is number,name; expected trait,name"),
        ("trait,name\n9,x", r"names.csv, line 2: there is no trait '9'; expected 1 to 3"),
        ("trait,name\nred,x", r"there is no trait 'red'; expected 1 to 3"),
        ("trait,name\n1,x\n2,X", r"line 3: trait 2 is called 'X', as trait 1 is; give each its own name"),
        ("trait,name\n1,x\n1,y", r"line 3: trait 1 is called 'y', and 'x' above; keep one name"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, rows, message):
    (tmp_path / "names.csv").write_text(rows)
    with pytest.raises(ValueError, match=message):
        read_names(tmp_path, 3)


def test_names_stay_with_their_traits_when_clusters_change(tmp_path):
    old = vocabulary([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0])
    new = vocabulary([0, 0.9, 0.1, 0], [0.2, 0, 0, 1], [2, 0.1, 0, 0])
    assert match_traits(old, new) == {1: 3, 2: 1}
    write_names(tmp_path, {1: "red crown", 2: "long bill", 3: "round tail"}, 3)
    assert carry_names(tmp_path, old, new) == ["round tail"]
    assert read_names(tmp_path, 3) == {3: "red crown", 1: "long bill"}
    assert (tmp_path / "names_without_trait.csv").read_text() == "trait,name\n3,round tail\n"
    assert match_traits(old, vocabulary([1, 0])) == {}  # of another backbone
