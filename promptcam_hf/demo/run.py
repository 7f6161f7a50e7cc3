"""`promptcam demo`: birds are drawn, prompts trained on them, the maps measured, and a page written that shows it all.

Into the output folder go

    birds/          the pictures, with masks of their parts and some scenes drawn otherwise (see `promptcam_hf.data.parts`)
    promptcam/      what `promptcam train` writes
    sheets/         contact sheets: traits.png, look_alikes.png, other_eyes.png
    index.html      the page, which needs no other file
    demo.json       options, figures and times; by it an earlier demo is known
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

from ..evaluation.evaluation import class_names, metrics, predict
from ..evaluation.trait_metrics import PromptCamExplainer, evaluate_traits, load_trait_data, traits_summary
from ..files import write_atomically
from ..modeling.configuration_promptcam import TASK
from ..share.run import train
from ..training.options import EVALUATION_BATCH_SIZE, TrainingOptions
from ..version import __version__
from . import BACKBONE
from .page import write_page
from .synthetic_birds import make_species, write_image_folder

BIRDS, CHECKPOINT, SHEETS, PAGE, RECORD = "birds", "promptcam", "sheets", "index.html", "demo.json"
CACHE = ".cache"  # only while prompts are trained
MADE_BY = "promptcam demo"

IMAGE_SIZE = 192
# Of each species so many test pictures are drawn without each part in turn, and with the parts of its look-alikes
INTERVENTIONS = 4
FAITHFULNESS_IMAGES = 64
TRAINING: dict[str, Any] = {
    "num_prompted_layers": 1,
    "batch_size": 16,
    "optimizer": "adamw",
    "learning_rate": 0.01,
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
    Run the demo. Progress and figures are printed.

    Args:
        output_dir: New or empty folder. With `overwrite` also that of an earlier demo, of which what the demo wrote is
            replaced; other files in it stay.
        num_classes: Number of species, 2 to 512; four make a family of look-alikes.
        train_per_class, test_per_class: Pictures of each, 1 or more.
        epochs: Of the training.
        seed: Of pictures and training.
        overwrite: Whether to replace an earlier demo.

    Returns:
        What `demo.json` holds: `made_by`, `version`, `options`, `accuracy` and `chance` (that of guessing), in [0, 1],
        `traits` (see `trait_evaluation.evaluate_traits`), `classes` (name -> `images` and `correct`) and `seconds`
        (stage -> how long it took).

    Raises:
        ValueError: If an argument is out of its range, or the folder is not as said above.
        OSError: If something cannot be read or written.
    """
    output_dir = Path(output_dir)
    make_species(num_classes)  # or fail before anything is replaced
    if num_classes < 2 or train_per_class < 1 or test_per_class < 1:
        raise ValueError(
            f"{num_classes} species with {train_per_class} training and {test_per_class} test pictures each: expected "
            "2 species or more, and 1 picture or more."
        )
    data, checkpoint = output_dir / BIRDS, output_dir / CHECKPOINT
    training = TrainingOptions(**TRAINING, data=str(data), backbone=str(BACKBONE), epochs=epochs, seed=seed)
    results: dict[str, Any] = {
        "made_by": MADE_BY,
        "version": __version__,
        "options": {
            "classes": num_classes,
            "train": train_per_class,
            "test": test_per_class,
            "epochs": epochs,
            "seed": seed,
        },
    }
    make_room(output_dir, overwrite)
    write_atomically(output_dir / RECORD, _json(results))
    seconds: dict[str, float] = {}

    with _stage(f"1/4  Drawing {num_classes} species of birds", "drawing", seconds):
        write_image_folder(
            data,
            num_classes,
            train_per_class,
            test_per_class,
            IMAGE_SIZE,
            seed,
            interventions_per_class=min(INTERVENTIONS, test_per_class),
        )
    title = "2/4  Training prompts on a small backbone, which stays as it is"
    with _stage(title, "training", seconds):
        train(training, checkpoint, features_dir=output_dir / CACHE)
        shutil.rmtree(output_dir / CACHE)  # nothing would ever use the features of a demo again
    with _stage("3/4  Measuring where the trained prompts look", "measuring", seconds):
        accelerator = Accelerator()
        task: Any = TASK  # `pipeline` is typed for transformers' own tasks
        traits = pipeline(task, model=str(checkpoint), device=accelerator.device)
        birds = load_trait_data(data, class_names(traits.model), traits.image_processor)
        predictions = predict(
            traits.model, birds.photographs, batch_size=EVALUATION_BATCH_SIZE, accelerator=accelerator, progress=False
        )
        predicted = predictions.top_classes[:, 0]
        is_correct = predicted == predictions.labels
        results |= {
            "accuracy": metrics(predictions)["accuracy"],
            "chance": 1 / num_classes,
            "traits": evaluate_traits(PromptCamExplainer(traits.model), birds, faithfulness_images=FAITHFULNESS_IMAGES),
            "classes": {
                name: {
                    "images": int((predictions.labels == label).sum()),
                    "correct": int(is_correct[predictions.labels == label].sum()),
                }
                for label, name in enumerate(birds.names)
            },
        }
    with _stage("4/4  Writing the page", "page", seconds):
        write_page(output_dir / PAGE, output_dir / SHEETS, traits, birds, predictions, results)
    results["seconds"] = {stage: round(duration, 1) for stage, duration in seconds.items()}
    write_atomically(output_dir / RECORD, _json(results))

    print(f"\nAccuracy {results['accuracy']:.1%} (guessing: {results['chance']:.1%})")
    print(traits_summary(results["traits"]))
    print(f"\nOpen {output_dir / PAGE} in a browser; the same pictures are in {output_dir / SHEETS}.")
    return results


def make_room(output_dir: Path, overwrite: bool) -> None:
    """An empty folder, or one from which all is gone that an earlier demo wrote."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        output_dir.mkdir(parents=True, exist_ok=True)
        return
    if not _is_demo(output_dir / RECORD):
        raise ValueError(f"{output_dir} exists and holds no earlier demo; expected a new or empty folder.")
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
    print(f"\n{title}", flush=True)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _json(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=2, ensure_ascii=False) + "\n"
