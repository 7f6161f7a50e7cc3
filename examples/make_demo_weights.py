"""Make the weights that ship with the package anew: pre-train the tiny backbone, train prompts on it, measure, install.

    python examples/make_demo_weights.py runs/weights

Takes an hour or so on 2 CPU cores; interrupted and given again, it goes on. The last step writes float16 weights to
`promptcam_hf/demo/backbone` and `promptcam_hf/demo/promptcam`, and their figures, on birds never seen before, to
`promptcam_hf/demo/figures.json`.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from pretrain_tiny_dino import pretrain
from transformers import AutoModel

from promptcam_hf import PromptCamForImageClassification, demo
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.demo.run import IMAGE_SIZE, TRAINING
from promptcam_hf.evaluation import class_names, metrics, predict
from promptcam_hf.files import write_whole
from promptcam_hf.options import TrainingOptions
from promptcam_hf.training import resume, train
from promptcam_hf.trait_evaluation import PromptCamExplainer, evaluate_traits, load_trait_data, traits_summary

NUM_CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS, INTERVENTIONS = 16, 100, 40, 10
# Neither the demo's own pictures nor those of the tests
SEED, EPOCHS = 100, 90
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
    write_whole(folder / "config.json", json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="for all that comes before the weights")
    parser.add_argument("--objective", choices=["attributes", "dino"], default="attributes")
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--pretrain-epochs", type=int, default=5)
    parser.add_argument("--no-install", action="store_true", help="measure, but leave the package as it is")
    args = parser.parse_args()
    backbone, data, checkpoint = (args.output_dir / name for name in ("backbone", "birds", "promptcam"))

    pretrain(args.output_dir, args.objective, args.images, args.pretrain_epochs, learning_rate=1e-3, seed=0)
    if not (data / "parts.json").exists():  # which is written last
        shutil.rmtree(data, ignore_errors=True)
        demo.write_image_folder(
            data,
            NUM_CLASSES,
            TRAIN_PER_CLASS,
            TEST_PER_CLASS,
            IMAGE_SIZE,
            SEED,
            interventions_per_class=INTERVENTIONS,
        )
    if (checkpoint / "recipe.yaml").exists():
        resume(checkpoint)
    else:
        train(TrainingOptions(**TRAINING, data=str(data), backbone=str(backbone), epochs=EPOCHS), checkpoint)

    # As it will be loaded: rounded to float16
    draft = args.output_dir / "promptcam-half"
    save_half(PromptCamForImageClassification.from_pretrained(checkpoint), draft)
    model = PromptCamForImageClassification.from_pretrained(draft).eval()
    processor = new_image_processor(model.config.backbone_config.image_size)
    birds = load_trait_data(data, class_names(model), processor)
    predictions = predict(model, birds.photographs, batch_size=64, accelerator=Accelerator(), progress=True)
    figures = {"accuracy": metrics(predictions)["accuracy"], **evaluate_traits(PromptCamExplainer(model), birds)}
    print(f"accuracy {figures['accuracy']:.2%}\n{traits_summary(figures)}")
    write_whole(args.output_dir / FIGURES, json.dumps(figures, indent=1) + "\n")
    if not args.no_install:
        save_half(AutoModel.from_pretrained(backbone, add_pooling_layer=False), demo.BACKBONE)
        save_half(model, demo.MODEL)
        processor.save_pretrained(demo.BACKBONE)
        processor.save_pretrained(demo.MODEL)
        write_whole(demo.MODEL.parent / FIGURES, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
