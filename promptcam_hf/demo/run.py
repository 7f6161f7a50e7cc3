"""`promptcam demo`: draw birds, train prompts on them, measure the trait maps, and write a page about it.

The output folder then holds

    birds/          the pictures, the masks of their parts and the interventions (see `promptcam_hf.data.parts`)
    promptcam/      the checkpoint, as `promptcam train` writes it
    sheets/         contact sheets: traits.png, look_alikes.png, other_eyes.png
    index.html      the page, which needs no other file
    demo.json       options, metrics and times; a folder with this file can be overwritten by another demo
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import pipeline

from ..evaluation.explainers import PromptCamExplainer
from ..evaluation.prediction import EVALUATION_BATCH_SIZE, class_names, metrics, predict
from ..evaluation.trait_data import load_trait_data
from ..evaluation.trait_metrics import evaluate_traits, traits_summary
from ..files import as_json, check_new_folder, write_atomically, writing_to
from ..modeling.configuration_promptcam import TASK
from ..share.run import train
from ..training.options import TrainingOptions
from ..version import __version__
from . import BACKBONE
from .album import Album
from .dataset import write_image_folder
from .page import write_page
from .species import make_species

BIRDS, CHECKPOINT, SHEETS, PAGE, RECORD = "birds", "promptcam", "sheets", "index.html", "demo.json"
CACHE = ".cache"  # features, during training only
MADE_BY = "promptcam demo"

IMAGE_SIZE = 192
INTERVENTIONS = 4  # test pictures of each species that are also drawn without each part, and with other species' parts
FAITHFULNESS_IMAGES = 64
TRAINING: dict[str, Any] = {
    "num_prompted_layers": 1,
    "prompt_init": "random",
    "batch_size": 16,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "weight_decay": 0.001,
    "label_smoothing": 0.0,
    "blurred_negative": False,
    "crops": "paper",
    "mixed_precision": "no",
    "validation_share": 0.0,
    "prompt_dropout": 0.0,
    "drop_path_rate": 0.0,
    "patch_dropout": 0.5,
    "cache_features": 4,
    "evaluate_every": 12,
    "save_total_limit": 1,
}


def demo(
    output_dir: str | os.PathLike,
    *,
    num_classes: int = 16,
    train_per_class: int = 150,
    test_per_class: int = 15,
    epochs: int = 24,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """
    Run the demo, and print progress and metrics.

    Args:
        output_dir: New or empty folder, or with `overwrite` that of an earlier demo.
        num_classes: Number of species, 2 to 512. Four make a family of look-alikes.
        train_per_class, test_per_class: Pictures of each species, 1 or more.
        epochs: Training epochs, 1 or more.
        seed: Random seed of pictures and training, 0 or more.
        overwrite: Whether to replace an earlier demo. Files in its folder that the demo does not write stay.

    Returns:
        The contents of `demo.json`: `made_by`, `version`, `options`, `accuracy` and `chance` (the accuracy of
        guessing), both in [0, 1], `traits` (see `evaluate_traits`), `classes` (name -> `images` and `correct`) and
        `seconds` (how long each stage took).

    Raises:
        ValueError: If an argument is out of range, or the folder is not as described above.
        OSError: If a file cannot be read or written.
    """
    output_dir = Path(output_dir)
    data, checkpoint = output_dir / BIRDS, output_dir / CHECKPOINT
    options = {"classes": num_classes, "train": train_per_class, "test": test_per_class, "epochs": epochs, "seed": seed}
    _check(num_classes, train_per_class, test_per_class)
    training = TrainingOptions(**TRAINING, data=str(data), backbone=str(BACKBONE), epochs=epochs, seed=seed)
    make_room(output_dir, overwrite)
    results: dict[str, Any] = {"made_by": MADE_BY, "version": __version__, "options": options}
    _write_record(output_dir, results)
    seconds: dict[str, float] = {}
    with _stage(f"1/4  Drawing {num_classes} species of birds", "drawing", seconds):
        sizes = (num_classes, train_per_class, test_per_class, IMAGE_SIZE, seed)
        write_image_folder(data, *sizes, interventions_per_class=min(INTERVENTIONS, test_per_class))
    with _stage("2/4  Training prompts on a small, frozen backbone", "training", seconds):
        train(training, checkpoint, features_dir=output_dir / CACHE)
        shutil.rmtree(output_dir / CACHE)  # nothing would use the features again
    with _stage("3/4  Measuring where the trained prompts look", "measuring", seconds):
        album = _open_album(data, checkpoint, seed)
        results |= _measure(album)
    with _stage("4/4  Writing the page", "page", seconds):
        write_page(output_dir / PAGE, output_dir / SHEETS, album, results)
    results["seconds"] = {stage: round(duration, 1) for stage, duration in seconds.items()}
    _write_record(output_dir, results)
    print(f"\nAccuracy {results['accuracy']:.1%} (guessing: {results['chance']:.1%})")
    print(traits_summary(results["traits"]))
    print(f"\nOpen {output_dir / PAGE} in a browser. Its pictures are also in {output_dir / SHEETS}.")
    return results


def _check(num_classes: int, train_per_class: int, test_per_class: int) -> None:
    make_species(num_classes)
    if num_classes < 2 or train_per_class < 1 or test_per_class < 1:
        raise ValueError(
            f"{num_classes} species with {train_per_class} training and {test_per_class} test pictures each: "
            "expected 2 species or more, and 1 picture or more."
        )


def _open_album(data: Path, checkpoint: Path, seed: int) -> Album:
    accelerator = Accelerator()
    task: Any = TASK  # `pipeline` is typed for transformers' own tasks
    pipe = pipeline(task, model=str(checkpoint), device=accelerator.device)
    birds = load_trait_data(data, class_names(pipe.model), pipe.image_processor)
    predictions = predict(
        pipe.model, birds.photographs, batch_size=EVALUATION_BATCH_SIZE, accelerator=accelerator, progress=False
    )
    return Album(pipe, birds, predictions, seed)


def _measure(album: Album) -> dict[str, Any]:
    """The metrics among the results of `demo`."""
    birds, labels = album.birds, album.predictions.labels
    is_correct = album.predictions.top_classes[:, 0] == labels
    explainer = PromptCamExplainer(album.pipe.model)
    return {
        "accuracy": metrics(album.predictions)["accuracy"],
        "chance": 1 / len(birds.names),
        "traits": evaluate_traits(explainer, birds, faithfulness_images=FAITHFULNESS_IMAGES),
        "classes": {
            name: {"images": int((labels == label).sum()), "correct": int(is_correct[labels == label].sum())}
            for label, name in enumerate(birds.names)
        },
    }


def make_room(output_dir: Path, overwrite: bool) -> None:
    """
    Make the output folder, or remove from it what an earlier demo wrote.

    Raises:
        ValueError: If the folder holds something else, or an earlier demo that is not to be overwritten.
    """
    if not _is_demo(output_dir / RECORD):
        check_new_folder(output_dir, " or that of an earlier demo")
        with writing_to(output_dir):
            output_dir.mkdir(parents=True, exist_ok=True)
        return
    if not overwrite:
        raise ValueError(
            f"{output_dir} holds an earlier demo; pass --overwrite to replace it, or choose another --output-dir."
        )
    (output_dir / PAGE).unlink(missing_ok=True)
    for folder in (output_dir / name for name in (SHEETS, CHECKPOINT, BIRDS, CACHE)):
        if folder.exists():
            shutil.rmtree(folder)


def _is_demo(record: Path) -> bool:
    try:
        return json.loads(record.read_text(encoding="utf-8"))["made_by"] == MADE_BY
    except (OSError, ValueError, TypeError, KeyError):
        return False


@contextmanager
def _stage(title: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage, and note how long it takes."""
    print(f"\n{title}", flush=True)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _write_record(output_dir: Path, results: dict[str, Any]) -> None:
    write_atomically(output_dir / RECORD, as_json(results))
