"""Make the weights that ship with the package: pre-train the tiny backbone, train prompts on it, measure, install.

    python examples/make_demo_weights.py runs/weights

Prompts start at random, and where they end up looking depends on their start. So they are trained from several starts,
and the best one is chosen on birds that are used for nothing else. This takes less than an hour on 2 CPU cores. An
interrupted run continues when the command is given again.

The weights go to `promptcam_hf/demo/backbone` and `promptcam_hf/demo/promptcam`, in float16. Their metrics go to
`promptcam_hf/demo/metrics.json`. They are measured on birds that served neither for training nor for the choice.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pretrain_demo_backbone import pretrain
from transformers import AutoModel

from promptcam_hf import PromptCamForImageClassification, demo
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.demo.run import IMAGE_SIZE, TRAINING
from promptcam_hf.evaluation.explainers import PromptCamExplainer
from promptcam_hf.evaluation.prediction import class_names, metrics, predict
from promptcam_hf.evaluation.trait_data import load_trait_data
from promptcam_hf.evaluation.trait_metrics import evaluate_traits, traits_summary
from promptcam_hf.files import write_atomically
from promptcam_hf.share.run import train
from promptcam_hf.training.options import TrainingOptions

NUM_CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS, INTERVENTIONS = 16, 300, 40, 10
STARTS, CHOICE_PER_CLASS = 12, 20
SEED, CHOICE_SEED = 100, 101  # the demo and the tests use other seeds, and so other pictures
OPTIONS = TRAINING | {"epochs": 12, "cache_features": 2}
MIN_ACCURACY = 0.95  # a start below it is chosen only if all are
METRICS = "metrics.json"


def save_half(model: torch.nn.Module, folder: Path) -> None:
    """Save a checkpoint with weights in float16. They are loaded as float32, which CPUs compute faster."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, state_dict={name: weight.half() for name, weight in model.state_dict().items()})
    for code in folder.glob("*.py"):  # which is part of the package already
        code.unlink()
    config = json.loads((folder / "config.json").read_text())
    for entry in ("auto_map", "custom_pipelines", "backbone"):
        config.pop(entry, None)
    config.get("backbone_config", {}).pop("_name_or_path", None)  # a folder on this machine
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")


def draw(folder: Path, train_per_class: int, test_per_class: int, seed: int, interventions: int = 0) -> None:
    if not (folder / "train").exists():  # which is moved into place last
        shutil.rmtree(folder, ignore_errors=True)
        sizes = (NUM_CLASSES, train_per_class, test_per_class, IMAGE_SIZE, seed)
        demo.write_image_folder(folder, *sizes, interventions_per_class=interventions)


def measure(model: PromptCamForImageClassification, folder: Path, **options: int) -> dict[str, Any]:
    processor = new_image_processor(model.config.backbone_config.image_size)
    birds = load_trait_data(folder, class_names(model), processor)
    predictions = predict(model, birds.photographs, batch_size=64, accelerator=Accelerator(), progress=True)
    return {
        "accuracy": metrics(predictions)["accuracy"],
        **evaluate_traits(PromptCamExplainer(model), birds, **options),
    }


def train_prompts(backbone: Path, data: Path, choice: Path, checkpoint: Path, seed: int) -> dict[str, float]:
    """Train from one start, unless that is done already, and return its metrics on the birds to choose by."""
    record = checkpoint / "choice.json"
    if not record.exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
        options = TrainingOptions(**OPTIONS, data=str(data), backbone=str(backbone), seed=seed)
        features = checkpoint.parent / "features"
        train(options, checkpoint, features_dir=features)
        shutil.rmtree(features)
        results = measure(PromptCamForImageClassification.from_pretrained(checkpoint), choice, faithfulness_images=1)
        pointing = results["pointing"]["at_distinguishing"]["top1"]
        write_atomically(record, json.dumps({"seed": seed, "accuracy": results["accuracy"], "pointing": pointing}))
    return json.loads(record.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder for birds, states and checkpoints")
    parser.add_argument("--images", type=int, default=16_000, help="birds to pre-train on (default: %(default)s)")
    parser.add_argument("--pretrain-epochs", type=int, default=6, help="passes over these birds (default: %(default)s)")
    parser.add_argument("--no-install", action="store_true", help="do not replace the weights in the package")
    args = parser.parse_args()
    backbone, data, choice = (args.output_dir / name for name in ("backbone", "birds", "birds-to-choose-by"))

    try:
        pretrain(args.output_dir, args.images, args.pretrain_epochs, seed=0)
    except ValueError as error:
        sys.exit(f"error: {error}")
    draw(data, TRAIN_PER_CLASS, TEST_PER_CLASS, SEED, INTERVENTIONS)
    draw(choice, 1, CHOICE_PER_CLASS, CHOICE_SEED)
    checkpoints = [args.output_dir / f"promptcam-{seed}" for seed in range(STARTS)]
    starts = [train_prompts(backbone, data, choice, folder, seed) for seed, folder in enumerate(checkpoints)]
    best = max(starts, key=lambda start: (start["accuracy"] >= MIN_ACCURACY, start["pointing"]))

    # Measure what will be loaded: weights rounded to float16
    draft = args.output_dir / "promptcam-half"
    save_half(PromptCamForImageClassification.from_pretrained(checkpoints[best["seed"]]), draft)
    model = PromptCamForImageClassification.from_pretrained(draft).eval()
    results = {"starts": starts, "chosen": best["seed"], **measure(model, data)}
    for start in starts:
        print(f"start {start['seed']}: accuracy {start['accuracy']:.1%}, pointing {start['pointing']:.1%}")
    print(f"start {best['seed']} on other birds: accuracy {results['accuracy']:.1%}\n{traits_summary(results)}")
    write_atomically(args.output_dir / METRICS, json.dumps(results, indent=1) + "\n")
    if not args.no_install:
        save_half(AutoModel.from_pretrained(backbone, add_pooling_layer=False), demo.BACKBONE)
        save_half(model, demo.MODEL)
        processor = new_image_processor(model.config.backbone_config.image_size)
        processor.save_pretrained(demo.BACKBONE)
        processor.save_pretrained(demo.MODEL)
        write_atomically(demo.MODEL.parent / METRICS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
