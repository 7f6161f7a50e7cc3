from collections import Counter

from promptcam_hf.training.validation import choose_held_out

LABELS = [0] * 40 + [1] * 10 + [2] * 2 + [3]


def test_each_class_gives_its_share_but_never_its_last_image():
    rows = choose_held_out(LABELS, 0.1, seed=0)
    assert Counter(LABELS[row] for row in rows) == {0: 4, 1: 1}
    assert rows == sorted(set(rows))
    assert Counter(LABELS[row] for row in choose_held_out(LABELS, 0.9, seed=0)) == {0: 36, 1: 9, 2: 1}
    assert choose_held_out(LABELS, 0.0, seed=0) == []


def test_choice_depends_on_the_seed_alone():
    assert choose_held_out(LABELS, 0.2, seed=1) == choose_held_out(LABELS, 0.2, seed=1)
    assert choose_held_out(LABELS, 0.2, seed=1) != choose_held_out(LABELS, 0.2, seed=2)


def test_a_group_is_held_out_as_a_whole_or_not_at_all():
    groups = [row // 4 for row in range(len(LABELS))]
    rows = choose_held_out(LABELS, 0.2, seed=0, groups=groups)
    assert Counter(LABELS[row] for row in rows)[0] == 8
    held_out = {groups[row] for row in rows}
    assert sorted(rows) == [row for row in range(len(LABELS)) if groups[row] in held_out]
