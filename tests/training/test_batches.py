from collections import Counter

import pytest
import torch

from promptcam_hf.training.batches import choose_batch_size, order_of_epoch
from promptcam_hf.training.options import TrainingOptions

LABELS = torch.tensor([0] * 900 + [1] * 100)


def test_an_epoch_goes_through_every_image_once_in_an_order_of_its_own():
    first, second = (order_of_epoch(LABELS, TrainingOptions(), epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert first != second
    assert first == order_of_epoch(LABELS, TrainingOptions(), 0) != order_of_epoch(LABELS, TrainingOptions(seed=1), 0)


def test_batch_size_by_default_is_16_or_what_there_is_as_far_as_it_can_be_divided():
    options = TrainingOptions(gradient_accumulation_steps=2)
    assert [choose_batch_size(TrainingOptions(), count, 1) for count in (100, 16, 12, 1)] == [16, 16, 12, 1]
    assert [choose_batch_size(options, count, 3) for count in (100, 16, 11, 6)] == [12, 12, 6, 6]
    with pytest.raises(ValueError, match="batch_size=6 is more than the 5 training images"):
        choose_batch_size(options, 5, 3)


def test_balanced_sampling_shows_all_classes_equally_often():
    order = order_of_epoch(LABELS, TrainingOptions(sampling="balanced"), 0)
    counts = Counter(LABELS[order].tolist())
    assert len(order) == 1000
    assert abs(counts[0] - 500) < 80  # five standard deviations
    assert len({row for row in order if LABELS[row] == 1}) > 90
