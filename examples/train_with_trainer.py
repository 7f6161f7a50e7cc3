"""Train Prompt-CAM with `transformers.Trainer`, for those who have their own ways with it.

    python examples/train_with_trainer.py --data photos/ --backbone facebook/dino-vitb16 --output-dir runs/orioles

Every option of `TrainingArguments` may be given. The backbone is frozen, so Trainer optimises prompts and score head
alone. The result opens with `pipeline("prompt-cam", model="runs/orioles")`; with `--resume-from-checkpoint
runs/orioles/checkpoint-40` an interrupted run goes on. What Trainer offers for sharding (FSDP, DeepSpeed) has not been
tried with this model.

The defaults are the paper's recipe for ViT as far as Trainer has it; for DINOv2 add `--image-size 224 --learning-rate
0.001 --prompt-dropout 0 --drop-path-rate 0`. Other than with `promptcam train`,

- the learning rate changes with every step, not every epoch; the cosine starts after the warm-up, and ends at 0;
- an epoch's last batch may be smaller than the others; `promptcam train` leaves it out;
- `--per-device-train-batch-size` counts the images of one device; `--batch-size` counts those of all;
- a resumed run need not end with the same weights bit by bit as one that was not interrupted;
- checkpoints to resume from hold the whole backbone, not just what is trained, and one that was being written when a
  run was killed may lack files: resume from the one before;
- there is no model card with the evaluation in it, and no check for unreadable photographs before training starts.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import EvalPrediction, HfArgumentParser, Trainer, TrainingArguments, set_seed

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import EvaluationTransform, Photographs, TrainTransform, load_splits

PAPER = {
    "num_train_epochs": 100,
    "per_device_train_batch_size": 16,
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "learning_rate": 0.005,
    "weight_decay": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.2,  # a share of all steps
    "max_grad_norm": 0.0,  # no clipping
}
HABITS = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, "report_to": "none", "seed": 0}
HABITS["dataloader_num_workers"] = min(8, os.cpu_count() or 1)


@dataclass
class Arguments:
    data: str = field(metadata={"help": "As for `promptcam train`: photos/train/<class>/*.jpg and photos/test/... ."})
    backbone: str = field(metadata={"help": "Hub id or local folder of a ViT (DINO, ...) or DINOv2."})
    image_size: int | None = field(default=None, metadata={"help": "Pixels of a side. None: the backbone's."})
    prompt_dropout: float = field(default=0.1, metadata={"help": "Dropout on prompts."})
    drop_path_rate: float = field(default=0.1, metadata={"help": "Stochastic depth."})


def accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    """The share of images `(n,)` whose highest score of `(n, C)` is that of their class."""
    return {"accuracy": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}


def main() -> None:
    parser = HfArgumentParser((Arguments, TrainingArguments), description=__doc__.partition("\n")[0])
    parser.set_defaults(**PAPER, **HABITS)
    ours, args = parser.parse_args_into_dataclasses()
    folder = Path(args.output_dir)
    if args.resume_from_checkpoint is None and folder.is_dir() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty; expected a new --output-dir, or --resume-from-checkpoint.")

    set_seed(args.seed)  # prompts start at random
    splits = load_splits(ours.data)
    model = PromptCamForImageClassification.from_backbone(
        ours.backbone,
        image_size=ours.image_size,
        id2label=dict(enumerate(splits.names)),
        prompt_dropout=ours.prompt_dropout,
        drop_path_rate=ours.drop_path_rate,
    ).float()  # whatever the backbone was saved in
    image_processor = new_image_processor(model.config.backbone_config.image_size)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Photographs(splits.train, TrainTransform(image_processor)),
        eval_dataset=Photographs(splits.evaluation, EvaluationTransform(image_processor)),
        processing_class=image_processor,  # saved with every checkpoint, so that pipelines open it
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    result = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"Accuracy {result['eval_accuracy']:.2%} after {result['epoch']:g} epochs. Checkpoint: {folder}")


if __name__ == "__main__":
    main()
