"""What a guide shows of each species."""

from dataclasses import replace

import numpy as np

from promptcam_hf.guide.records import read_records
from promptcam_hf.guide.vocabulary import Vocabulary


def test_places_far_from_their_trait_show_none(traits, monkeypatch):
    folder, vocabulary = traits[0], Vocabulary.load(traits[0])

    def shown(reach: np.ndarray) -> np.ndarray:
        changed = replace(vocabulary, reach=reach)
        monkeypatch.setattr(Vocabulary, "load", lambda _: changed)
        records = read_records(folder, 16, "test")
        assert any(record.examples for record in records)
        return np.array([len(example.peaks) for record in records for example in record.examples])

    every, near, none = (
        shown(reach) for reach in (np.full_like(vocabulary.reach, 2), vocabulary.reach, -vocabulary.reach)
    )
    assert every.min() > 0
    assert 0 < near.sum() < every.sum()  # few photographs, so many are unlike those of the vocabulary
    assert none.sum() == 0
