import copy
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import pipeline

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import EvaluationTransform, Photographs
from promptcam_hf.data.splits import load_splits
from promptcam_hf.evaluation.prediction import Predictions, interval_of_share, metrics, predict

from ..tiny_models import assert_close, tiny_model
from .cases import equal, predicted


@pytest.mark.parametrize("size", [32, 48])
def test_predictions_are_those_of_the_pipeline(model, bird_folder, size):
    """Also if the image processor's size is not the backbone's."""
    processor = new_image_processor(size)
    split = load_splits(bird_folder).evaluation
    predictions = predict(
        model,
        Photographs(split, EvaluationTransform(processor)),
        batch_size=5,
        accelerator=Accelerator(),
        progress=False,
    )
    pipe = pipeline("prompt-cam", model=model, image_processor=processor, top_k=5, heatmaps=False)
    assert predictions.labels.tolist() == list(split["label"])
    for row, image in enumerate(split["image"]):
        explanations = pipe(image["path"])
        labels = [model.config.label2id[explanation["label"]] for explanation in explanations]
        assert predictions.top_classes[row].tolist() == labels
        # Batches of other sizes are summed in another order; a probability's share of error is its logit's error
        assert predictions.confidence[row].item() == pytest.approx(explanations[0]["score"], rel=1e-5)
        score_of_true = explanations[labels.index(predictions.labels[row].item())]["score"]
        assert math.exp(-predictions.losses[row].item()) == pytest.approx(score_of_true, rel=1e-5)


def test_mixed_precision_of_training_does_not_affect_predictions(model, photographs):
    options = {"batch_size": 4, "progress": False}
    plain = predict(model, photographs, accelerator=Accelerator(), **options)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16")
    prepared = accelerator.prepare(copy.deepcopy(model))
    pixel_values = torch.stack([photographs[row]["pixel_values"] for row in range(4)])
    with torch.no_grad():
        assert not torch.equal(prepared(pixel_values).logits, model(pixel_values).logits)  # mixed precision is on
    assert equal(predict(prepared, photographs, accelerator=accelerator, **options), plain)
    with accelerator.autocast():
        assert equal(predict(prepared, photographs, accelerator=accelerator, **options), plain)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_predictions_leave_mode_and_random_state_as_they_were(bird_folder, photographs, num_workers):
    model = tiny_model("vit", num_labels=4, prompt_dropout=0.5).train()
    options = {"batch_size": 4, "accelerator": Accelerator(), "progress": False}
    state = torch.get_rng_state()
    first = predict(model, photographs, num_workers=num_workers, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.backbone.training
    assert equal(first, predict(model.eval(), photographs, **options))  # dropout was off
    assert not model.training


def test_ties_are_always_broken_in_the_same_way(photographs):
    model = tiny_model("vit", num_labels=6)
    torch.nn.init.zeros_(model.score_head.weight)
    options = {"accelerator": Accelerator(), "progress": False}
    predictions = predict(model, photographs, batch_size=5, **options)
    assert predictions.losses.tolist() == pytest.approx([math.log(6)] * 12)
    assert predictions.confidence.tolist() == pytest.approx([1 / 6] * 12)
    assert len(predictions.top_classes.unique(dim=0)) == 1
    assert equal(predict(model, photographs, batch_size=12, **options), predictions)


def test_scores_that_are_not_finite_are_refused(photographs):
    model = tiny_model("vit", num_labels=4)
    torch.nn.init.constant_(model.score_head.bias, math.nan)
    with pytest.raises(FloatingPointError, match="scores are not finite for 12 of 12 photographs"):
        predict(model, photographs, batch_size=12, accelerator=Accelerator(), progress=False)


def test_nothing_to_evaluate_is_refused(model, photographs):
    photographs.split = photographs.split.select([])
    with pytest.raises(ValueError, match="No photographs to evaluate; expected 1 or more"):
        predict(model, photographs, accelerator=Accelerator(), progress=False)


TWO_PROCESSES = """
import sys
import torch
from accelerate import Accelerator
from promptcam_hf.data.photographs import EvaluationTransform, Photographs
from promptcam_hf.data.splits import load_splits
from promptcam_hf.evaluation.evaluate import evaluate
from promptcam_hf.evaluation.prediction import predict
from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor

checkpoint, data, out = sys.argv[1:]
accelerator = Accelerator()
assert accelerator.num_processes == 2
model = PromptCamForImageClassification.from_pretrained(checkpoint)
for count in (1, 5, 11, 12):
    split = load_splits(data).evaluation.select(range(count))
    photographs = Photographs(split, EvaluationTransform(new_image_processor(32)))
    predictions = predict(model, photographs, batch_size=2, accelerator=accelerator, progress=False)
    torch.save(vars(predictions), f"{out}/{count}-{accelerator.process_index}.pt")
result = evaluate(checkpoint, data, f"{out}/report", num_workers=0)
torch.save(result, f"{out}/result{accelerator.process_index}.pt")
"""


def test_two_processes_see_every_photograph_once(checkpoint, bird_folder, photographs, tmp_path):
    """Also if the last batches are not full, or the second process has no photograph of its own."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, script, checkpoint, bird_folder, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    model = PromptCamForImageClassification.from_pretrained(checkpoint)
    split = photographs.split
    for count in (1, 5, 11, 12):
        photographs.split = split.select(range(count))
        alone = predict(model, photographs, batch_size=2, accelerator=Accelerator(), progress=False)
        first, second = (Predictions(**torch.load(tmp_path / f"{count}-{process}.pt")) for process in range(2))
        assert equal(first, second)
        assert torch.equal(first.labels, alone.labels)
        assert torch.equal(first.top_classes, alone.top_classes)
        # Of probabilities, since a loss near 0 is rounded more coarsely than it is large
        assert_close(first.losses.neg().exp(), alone.losses.neg().exp())
        assert_close(first.confidence, alone.confidence)
    # The report is written and printed by one of the two
    reported = json.loads((tmp_path / "report" / "results.json").read_text())
    assert torch.load(tmp_path / "result0.pt") == torch.load(tmp_path / "result1.pt") == reported
    assert result.stdout.count("calibration error") == 1


# --- Metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    predictions = predicted(
        labels=[0, 0, 0, 1, 5],
        top_classes=[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4]],
        confidence=[0.91, 0.99, 0.97, 0.5, 0.49],
    )
    found = metrics(predictions)
    assert found["loss"] == 3.0
    assert found["accuracy"] == 3 / 5
    assert found["top5_accuracy"] == 4 / 5
    # Classes 2, 3 and 4 do not occur
    assert found["macro_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    # Three of the 15 bins: 0.91 | 0.97, 0.99 | 0.49, 0.5
    gaps = [abs(1 - 0.91), abs(1 - 0.97 - 0.99), abs(1 - 0.49 - 0.5)]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 5)


@pytest.mark.parametrize(
    ("hits", "count", "ends"),
    [
        (81, 263, (0.2553, 0.3662)),  # of Newcombe, "Two-sided confidence intervals", 1998, Table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (29, 29, (0.8830, 1.0)),  # by hand: 29 / (29 + 1.96 ** 2)
    ],
)
def test_interval_of_a_share(hits, count, ends):
    assert interval_of_share(hits, count) == pytest.approx(ends, abs=5e-5)


def test_calibration_error_by_hand():
    assert metrics(predicted([0, 1], [[0, 1], [1, 0]], [1.0, 1.0]))["calibration_error"] == 0
    # A bin includes its upper edge: 0.6 cancels out with a wrong 0.56 in the ninth bin, not with a wrong 0.61
    edge, below, above = 9 / 15, 0.56, 0.61
    assert metrics(predicted([0, 1], [[0, 1], [0, 1]], [edge, below]))["calibration_error"] == pytest.approx(
        abs(1 - edge - below) / 2
    )
    assert metrics(predicted([0, 1], [[0, 1], [0, 1]], [edge, above]))["calibration_error"] == pytest.approx(
        (1 - edge + above) / 2
    )


def test_of_two_classes_the_right_one_is_always_among_the_top_five():
    found = metrics(predicted([0, 1, 1], [[1, 0], [0, 1], [1, 0]], [0.6, 0.7, 0.8]))
    assert (found["accuracy"], found["top5_accuracy"], found["macro_accuracy"]) == (1 / 3, 1.0, 1 / 4)


def test_metrics_do_not_depend_on_the_order_of_the_photographs():
    generator = torch.Generator().manual_seed(0)
    count = 5000
    predictions = Predictions(
        torch.randint(7, (count,), generator=generator),
        torch.rand(count, generator=generator, dtype=torch.float64),
        torch.rand(count, 7, generator=generator).topk(5).indices,
        torch.rand(count, generator=generator, dtype=torch.float64),
        torch.rand(count, generator=generator, dtype=torch.float64),
    )
    shuffled = torch.randperm(count, generator=generator)
    again = Predictions(*(column[shuffled] for column in vars(predictions).values()))
    assert metrics(predictions) == metrics(again)
