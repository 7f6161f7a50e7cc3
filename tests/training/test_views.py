import pytest
import torch

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import TrainTransform
from promptcam_hf.data.splits import load_splits
from promptcam_hf.training.views import Views, seeded


@pytest.fixture(scope="module")
def split(bird_folder):
    return load_splits(bird_folder).train


def test_view_depends_on_seed_epoch_and_photograph_alone(split):
    transform = TrainTransform(new_image_processor(32))
    first = Views(split, transform, seed=0)[3, 5]
    torch.rand(7)  # whatever happened before
    again = Views(split, transform, seed=0)
    assert torch.equal(again[3, 5]["pixel_values"], first["pixel_values"])
    assert (first["labels"], first["index"]) == (split[5]["label"], 5)
    others = [again[epoch, 5] for epoch in (0, 1, 2, 4, 5)] + [Views(split, transform, seed=1)[3, 5]]
    assert sum(torch.equal(other["pixel_values"], first["pixel_values"]) for other in others) < 2  # 3 x 3 x 2 views


def test_seeds_of_different_numbers_are_unrelated():
    draws = {torch.rand((), generator=seeded(a, b)).item() for a in range(30) for b in range(30)}
    assert len(draws) == 900
    assert abs(sum(draws) / 900 - 0.5) < 0.05
