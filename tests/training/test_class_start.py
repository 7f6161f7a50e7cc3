"""Prompts that start at the mean state of a class."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from promptcam_hf.training.class_start import start_at_class_means
from promptcam_hf.training.options import TrainingOptions
from promptcam_hf.training.trainer import PromptCamTrainer

from ..tiny_models import CASES, NUM_LAYERS, images, tiny_model
from .published import PUBLISHED

LABELS = [0, 1, 1, 3, 0, 1]  # none of class 2


def photographs() -> list[dict]:
    pixel_values = images(len(LABELS))
    return [{"pixel_values": pixel_values[row], "labels": label} for row, label in enumerate(LABELS)]


@pytest.mark.parametrize(("family", "layer"), CASES)
@pytest.mark.parametrize("num_prompted_layers", [NUM_LAYERS, None])
def test_start_is_the_mean_state_of_cls_in_the_bare_backbone(family, layer, num_prompted_layers):
    model = tiny_model(family, layer, num_prompted_layers=num_prompted_layers or NUM_LAYERS - layer + 1)
    before = model.class_prompts.clone()
    with torch.no_grad():
        entering = model.backbone(images(len(LABELS)), output_hidden_states=True).hidden_states[layer - 1][:, 0]
    start_at_class_means(model, photographs(), list(range(len(LABELS))))
    for label in range(model.num_labels):
        rows = [row for row, other in enumerate(LABELS) if other == label]
        expected = entering[rows].mean(0) if rows else before[label]
        torch.testing.assert_close(model.class_prompts[label], expected, rtol=1e-5, atol=1e-5)
    assert model.class_prompts.requires_grad


@pytest.mark.parametrize(
    ("family", "layer", "first"), [(*case, first) for case in CASES for first in (1, 2) if first < case[1]]
)
@pytest.mark.parametrize(("num_prompts", "classes"), [(2, [0, 2]), (5, [0, 1, 2, 3, 4]), (7, [0, 1, 2, 3, 4])])
def test_agnostic_prompts_start_at_class_means_of_their_layer(family, layer, first, num_prompts, classes):
    sizes = {"num_prompted_layers": NUM_LAYERS + 1 - first, "num_agnostic_prompts": num_prompts}
    model = tiny_model(family, layer, **sizes)
    before = model.agnostic_prompts.clone()
    with torch.no_grad():
        states = model.backbone(images(len(LABELS)), output_hidden_states=True).hidden_states
    start_at_class_means(model, photographs(), list(range(len(LABELS))))
    for index, entered in enumerate(range(first, layer)):
        for number, prompt in enumerate(model.agnostic_prompts[index]):
            rows = [row for row, label in enumerate(LABELS) if label in classes[number : number + 1]]
            means = entered > 1 and rows  # in layer 1, [CLS] is the same for all images
            expected = states[entered - 1][rows, 0].mean(0) if means else before[index, number]
            torch.testing.assert_close(prompt, expected, rtol=1e-5, atol=1e-5)
    assert model.agnostic_prompts.requires_grad


def test_without_cls_it_is_the_mean_of_the_patches():
    model = tiny_model("vit", num_prompted_layers=1)
    with torch.no_grad():
        entering = model.backbone(images(len(LABELS)), output_hidden_states=True).hidden_states[NUM_LAYERS - 1]
    model.num_prefix_tokens = 0  # as if all tokens were patches
    start_at_class_means(model, photographs(), list(range(len(LABELS))))
    torch.testing.assert_close(model.class_prompts[3], entering[3].mean(0), rtol=1e-5, atol=1e-5)


def test_training_starts_there_with_and_without_a_cache(bird_folder, tmp_path):
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    settings = PUBLISHED | {"prompt_init": "mean_cls", "learning_rate": 0.0, "drop_path_rate": 0.0}
    settings |= {"data": bird_folder, "backbone": tmp_path / "backbone", "num_prompted_layers": 2}
    options = TrainingOptions(**settings, epochs=1, batch_size=8, num_workers=0)

    def start(name: str, **changes) -> torch.Tensor:
        run = tmp_path / name
        PromptCamTrainer(options.replace(**changes), run, features_dir=tmp_path / "features").train()
        return load_file(Path(run) / "model.safetensors")["class_prompts"]

    without, cached, random = start("a"), start("b", cache_features=2), start("c", prompt_init="random")
    torch.testing.assert_close(cached, without, rtol=1e-5, atol=1e-5)
    assert (without - random).abs().max() > 0.1
