"""What is left of maps when a part of the model is random."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from promptcam_hf.evaluation.explainers import PromptCamExplainer
from promptcam_hf.evaluation.randomisation import learned_parts, measure_randomisation, randomised
from promptcam_hf.evaluation.trait_metrics import spearman

from ..tiny_models import FAMILIES, NUM_LAYERS, tiny_model
from .cases import GRID, NAMES, trait_data

GOLDEN = Path(__file__).parents[1] / "fixtures" / "quantus" / "golden.safetensors"


def test_similarity_is_that_of_quantus():
    golden = load_file(GOLDEN)
    found = [spearman(a.tolist(), b.tolist()) for a, b in zip(*golden["pairs"], strict=True)]
    assert found == pytest.approx(golden["spearman"].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_random_within_the_context_alone(family):
    model = tiny_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    of = dict(model.named_parameters())
    for part, parameters in learned_parts(model).items():
        with randomised(parameters):
            changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
            for name in changed:
                if of[name].numel() > 100:
                    assert of[name].std().item() == pytest.approx(before[name].std().item(), rel=0.3)
        assert changed
        assert all(("_prompts" if part == "prompts" else f".{NUM_LAYERS - 1}.") in name for name in changed)
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_parts_are_as_before_after_an_error():
    model = tiny_model("vit")
    before = model.class_prompts.clone()
    with pytest.raises(RuntimeError, match="in between"), randomised([model.class_prompts]):
        raise RuntimeError("in between")
    assert model.class_prompts.equal(before)


class Reader(PromptCamExplainer):
    """Maps that show the prompts of the class, and nothing else."""

    def maps(self, pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return self.model.class_prompts[classes][:, None, : GRID * GRID].unflatten(-1, (GRID, GRID)).exp()


def test_similarity_of_maps_that_need_the_prompts_or_nothing(birds):
    model = tiny_model("vit", id2label=dict(enumerate(NAMES)))
    read = measure_randomisation(Reader(model), trait_data(birds), batch_size=3, num_images=5, progress=False)
    assert read["num_images"] == 5
    assert abs(read["prompts"]) < 0.9
    assert read["last_layer"] == pytest.approx(1)
    # By hand, for the maps of Prompt-CAM
    explainer, data = PromptCamExplainer(model), trait_data(birds)
    found = measure_randomisation(explainer, data, num_images=len(data), progress=False)
    pixel_values = torch.stack([data[row].pixel_values for row in range(len(data))])
    classes = explainer.logits(pixel_values).argmax(-1)
    before = explainer.maps(pixel_values, classes)[:, :4].sum(1).flatten(1)
    for name, parameters in learned_parts(model).items():
        with randomised(parameters):
            after = explainer.maps(pixel_values, classes)[:, :4].sum(1).flatten(1)
        expected = [spearman(a, b) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
        assert found[name] == pytest.approx(sum(expected) / len(expected), abs=1e-3)
