import pytest
import torch
from torch.nn.functional import cross_entropy

from promptcam_hf.training.optimization import new_loss
from promptcam_hf.training.options import TrainingOptions

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 0])  # none of class 3
LOGITS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def test_label_smoothing_is_that_of_torch():
    loss = new_loss(TrainingOptions(label_smoothing=0.2), LABELS, 4)(LOGITS, LABELS)
    torch.testing.assert_close(loss, torch.nn.CrossEntropyLoss(label_smoothing=0.2)(LOGITS, LABELS))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.0}, {"class_weights": "balanced"}])
def test_a_blurred_logit_is_one_more_wrong_answer(options):
    blurred = torch.linspace(-4, 4, 8)
    options = TrainingOptions(**options)
    weights = torch.tensor([8 / 15, 8 / 6, 8 / 3, 8 / 3]) if options.class_weights == "balanced" else torch.ones(4)
    target = torch.nn.functional.one_hot(LABELS, 4) * (1 - options.label_smoothing) + options.label_smoothing / 4
    log_probability = torch.cat([LOGITS, blurred[:, None]], dim=1).log_softmax(dim=1)[:, :4]
    found = new_loss(options, LABELS, 4)(LOGITS, LABELS, blurred)
    if options.class_weights == "none":
        torch.testing.assert_close(found, -(target * log_probability).sum() / 8)
    less = (found - new_loss(options, LABELS, 4)(LOGITS, LABELS)) * 8
    gap = torch.logsumexp(torch.cat([LOGITS, blurred[:, None]], dim=1), dim=1) - LOGITS.logsumexp(dim=1)
    torch.testing.assert_close(less, (weights[LABELS] * gap).sum())


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
