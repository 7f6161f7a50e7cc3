"""Features that are kept instead of being computed anew: the same training, and never features of something else."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import constants

from promptcam_hf import devices
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import TrainTransform
from promptcam_hf.data.splits import load_splits
from promptcam_hf.training import feature_cache
from promptcam_hf.training.feature_cache import CachedFeatures, affordable_views
from promptcam_hf.training.options import TrainingOptions, load_run_options
from promptcam_hf.training.trainer import PromptCamTrainer
from promptcam_hf.training.views import Views

from ..tiny_models import assert_close, tiny_model
from .published import PUBLISHED
from .runs import losses


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A Hugging Face home of this test's own; the folder is asked for when features are needed."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def photos(bird_folder, tmp_path) -> Path:
    return Path(shutil.copytree(bird_folder, tmp_path / "photos"))


@pytest.fixture
def options(photos, tmp_path) -> TrainingOptions:
    """Prompts in the last of three layers; nothing random but the views."""
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    changes = {"num_prompted_layers": 1, "prompt_dropout": 0.0, "drop_path_rate": 0.0, "learning_rate": 0.1}
    return TrainingOptions(
        **PUBLISHED | changes, data=photos, backbone=tmp_path / "backbone", epochs=3, batch_size=8, num_workers=0
    )


def kept(home: Path) -> dict[str, tuple[int, int]]:
    """Name of each file of features -> what would change if it were written again."""
    files = (home / "promptcam" / "features").glob("*.npy")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def cached(
    photos: Path,
    *,
    num_views: int = 1,
    image_size: int = 32,
    mean: float = 0.5,
    seed: int = 0,
    change: Callable[[Any], Any] = lambda model: None,
    **config: Any,
) -> CachedFeatures:
    model = tiny_model("vit", **{"num_prompted_layers": 1, "drop_path_rate": 0.5} | config)
    with torch.no_grad():
        change(model)
    processor = new_image_processor(image_size)
    processor.image_mean = [mean, 0.5, 0.5]
    views = Views(load_splits(photos).train, TrainTransform(processor), seed)
    return CachedFeatures(model, views, num_views, 0, Accelerator(cpu=True))


# --- The same training


def test_with_a_view_an_epoch_training_is_the_same(options, home, tmp_path):
    PromptCamTrainer(options, tmp_path / "without").train()
    assert not kept(home)
    PromptCamTrainer(options.replace(cache_features=3), tmp_path / "with").train()
    assert len(kept(home)) == 2  # also those of the photographs that are evaluated after each epoch
    without = losses(tmp_path / "without")
    assert max(without) - min(without) > 0.01
    assert losses(tmp_path / "with") == pytest.approx(without, rel=1e-4)


def test_fewer_views_are_seen_again_and_the_next_run_finds_them(options, home, tmp_path, monkeypatch):
    options = options.replace(cache_features=2, learning_rate=0.0)
    PromptCamTrainer(options, tmp_path / "first").train()
    first, second, third = np.array(losses(tmp_path / "first")).reshape(3, 3).mean(axis=1)
    assert third == pytest.approx(first, rel=1e-5)  # all photographs of an epoch, in another order
    assert abs(second - first) > 1e-4

    before = kept(home)
    monkeypatch.setattr(feature_cache, "_build", None)
    PromptCamTrainer(options.replace(learning_rate=0.1, num_agnostic_prompts=3), tmp_path / "second").train()
    assert kept(home) == before


def test_training_and_its_cache_use_bfloat16_where_it_is_fast(options, home, tmp_path, monkeypatch):
    options = options.replace(mixed_precision=None, cache_features=2)
    for precision, num_files in (("bf16", 2), ("no", 3)):  # evaluation is in float32 in both
        monkeypatch.setattr(devices, "fast_precision", lambda device, precision=precision: precision)
        PromptCamTrainer(options, tmp_path / precision).train()
        assert load_run_options(tmp_path / precision).mixed_precision == precision
        assert len(kept(home)) == num_files
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "no"), rel=0.05)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "no")


def test_features_are_those_of_the_views(photos):
    found = cached(photos, num_views=2, drop_path_rate=0.0)
    model = tiny_model("vit", num_prompted_layers=1)
    views = Views(load_splits(photos).train, TrainTransform(new_image_processor(32)), seed=0)
    assert len(found) == len(views) == 24
    for epoch, index in ((0, 0), (1, 5), (5, 23), (4, 16)):
        row, view = found[epoch, index], views[epoch % 2, index]
        assert (row["labels"], row["index"]) == (view["labels"], index)
        with torch.no_grad():
            expected = model.frozen_features(views.transform.normalise(view["pixel_values"])[None])[0]
        assert_close(row["features"], expected)


def test_features_depend_on_nothing_that_was_drawn_before(photos, home):
    torch.manual_seed(1)
    first = np.array(cached(photos).features)
    shutil.rmtree(home)
    torch.manual_seed(2)
    assert np.array_equal(cached(photos).features, first)
    shutil.rmtree(home)
    assert not np.array_equal(cached(photos, drop_path_rate=0.0).features, first)  # so there was something to draw


# --- Never features of something else


def test_whatever_features_depend_on_makes_others(photos, home):
    def zero_first_bias(model):
        model.layer_parts(1).value.bias[0] += 1e-6

    def other_prompts(model):
        model.class_prompts.zero_()

    cached(photos)
    assert len(kept(home)) == 1
    cached(photos, change=other_prompts, num_agnostic_prompts=2, prompt_dropout=0.3, patch_dropout=0.5)
    assert len(kept(home)) == 1
    variants: list[dict[str, Any]] = [
        {"num_views": 2},
        {"seed": 1},
        {"image_size": 40, "backbone": {"image_size": 40}},
        {"mean": 0.5000001},
        {"change": zero_first_bias},
        {"drop_path_rate": 0.25},
        {"num_prompted_layers": 2},
    ]
    for number, variant in enumerate(variants, start=2):
        cached(photos, **variant)
        assert len(kept(home)) == number, variant

    photograph = sorted(photos.glob("train/*/*.jpg"))[7]
    shutil.copyfile(sorted(photos.glob("train/*/*.jpg"))[8], photograph)
    cached(photos)
    assert len(kept(home)) == len(variants) + 2
    photograph.unlink()
    assert len(cached(photos)) == 23
    assert len(kept(home)) == len(variants) + 3


# --- What stops it

KILLED = """
import os, signal, sys
from pathlib import Path
import tests.training.test_feature_cache as t
from promptcam_hf import PromptCamForImageClassification as Model
frozen_features, countdown = Model.frozen_features, 4  # after two passes that are timed

def dying(*arguments):
    global countdown
    countdown -= 1
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return frozen_features(*arguments)

Model.frozen_features = dying
t.cached(Path(sys.argv[1]))
"""


def test_interrupted_build_is_not_taken_for_whole(photos, home):
    command = [sys.executable, "-c", KILLED, photos]
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    (part,) = (home / "promptcam" / "features").glob("*.part")
    assert part.stat().st_size > 16 * 17 * 32 * 4  # a batch of features, at least
    assert not kept(home)
    found = np.array(cached(photos).features)
    assert not part.exists()  # so features have the same name in every process
    shutil.rmtree(home)
    assert np.array_equal(found, cached(photos).features)


def test_too_little_room_is_told_before_anything_is_written(photos, home, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = 3 * 24 * 17 * 32 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with pytest.raises(OSError, match=r"3 views of 24 images take 0\.0 GB; .*features has 0\.0 GB free. Cache"):
        cached(photos, num_views=3)
    assert not [file for file in home.rglob("*") if file.suffix in (".npy", ".part")]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed))
    cached(photos, num_views=3)


def test_folder_that_cannot_be_written_to_is_told_and_never_chosen(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OSError, match=r"file/home/promptcam/features: cannot be written \(Not a directory\)"):
        cached(photos)
    assert affordable_views(tiny_model("vit", num_prompted_layers=1), 24, 32, 20) == 0


def test_larger_views_are_less_affordable(tmp_path, monkeypatch):
    model = tiny_model("vit", num_prompted_layers=1)
    usage, needed = namedtuple("usage", "free"), 4 * 24 * 17 * 32 * 4  # bytes of four views of 24 images
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 * needed))
    assert [affordable_views(model, 24, size, 20, tmp_path) for size in (32, 40, 64)] == [4, 2, 0]


def test_disk_that_fills_up_is_told_and_leaves_nothing(photos, home, monkeypatch):
    """What was free at the start is not for ever."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    build = feature_cache._build

    def limited(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            build(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(feature_cache, "_build", limited)
    with pytest.raises(OSError, match=r"^cache_features: .*\.part: File too large\.$"):
        cached(photos)
    assert not [file for file in home.rglob("*") if file.suffix in (".npy", ".part")]


def test_model_with_prompts_in_its_first_layer_has_nothing_to_keep():
    for number in (1, 2):
        feature_cache.check_has_frozen_layers(tiny_model("vit", num_prompted_layers=number))
    with pytest.raises(
        ValueError, match=r"^cache_features: every layer has prompts.*expected num_prompted_layers less than 3"
    ):
        feature_cache.check_has_frozen_layers(tiny_model("vit"))


# --- A file that was damaged after it was written


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:60],
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: content.replace(b"<f4", b"<i4", 1),
    ],
    ids=["half", "a byte less", "a byte more", "header cut", "empty", "zeroed", "other type"],
)
def test_file_that_is_not_whole_is_built_again(photos, home, damage):
    first = np.array(cached(photos).features)
    (file,) = (home / "promptcam" / "features").glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert np.array_equal(cached(photos).features, first)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("place", [0.3, 0.9999])
def test_features_that_have_changed_are_named_and_not_used(photos, home, place):
    cached(photos)
    (file,) = (home / "promptcam" / "features").glob("*.npy")
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4  # in the features, and in their checksums
    file.write_bytes(content)
    found = cached(photos)
    with pytest.raises(OSError, match=rf"^cache_features: {file} was damaged after it was written; remove it, and it"):
        [found[0, index] for index in range(len(found))]
    file.unlink()
    again = cached(photos)
    assert len([again[0, index] for index in range(len(again))]) == 24
