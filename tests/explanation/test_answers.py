import pytest
import torch

from promptcam_hf.explanation.answers import AnswerRule, read_class_list

NAMES = ["Baltimore_Oriole", "Scott_Oriole", "Indigo_Bunting", "Lazuli_Bunting"]
GENERA = {"Baltimore_Oriole": "Icterus", "Scott_Oriole": "Icterus"} | dict.fromkeys(NAMES[2:], "Passerina")
CERTAIN, GENUS_ONLY, SPREAD = [0.1, 0.8, 0.05, 0.05], [0.25, 0.05, 0.35, 0.35], [0.25] * 4


def answers(rule, *probabilities):
    return [(label, round(score, 4), level) for label, score, level in rule(torch.tensor(probabilities).double())]


def test_the_most_probable_class_is_the_answer():
    expected = [("Scott_Oriole", 0.8, "class"), ("Indigo_Bunting", 0.35, "class"), ("Baltimore_Oriole", 0.25, "class")]
    assert answers(AnswerRule(NAMES), CERTAIN, GENUS_ONLY, SPREAD) == expected


def test_unknown_is_what_is_not_probable_enough():
    expected = [("Scott_Oriole", 0.8, "class"), ("unknown", 0.35, "unknown")]
    assert answers(AnswerRule(NAMES, unknown_below=0.5), CERTAIN, GENUS_ONLY) == expected
    assert answers(AnswerRule(NAMES, unknown_below=0.8), CERTAIN) == expected[:1]


def test_a_group_is_the_answer_where_it_is_probable_enough_and_no_class_is():
    expected = [("Scott_Oriole", 0.8, "class"), ("Passerina", 0.7, "group"), ("Icterus", 0.5, "group")]
    assert answers(AnswerRule(NAMES, roll_up=GENERA), CERTAIN, GENUS_ONLY, SPREAD) == expected
    rule = AnswerRule(NAMES, unknown_below=0.6, roll_up=GENERA)
    assert answers(rule, GENUS_ONLY, SPREAD) == [("Passerina", 0.7, "group"), ("unknown", 0.25, "unknown")]


def test_the_most_probable_group_need_not_be_that_of_the_most_probable_class():
    assert answers(AnswerRule(NAMES, roll_up=GENERA), [0.4, 0.0, 0.3, 0.3]) == [("Passerina", 0.6, "group")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("class\nScott_Oriole\nIndigo_Bunting\n", ["Scott_Oriole", "Indigo_Bunting"]),
        ("class,seen\nIndigo_Bunting,2024\nScott_Oriole,\n", ["Scott_Oriole", "Indigo_Bunting"]),
        ("\ufeffIndigo_Bunting\r\n\r\n Scott_Oriole \r\n", ["Scott_Oriole", "Indigo_Bunting"]),
        ("scott oriole\nScott_Oriole\nIndigo bunting\n", ["Scott_Oriole", "Indigo_Bunting"]),
    ],
)
def test_files_that_list_classes(tmp_path, content, expected):
    (tmp_path / "region.csv").write_bytes(content.encode())
    assert read_class_list(tmp_path / "region.csv", NAMES) == expected


def test_classes_that_the_model_does_not_know_are_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "region.csv").write_text("Scott_Oriole\nScot_Oriole\nIndigo_Bunting\nHouse_Wren\n")
    assert read_class_list(tmp_path / "region.csv", NAMES) == ["Scott_Oriole", "Indigo_Bunting"]
    assert "does not know 2 of 4 classes: Scot_Oriole, House_Wren; did you mean 'Scott_Oriole'?" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class\nScott_Oriole\n", r"it names 1 of the model's 4 classes; expected two or more\."),
        ("Scot_Oriole\n", "it names 0 of .*no 'Scot_Oriole'; did you mean 'Scott_Oriole'"),
        ("species,seen\nScott_Oriole,1\n", "its first line is species,seen; expected a column 'class'"),
        ("", "it names 0 of the model's 4 classes"),
        (None, "region.csv: cannot be read"),
    ],
)
def test_files_that_do_not_fit(tmp_path, content, message):
    if content is not None:
        (tmp_path / "region.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_class_list(tmp_path / "region.csv", NAMES)


def test_rules_that_do_not_fit():
    with pytest.raises(ValueError, match=r"unknown_below=1\.5: expected a probability"):
        AnswerRule(NAMES, unknown_below=1.5)
    with pytest.raises(ValueError, match="roll_up: no group for the class 'Scott_Oriole'"):
        AnswerRule(NAMES, roll_up={"Baltimore_Oriole": "Icterus"})


def test_groups_that_cannot_be_read_are_told_in_a_line(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.csv: cannot be read \(No such file or directory\)\.$"):
        AnswerRule(NAMES, roll_up=tmp_path / "nowhere.csv")
