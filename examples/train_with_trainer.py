"""Train Prompt-CAM with `transformers.Trainer`, for users who already have scripts for it.

    python examples/train_with_trainer.py --data photos/ --backbone facebook/dino-vitb16 --output-dir runs/orioles

All options of `TrainingArguments` are accepted. The backbone is frozen, so Trainer optimises only the prompts and the
score head. The result opens with `pipeline("prompt-cam", model="runs/orioles")`. Resume an interrupted run with
`--resume-from-checkpoint runs/orioles/checkpoint-40`. Trainer's sharding (FSDP, DeepSpeed) has not been tried with this
model.

The defaults are those of `promptcam train`, as far as Trainer supports them. Differences:

- The learning rate changes every step, not every epoch. The cosine starts after the warm-up, and ends at 0.
- The last batch of an epoch may be smaller than the others. `promptcam train` leaves it out.
- `--per-device-train-batch-size` counts the images of one device, `--batch-size` those of all devices.
- A resumed run may end with slightly different weights than an uninterrupted one.
- Checkpoints to resume from hold the whole backbone. One that was being written when the run was killed may be
  incomplete: resume from the one before.
- No training photographs are held out to calibrate the probabilities.
- Nothing is cached, so every step runs the whole backbone.
- Training is in float32 unless `--bf16` is given.
- Prompts start at the means of whole photographs, not of crops.
- There is no model card with the evaluation, and no check for unreadable photographs before training.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import EvalPrediction, HfArgumentParser, Trainer, TrainingArguments, set_seed

from promptcam_hf.data.photographs import EvaluationTransform, Photographs
from promptcam_hf.data.splits import load_splits
from promptcam_hf.files import check_new_folder
from promptcam_hf.training.class_start import start_at_class_means
from promptcam_hf.training.inputs import build_image_processor, build_model, build_train_transform, resolve_options
from promptcam_hf.training.optimization import new_loss
from promptcam_hf.training.options import TrainingOptions

RECIPE = {
    "num_train_epochs": 24,
    "per_device_train_batch_size": 16,
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "weight_decay": 1e-3,
    "label_smoothing_factor": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.2,  # a share of all steps
    "max_grad_norm": 0.0,  # no clipping
}
DEFAULTS = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, "report_to": "none", "seed": 0}
DEFAULTS["dataloader_num_workers"] = min(8, os.cpu_count() or 1)


@dataclass
class Arguments:
    data: str = field(metadata={"help": "As for `promptcam train`, such as a folder with train/<class>/*.jpg."})
    backbone: str = field(metadata={"help": "Hub id or local folder of a ViT (DINO, ...) or DINOv2."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the input in pixels. None: as `promptcam train`."}
    )
    num_prompted_layers: int | None = field(default=None, metadata={"help": "Prompt only the last N layers. None: 4."})


class PromptTrainer(Trainer):
    """Trainer with the loss of `promptcam train`: the true class must also beat its own prompt with blurred heads."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean, for Trainer to divide by accumulated batches
        self.loss_options = TrainingOptions(label_smoothing=self.args.label_smoothing_factor)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        labels = inputs["labels"]
        output = model(**inputs, blurred_classes=labels)
        loss = new_loss(self.loss_options, labels, output.logits.shape[1])
        value = loss(output.logits, labels, output.blurred_logits)
        return (value, output) if return_outputs else value


def accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    """Accuracy of scores `(n, C)` for labels `(n,)`."""
    return {"accuracy": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}


def main() -> None:
    parser = HfArgumentParser((Arguments, TrainingArguments), description=__doc__.partition("\n")[0])
    parser.set_defaults(**RECIPE, **DEFAULTS)
    ours, args = parser.parse_args_into_dataclasses()
    folder = Path(args.output_dir)
    if args.resume_from_checkpoint is None:
        try:
            check_new_folder(folder, ", or --resume-from-checkpoint")
        except ValueError as error:
            sys.exit(f"error: {error}")

    set_seed(args.seed)  # for the initial prompts
    splits = load_splits(ours.data)
    given = {"image_size": ours.image_size, "num_prompted_layers": ours.num_prompted_layers}
    options = resolve_options(TrainingOptions(backbone=ours.backbone, **given), None)
    model = build_model(options, None, splits.names)
    image_processor = build_image_processor(options, model)
    plain = Photographs(splits.train, EvaluationTransform(image_processor))
    start_at_class_means(model.to(args.device), plain, list(range(len(plain))), num_workers=args.dataloader_num_workers)
    trainer = PromptTrainer(
        model=model,
        args=args,
        train_dataset=Photographs(splits.train, build_train_transform(options, model, image_processor)),
        eval_dataset=Photographs(splits.evaluation, EvaluationTransform(image_processor)),
        processing_class=image_processor,  # saved with every checkpoint, which pipelines need
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    result = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"Accuracy {result['eval_accuracy']:.2%} after {result['epoch']:g} epochs. Checkpoint: {folder}")


if __name__ == "__main__":
    main()
