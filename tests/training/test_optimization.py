import torch
from torch.nn.functional import cross_entropy

from promptcam_hf.training.optimization import new_loss
from promptcam_hf.training.options import TrainingOptions

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 0])  # none of class 3
LOGITS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def test_label_smoothing_is_that_of_torch():
    loss = new_loss(TrainingOptions(label_smoothing=0.2), LABELS, 4)(LOGITS, LABELS)
    assert torch.equal(loss, torch.nn.CrossEntropyLoss(label_smoothing=0.2)(LOGITS, LABELS))


def test_balanced_weights_make_classes_count_alike():
    loss = new_loss(TrainingOptions(class_weights="balanced", label_smoothing=0.0), LABELS, 4)
    each = cross_entropy(LOGITS, LABELS, reduction="none")
    by_class = [each[label == LABELS].mean() for label in (0, 1, 2)]
    torch.testing.assert_close(loss(LOGITS, LABELS), sum(by_class) / 3)
    halves = [loss(LOGITS[rows], LABELS[rows]) for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, loss(LOGITS, LABELS))


def test_balanced_weights_and_smoothing_are_those_of_torch_up_to_its_scale():
    weights = torch.tensor([8 / 15, 8 / 6, 8 / 3, 8 / 3])
    loss = new_loss(TrainingOptions(class_weights="balanced", label_smoothing=0.1), LABELS, 4)(LOGITS, LABELS)
    expected = cross_entropy(LOGITS, LABELS, weights, reduction="sum", label_smoothing=0.1) / 8
    torch.testing.assert_close(loss, expected)
