from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from promptcam_hf.training.options import TrainingOptions

from ..tiny_models import tiny_model
from .published import PUBLISHED


@pytest.fixture(autouse=True)
def no_accelerator_before() -> None:
    """Accelerate keeps one state for the process, which another test's precision must not decide."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="package")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    tiny_model("vit").backbone.save_pretrained(folder)
    return folder


@pytest.fixture
def options(bird_folder, backbone) -> TrainingOptions:
    settings = PUBLISHED | {"blurred_negative": True}  # all that the loss can have goes through these tests
    return TrainingOptions(**settings, data=bird_folder, backbone=backbone, epochs=2, batch_size=8, num_workers=0)


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def colours(tmp_path):
    """Three classes that any backbone can tell apart: noisy pictures of a colour each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for name, colour in (("blue", (20, 40, 220)), ("green", (30, 200, 60)), ("red", (220, 30, 40))):
            folder = tmp_path / "colours" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + generator.normal(0, 30, (40, 40, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return str(tmp_path / "colours")
