"""The comparison on new drawn birds, of which it is known what tells them apart, with the model that ships."""

import pytest

from promptcam_hf import demo
from promptcam_hf.checkpoint import open_pipeline
from promptcam_hf.demo.dataset import write_image_folder
from promptcam_hf.evaluation.explainers import ComparisonExplainer, PromptCamExplainer
from promptcam_hf.evaluation.prediction import class_names
from promptcam_hf.evaluation.trait_data import load_trait_data
from promptcam_hf.evaluation.trait_metrics import evaluate_traits


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> list[dict]:
    """Comparison and trait maps on 32 birds."""
    folder = tmp_path_factory.mktemp("new") / "birds"
    pipe = open_pipeline(demo.MODEL, device="cpu")
    names = class_names(pipe.model)
    write_image_folder(folder, len(names), train_per_class=1, test_per_class=2, seed=5, progress=False)
    data = load_trait_data(folder, names, pipe.image_processor)
    return [
        evaluate_traits(explainer, data, faithfulness_images=16, steps=1, progress=False)
        for explainer in (ComparisonExplainer(pipe.model), PromptCamExplainer(pipe.model))
    ]


def test_the_comparison_points_at_what_distinguishes_the_birds_and_at_their_marks(measured):
    comparison, trait_maps = measured
    assert comparison["num_correct"] >= 28
    pointing = comparison["pointing"]
    assert pointing["at_distinguishing"]["top1"] > 0.9 > 5 * pointing["at_distinguishing"]["chance"]
    assert pointing["at_marks"]["top1"] > 0.85 > 5 * pointing["at_marks"]["chance"]
    # The first trait map finds the mark less often: it need not be what look-alikes lack
    assert pointing["at_marks"]["top1"] > trait_maps["pointing"]["at_marks"]["top1"] + 0.1


def test_what_the_comparison_shows_is_what_the_runner_up_lacks(measured):
    comparison, trait_maps = (results["faithfulness"] for results in measured)
    assert comparison["relative_drop"] > 0.7 > 3 * comparison["relative_drop_chance"]
    assert comparison["relative_drop"] > trait_maps["relative_drop"]
