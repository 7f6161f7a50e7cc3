"""Training prompts on a frozen backbone."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig

from .checkpoint import new_image_processor, save_checkpoint
from .data import EvaluationTransform, Photographs, TrainTransform, load_splits
from .modeling import PromptCamForImageClassification

FINAL_LEARNING_RATE = 1e-6
MOMENTUM = 0.9


@dataclass
class TrainingOptions:
    """
    What to train on what, and how; the defaults are the paper's recipe for the backbone's family.

    Args:
        data: Folder with `train/<class>/*` and `test/<class>/*` or `validation/<class>/*`.
        backbone: Id on the Hub or local folder of a ViT (DINO and the like) or DINOv2.
        output_dir: Folder for the checkpoint; new, or empty.
        epochs: Times through the training images.
        batch_size: Images a step, on each device.
        learning_rate: Of SGD. Default: 0.005, or 0.001 for DINOv2.
        warmup_epochs: Epochs over which the learning rate rises to that. Default: a fifth of the epochs, at most 20.
        weight_decay: Of SGD.
        image_size: Pixels of a side. Default: the backbone's own, or 224 for DINOv2.
        class_prompt_layer: See `PromptCamConfig`, as the four below.
        num_agnostic_prompts: Default: the number of classes.
        num_prompted_layers: Default: all.
        prompt_dropout: Default: 0.1, or 0 for DINOv2.
        drop_path_rate: Default: 0.1, or 0 for DINOv2.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`.
        num_workers: Processes that read and decode photographs. Default: one a core, at most 8.
        seed: Of all that is random.
    """

    data: str | os.PathLike
    backbone: str | os.PathLike
    output_dir: str | os.PathLike
    epochs: int = 100
    batch_size: int = 16
    learning_rate: float | None = None
    warmup_epochs: int | None = None
    weight_decay: float = 1e-3
    image_size: int | None = None
    class_prompt_layer: int | None = None
    num_agnostic_prompts: int | None = None
    num_prompted_layers: int | None = None
    prompt_dropout: float | None = None
    drop_path_rate: float | None = None
    mixed_precision: str = "no"
    num_workers: int | None = None
    seed: int = 0


def train(arguments: TrainingOptions) -> dict[str, float]:
    """
    Train Prompt-CAM on an image folder, and write a checkpoint that `pipeline("prompt-cam")` opens, after every epoch
    anew. Runs as it is, or under `accelerate launch`.

    Returns:
        The last evaluation: `{"epoch", "train_loss", "loss", "accuracy"}`, the accuracy in [0, 1].

    Raises:
        ValueError: If an argument or the data do not fit.
        FloatingPointError: If the loss stops being finite.
    """
    output_dir = Path(arguments.output_dir)
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not empty; expected a new folder to write the checkpoint to.")
    for name in ("epochs", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)}: expected 1 or more.")
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    set_seed(arguments.seed)

    splits = load_splits(arguments.data)
    train_split, evaluation_split, names = splits.train, splits.evaluation, splits.names
    if len(train_split) < arguments.batch_size:
        raise ValueError(
            f"batch_size={arguments.batch_size} is more than the {len(train_split)} training images of "
            f"{arguments.data}."
        )
    model = _new_model(arguments, names)
    image_processor = new_image_processor(model.config.backbone_config.image_size)
    cores = os.cpu_count() or 1
    num_workers = min(8, cores) if arguments.num_workers is None else arguments.num_workers
    train_loader, evaluation_loader = (
        DataLoader(
            Photographs(split, transform),
            batch_size=arguments.batch_size,
            shuffle=is_train,
            drop_last=is_train,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=accelerator.device.type == "cuda",
        )
        for split, transform, is_train in (
            (train_split, TrainTransform(image_processor), True),
            (evaluation_split, EvaluationTransform(image_processor), False),
        )
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_dinov2 = model.config.backbone_config.model_type == "dinov2"
    peak = arguments.learning_rate if arguments.learning_rate is not None else (0.001 if is_dinov2 else 0.005)
    optimizer = torch.optim.SGD(trainable, lr=peak, momentum=MOMENTUM, weight_decay=arguments.weight_decay)
    rates = list(learning_rates(arguments.epochs, peak, arguments.warmup_epochs))
    model, optimizer, train_loader, evaluation_loader = accelerator.prepare(
        model, optimizer, train_loader, evaluation_loader
    )
    accelerator.print(
        f"{len(train_split)} training and {len(evaluation_split)} evaluation images of {len(names)} classes; "
        f"{sum(parameter.numel() for parameter in trainable):,} trainable parameters on {arguments.backbone}"
    )

    result: dict[str, float] = {}
    steps = tqdm(
        total=arguments.epochs * len(train_loader),
        unit="step",
        disable=not accelerator.is_main_process,
        smoothing=0.05,
    )
    with steps:
        for epoch, rate in enumerate(rates, start=1):
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train()
            train_loss = 0.0
            for batch in train_loader:
                loss = model(**batch).loss
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(
                        f"The loss is {loss.item()} in epoch {epoch}; try a lower learning rate than {peak}, or "
                        "mixed_precision='no'."
                    )
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                train_loss += loss.item() / len(train_loader)
                steps.set_postfix(epoch=epoch, loss=f"{loss.item():.3f}", lr=f"{rate:.2g}", refresh=False)
                steps.update()
            result = {"epoch": epoch, "train_loss": train_loss, **evaluate(model, evaluation_loader, accelerator)}
            if accelerator.is_main_process:
                steps.write(
                    f"epoch {epoch:3}  training loss {train_loss:.4f}  evaluation loss {result['loss']:.4f}  "
                    f"accuracy {result['accuracy']:.2%}"
                )
                save_checkpoint(accelerator.unwrap_model(model), image_processor, output_dir)
                with open(output_dir / "training_log.jsonl", "a") as log:
                    log.write(json.dumps(result | {"learning_rate": rate}) + "\n")
    return result


def _new_model(arguments: TrainingOptions, names: list[str]) -> PromptCamForImageClassification:
    """A model for these classes, its position encoding at the size that it is trained at."""
    try:
        is_dinov2 = AutoConfig.from_pretrained(arguments.backbone).model_type == "dinov2"
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"backbone={arguments.backbone}: cannot be opened ({reason})") from None
    rate = 0.0 if is_dinov2 else 0.1
    given = {
        name: getattr(arguments, name)
        for name in ("class_prompt_layer", "num_agnostic_prompts", "num_prompted_layers")
        if getattr(arguments, name) is not None
    }
    return PromptCamForImageClassification.from_backbone(
        arguments.backbone,
        image_size=arguments.image_size or (224 if is_dinov2 else None),
        id2label=dict(enumerate(names)),
        prompt_dropout=rate if arguments.prompt_dropout is None else arguments.prompt_dropout,
        drop_path_rate=rate if arguments.drop_path_rate is None else arguments.drop_path_rate,
        **given,
    )


def learning_rates(epochs: int, peak: float, warmup_epochs: int | None = None) -> Iterator[float]:
    """The learning rate of each epoch: linear from 0 up to `peak` over the warm-up (a fifth of the epochs, at most 20),
    then on a cosine over all epochs down to 1e-6."""
    warmup_epochs = min(20, epochs // 5) if warmup_epochs is None else warmup_epochs
    for epoch in range(1, epochs + 1):
        if epoch <= warmup_epochs:
            yield peak * epoch / warmup_epochs
        else:
            cosine = (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
            yield FINAL_LEARNING_RATE + (peak - FINAL_LEARNING_RATE) * cosine


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> dict[str, float]:
    """Mean cross-entropy and accuracy in [0, 1] over a split, each image counted once on any number of processes."""
    model.eval()
    loss, correct, count = 0.0, 0, 0
    for batch in loader:
        logits, labels = accelerator.gather_for_metrics((model(batch["pixel_values"]).logits.float(), batch["labels"]))
        loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return {"loss": loss / count, "accuracy": correct / count}
