"""A model that has learned four drawn species, on photographs large enough for its peaks to lie somewhere."""

from pathlib import Path

import pytest
import torch
from promptcam_hf.modeling.images_promptcam import load_photograph

from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.data.photographs import EvaluationTransform
from promptcam_hf.guide.traits import TraitsResult, make_traits

from ..tiny_models import tiny_model


@pytest.fixture(scope="package")
def birds_model(bird_folder, tmp_path_factory) -> Path:
    """A checkpoint; it knows one more species, which has no photographs."""
    names = [*sorted(path.name for path in (bird_folder / "test").iterdir()), "Dodo"]
    model = tiny_model("vit", id2label=dict(enumerate(names)), prompt_dropout=0.0)
    transform = EvaluationTransform(new_image_processor(32))
    paths = sorted(bird_folder.glob("*/*/*.jpg"))
    pixel_values = torch.stack([transform(load_photograph(path)) for path in paths])
    labels = torch.tensor([names.index(path.parent.name) for path in paths])
    optimizer = torch.optim.Adam([model.class_prompts, model.agnostic_prompts, model.score_head.weight], lr=0.03)
    for _ in range(40):
        model(pixel_values, labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (model(pixel_values).logits.argmax(-1) == labels).float().mean() > 0.7
    folder = tmp_path_factory.mktemp("guide") / "model"
    save_checkpoint(model, new_image_processor(32), folder)
    return folder


@pytest.fixture(scope="package")
def traits(birds_model, bird_folder, tmp_path_factory) -> tuple[Path, TraitsResult]:
    """A vocabulary."""
    folder = tmp_path_factory.mktemp("guide") / "traits"
    return folder, make_traits(birds_model, bird_folder, folder, num_workers=0, progress=False)
