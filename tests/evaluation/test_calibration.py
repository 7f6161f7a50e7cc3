import pytest
import torch
from torch.nn.functional import cross_entropy

from promptcam_hf.evaluation.calibration import fit_temperature
from promptcam_hf.evaluation.prediction import judge, metrics


def drawn(count: int, temperature: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores `(n, 5)`, and labels drawn from the probabilities that they have at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, 5, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_that_labels_were_drawn_at_is_found(temperature):
    assert fit_temperature(*drawn(4000, temperature, seed=0)) == pytest.approx(temperature, rel=0.1)


def test_it_makes_probabilities_of_other_images_right():
    temperature = fit_temperature(*drawn(300, 3.0, seed=0))
    logits, labels = drawn(4000, 3.0, seed=1)
    assert cross_entropy(logits / temperature, labels) < cross_entropy(logits, labels) - 0.1
    found = metrics(judge(logits, labels, temperature))
    assert found["calibration_error"] < 0.05 < 0.1 < found["raw_calibration_error"]
    assert found["accuracy"] == metrics(judge(logits, labels, 1.0))["accuracy"]
    assert found["loss"] == pytest.approx(cross_entropy(logits.double() / temperature, labels).item())


def test_images_that_are_all_right_do_not_make_it_certain():
    logits = 5 * torch.eye(4).repeat(10, 1)
    assert 0.2 < fit_temperature(logits, torch.arange(4).repeat(10)) < 1.0


def test_few_images_make_it_less_sure_but_never_surer():
    logits, labels = 5 * torch.eye(4), torch.arange(4)
    assert fit_temperature(logits, labels) == 1.0
    assert fit_temperature(logits, labels.flip(0)) > 1.5
