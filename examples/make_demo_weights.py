"""Make the weights that ship with the package anew: pre-train the tiny backbone, train prompts on it, measure, install.

    python examples/make_demo_weights.py runs/weights

Prompts start at random, and where they end up looking depends on it: so they are trained several times, and those are
taken that do best on birds drawn for this choice alone. Takes less than an hour on 2 CPU cores; interrupted and given
again, it goes on. Float16 weights go to `promptcam_hf/demo/backbone` and `promptcam_hf/demo/promptcam`, and their
figures, on birds that neither training nor choice have seen, to `promptcam_hf/demo/figures.json`.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pretrain_tiny_dino import pretrain
from transformers import AutoModel

from promptcam_hf import PromptCamForImageClassification, demo
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.demo.run import IMAGE_SIZE, TRAINING
from promptcam_hf.evaluation.evaluation import class_names, metrics, predict
from promptcam_hf.evaluation.trait_metrics import PromptCamExplainer, evaluate_traits, load_trait_data, traits_summary
from promptcam_hf.files import write_atomically
from promptcam_hf.share.run import train
from promptcam_hf.training.options import TrainingOptions

NUM_CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS, INTERVENTIONS = 16, 300, 40, 10
STARTS, CHOICE_PER_CLASS = 12, 20
# Neither the demo's own pictures nor those of the tests
SEED, CHOICE_SEED = 100, 101
OPTIONS = TRAINING | {"epochs": 12, "cache_features": 2}
ACCURACY = 0.95  # that a start must reach to be chosen, if any does
FIGURES = "figures.json"


def save_half(model: torch.nn.Module, folder: Path) -> None:
    """Weights in float16, to be loaded as float32: half the size, and arithmetic that a CPU is good at."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, state_dict={name: weight.half() for name, weight in model.state_dict().items()})
    for code in folder.glob("*.py"):  # which the package holds already
        code.unlink()
    config = json.loads((folder / "config.json").read_text())
    for entry in ("auto_map", "custom_pipelines", "backbone"):
        config.pop(entry, None)
    config.get("backbone_config", {}).pop("_name_or_path", None)  # a folder of whoever makes them
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")


def draw(folder: Path, train_per_class: int, test_per_class: int, seed: int, interventions: int = 0) -> None:
    if not (folder / "parts.json").exists():  # which is written last
        shutil.rmtree(folder, ignore_errors=True)
        demo.write_image_folder(
            folder,
            NUM_CLASSES,
            train_per_class,
            test_per_class,
            IMAGE_SIZE,
            seed,
            interventions_per_class=interventions,
        )


def measure(model: PromptCamForImageClassification, folder: Path, **options: int) -> dict[str, Any]:
    processor = new_image_processor(model.config.backbone_config.image_size)
    birds = load_trait_data(folder, class_names(model), processor)
    predictions = predict(model, birds.photographs, batch_size=64, accelerator=Accelerator(), progress=True)
    return {
        "accuracy": metrics(predictions)["accuracy"],
        **evaluate_traits(PromptCamExplainer(model), birds, **options),
    }


def train_prompts(backbone: Path, data: Path, choice: Path, checkpoint: Path, seed: int) -> dict[str, float]:
    """Train from one start, unless that is done, and say how well it does on the birds to choose by."""
    done = checkpoint / "choice.json"
    if not done.exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
        options = TrainingOptions(**OPTIONS, data=str(data), backbone=str(backbone), seed=seed)
        features = checkpoint.parent / "features"
        train(options, checkpoint, features_dir=features)
        shutil.rmtree(features)
        figures = measure(PromptCamForImageClassification.from_pretrained(checkpoint), choice, faithfulness_images=1)
        pointing = figures["pointing"]["at_distinguishing"]["top1"]
        write_atomically(done, json.dumps({"seed": seed, "accuracy": figures["accuracy"], "pointing": pointing}))
    return json.loads(done.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="for all that comes before the weights")
    parser.add_argument("--objective", choices=["attributes", "dino"], default="attributes")
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--pretrain-epochs", type=int, default=6)
    parser.add_argument("--no-install", action="store_true", help="measure, but leave the package as it is")
    args = parser.parse_args()
    backbone, data, choice = (args.output_dir / name for name in ("backbone", "birds", "birds-to-choose-by"))

    pretrain(args.output_dir, args.objective, args.images, args.pretrain_epochs, seed=0)
    draw(data, TRAIN_PER_CLASS, TEST_PER_CLASS, SEED, INTERVENTIONS)
    draw(choice, 1, CHOICE_PER_CLASS, CHOICE_SEED)
    checkpoints = [args.output_dir / f"promptcam-{seed}" for seed in range(STARTS)]
    starts = [train_prompts(backbone, data, choice, folder, seed) for seed, folder in enumerate(checkpoints)]
    best = max(starts, key=lambda start: (start["accuracy"] >= ACCURACY, start["pointing"]))

    # As it will be loaded: rounded to float16
    draft = args.output_dir / "promptcam-half"
    save_half(PromptCamForImageClassification.from_pretrained(checkpoints[best["seed"]]), draft)
    model = PromptCamForImageClassification.from_pretrained(draft).eval()
    figures = {"starts": starts, "chosen": best["seed"], **measure(model, data)}
    for start in starts:
        print(f"start {start['seed']}: accuracy {start['accuracy']:.1%}, pointing {start['pointing']:.1%}")
    print(f"start {best['seed']} on other birds: accuracy {figures['accuracy']:.1%}\n{traits_summary(figures)}")
    write_atomically(args.output_dir / FIGURES, json.dumps(figures, indent=1) + "\n")
    if not args.no_install:
        save_half(AutoModel.from_pretrained(backbone, add_pooling_layer=False), demo.BACKBONE)
        save_half(model, demo.MODEL)
        processor = new_image_processor(model.config.backbone_config.image_size)
        processor.save_pretrained(demo.BACKBONE)
        processor.save_pretrained(demo.MODEL)
        write_atomically(demo.MODEL.parent / FIGURES, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
