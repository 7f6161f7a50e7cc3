"""What the tests share. No test reaches a network beyond loopback, nor the caches of who runs it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before transformers and torch are imported
_HOME = tempfile.TemporaryDirectory(prefix="promptcam-tests-")
os.environ["HF_HOME"] = _HOME.name
# Numbers are compared with those of a CPU. To run the tests for a GPU, name it: CUDA_VISIBLE_DEVICES=0
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# torch does not name what it has compiled by ATEN_CPU_CAPABILITY, and code of another one computes nonsense or crashes
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(_HOME.name, "inductor")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch
from PIL import Image

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.demo.dataset import write_image_folder

from .browser import Browser
from .tiny_models import tiny_model

# Models this small only wait for a second thread; to test with several, set the variable
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def birds20() -> Path:
    """Real photographs, where they are at hand."""
    folder = SHARED / "data" / "birds20"
    if not folder.is_dir():
        pytest.skip("the photographs of shared/data/birds20 are not here")
    return folder


@pytest.fixture(scope="session")
def bird_folder(tmp_path_factory) -> Path:
    """A small image folder of drawn birds: 4 classes, 6 training and 3 test images each, 64 pixels wide."""
    folder = tmp_path_factory.mktemp("birds") / "photos"
    write_image_folder(folder, num_classes=4, train_per_class=6, test_per_class=3, size=64, seed=0, progress=False)
    return folder


@pytest.fixture(scope="session")
def photograph(bird_folder) -> Path:
    return sorted(bird_folder.glob("test/*/*.jpg"))[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


@pytest.fixture
def square() -> Image.Image:
    return Image.new("RGB", (40, 40), (200, 30, 60))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny, untrained model as `promptcam train` saves one."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    names = {0: "Baltimore_Oriole", 1: "Hooded_Oriole", 2: "Orchard_Oriole", 3: "Scott_Oriole", 4: "Indigo_Bunting"}
    model: PromptCamForImageClassification = tiny_model("vit", 3, id2label=names)
    save_checkpoint(model, new_image_processor(model.config.backbone_config.image_size), folder)
    return folder
