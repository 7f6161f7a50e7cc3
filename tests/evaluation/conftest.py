from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from promptcam_hf.modeling.images_promptcam import load_photograph

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.data.photographs import EvaluationTransform, Photographs
from promptcam_hf.data.splits import load_splits

from ..tiny_models import tiny_model
from .cases import BOXES, CLASSES, COLOURS, TABLE, mask_image, scene


@pytest.fixture(autouse=True)
def no_accelerator_before() -> None:
    """Accelerate has one state per process. It must not keep the mixed precision of another test."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="package")
def model(bird_folder) -> PromptCamForImageClassification:
    """Trained on the drawn birds with some wrong labels. It knows one more class, and its classes are in another
    order than the folders."""
    names = [*sorted((path.name for path in (bird_folder / "test").iterdir()), reverse=True), "Dodo"]
    model = tiny_model("vit", id2label=dict(enumerate(names)), prompt_dropout=0.0)
    transform = EvaluationTransform(new_image_processor(32))
    paths = sorted(bird_folder.glob("test/*/*.jpg"))
    pixel_values = torch.stack([transform(load_photograph(path)) for path in paths])
    labels = torch.tensor([names.index(path.parent.name) for path in paths])
    labels[[2, 4, 5, 8]] = torch.tensor([0, 4, 4, 1])
    optimizer = torch.optim.Adam([model.class_prompts, model.agnostic_prompts, model.score_head.weight], lr=0.03)
    for _ in range(60):
        model(pixel_values, labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(model(pixel_values).logits.argmax(-1).unique()) > 2
    return model


@pytest.fixture(scope="package")
def checkpoint(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "birds"
    save_checkpoint(model, new_image_processor(32), folder)
    return folder


@pytest.fixture
def photographs(bird_folder) -> Photographs:
    """12 test photographs, 3 per class."""
    return Photographs(load_splits(bird_folder).evaluation, EvaluationTransform(new_image_processor(32)))


def save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


@pytest.fixture(scope="package")
def birds(tmp_path_factory) -> Path:
    """Three images of each class with all parts, and one more of red with a blue crown."""
    folder = tmp_path_factory.mktemp("birds")
    TABLE.save(folder)
    for name in CLASSES:
        other = CLASSES[1 - CLASSES.index(name)]
        for number in range(4 if name == "red" else 3):
            file = f"{name}/{number}.png"
            save(scene(COLOURS[name if number < 3 else other]), folder / "test" / file)
            save(mask_image(), folder / "test_parts" / file)
            for part in BOXES:
                save(scene(COLOURS[name], without=part), folder / "test_without" / part / file)
            save(scene(COLOURS[other]), folder / "test_swapped" / other / file)
    return folder
