"""Training prompts on a frozen backbone, on any number of devices, so that it can be left running."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, find_executable_batch_size, gather_object, set_seed
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import AutoConfig

from ..checkpoint import new_image_processor, save_checkpoint
from ..data.photographs import EvaluationTransform, Photographs, Splits, TrainTransform, find_unreadable, load_splits
from ..evaluation.prediction import EVALUATION_BATCH_SIZE, Predictions, metrics, predict
from ..evaluation.report import write_report
from ..files import write_atomically
from ..modeling import PromptCamForImageClassification
from ..share.hub import check_can_push, push
from ..share.model_card import write_model_card
from .feature_cache import CachedFeatures, check_has_frozen_layers
from .options import RECIPE, TrainingOptions, load_recipe
from .state import TrainingLog, load_newest_state, random_states, save_state, set_random_states
from .views import Views, order_of_epoch

FINAL_LEARNING_RATE = 1e-6
MOMENTUM = 0.9
BEST, EVALUATION, SKIPPED = "best", "evaluation", "skipped_images.json"


def train(
    options: TrainingOptions, output_dir: str | os.PathLike, features_dir: str | os.PathLike | None = None
) -> dict[str, Any]:
    """
    Train Prompt-CAM, as it is or under `accelerate launch`. Into `output_dir` go

    - the last checkpoint, which `pipeline("prompt-cam")` opens, with its model card, and the best one in `best/`;
    - `recipe.yaml` with all options, `training_log.jsonl`, and the last evaluation in `evaluation/`;
    - `states/`, from which `resume` goes on.

    Args:
        output_dir: New or empty folder.
        features_dir: Where `cache_features` keeps them. Default: with all others, for the next run on the same data.

    Returns:
        The last evaluation: `{"epoch", "step", "train_loss", "loss", "accuracy", "top5_accuracy", ...}`.

    Raises:
        ValueError: If an option or the data do not fit.
        OSError: If something cannot be read or written.
        FloatingPointError: If the loss stops being finite.
    """
    output_dir = Path(output_dir)
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir())):
        again = f", or --resume {output_dir}" if (output_dir / RECIPE).exists() else ""
        raise ValueError(f"{output_dir} exists and is not empty; expected a new folder to write to{again}.")
    return _Run(options, output_dir, None if features_dir is None else Path(features_dir)).go()


def resume(output_dir: str | os.PathLike) -> dict[str, Any]:
    """
    Go on with a run that was interrupted, from its newest state; on a CPU, with as many processes and threads as
    before, to the same weights bit by bit as if nothing had happened.

    Args:
        output_dir: The run's folder.

    Returns:
        As `train`.

    Raises:
        ValueError: If there is no run in it.
    """
    recipe = Path(output_dir) / RECIPE
    if not recipe.exists():
        raise ValueError(f"{output_dir} has no {RECIPE}, so there is no run to resume; start one with --output-dir.")
    return _Run(TrainingOptions(**load_recipe(recipe)), Path(output_dir)).go()


class _Run:
    """One training run, from its options to the checkpoint on the Hub."""

    def __init__(self, options: TrainingOptions, output_dir: Path, features_dir: Path | None = None):
        if options.data is None or options.backbone is None:
            name = "data" if options.data is None else "backbone"
            raise ValueError(f"{name} is not given: pass --{name}, or a --recipe that sets it.")
        _check_tracker(options.report_to)
        self.options = options = options.resolved(_model_type(options.backbone))
        self.output_dir, self.features_dir = output_dir, features_dir
        self.epoch_loss = 0.0  # of the present epoch's steps so far, divided by all its steps
        self.best: dict[str, Any] | None = None  # evaluation so far
        self.accelerator = Accelerator(
            mixed_precision=options.mixed_precision, log_with=options.report_to, project_dir=output_dir / "trackers"
        )
        self.is_main = self.accelerator.is_main_process
        parts = self.accelerator.num_processes * options.gradient_accumulation_steps
        if options.batch_size % parts:
            raise ValueError(
                f"batch_size={options.batch_size} cannot be divided among {self.accelerator.num_processes} devices and "
                f"gradient_accumulation_steps={options.gradient_accumulation_steps}; expected a multiple of {parts}."
            )
        if options.push_to_hub is not None and self.is_main:
            check_can_push(options.push_to_hub)

        with self.accelerator.main_process_first():  # others find what it has prepared in the cache
            splits = load_splits(
                _given(options.data),
                image_column=options.image_column,
                label_column=options.label_column,
                label_map=options.label_map,
            )
        set_seed(options.seed)
        self.model = _new_model(options, splits.names)
        self.image_processor = new_image_processor(self.model.config.backbone_config.image_size)
        self.transform = TrainTransform(self.image_processor)
        if options.gradient_checkpointing:
            # The first is its name in newer releases of transformers
            getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)()
        if options.cache_features:
            check_has_frozen_layers(self.model)
        if options.push_to_hub is not None and options.prompts_only and Path(_given(options.backbone)).exists():
            raise ValueError(
                f"prompts_only with push_to_hub: others cannot fetch the backbone from the folder {options.backbone}; "
                "push it first and train on its id, or leave prompts_only out."
            )

        # From here on something is written; until there is something to resume, an error leaves nothing behind
        made_folder = not output_dir.exists()
        self.accelerator.wait_for_everyone()
        if self.is_main:
            output_dir.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        try:
            self.state = load_newest_state(output_dir)
            self.splits, skipped = self._without_unreadable(splits)
            self._check_same_data()
            self.steps_per_epoch = len(self.splits.train) // options.batch_size
            if self.steps_per_epoch == 0:
                raise ValueError(
                    f"batch_size={options.batch_size} is more than the {len(self.splits.train)} training images of "
                    f"{options.data}."
                )
            self._fit_into_memory()
            self.views = self._views()
            if self.is_main:
                if skipped is not None:
                    write_atomically(output_dir / SKIPPED, json.dumps(skipped, indent=1))
                self.options.save(output_dir / RECIPE)
        except BaseException:
            if self.is_main and made_folder and not any(output_dir.iterdir()):
                output_dir.rmdir()
            raise

    # --- What there is before the first step

    def _without_unreadable(self, splits: Splits) -> tuple[Splits, dict[str, dict[str, str]] | None]:
        """The data without the images that cannot be read, if these are to be skipped, and a record of them."""
        record = self.output_dir / SKIPPED
        skipped: dict[str, dict[str, str]] = {"train": {}, "evaluation": {}}  # index -> why it cannot be read
        if self.is_main:
            if record.exists():
                skipped = json.loads(record.read_text())
            elif self.state is None:
                for name in skipped:
                    bad = find_unreadable(getattr(splits, name), _given(self.options.num_workers))
                    skipped[name] = {str(index): message for index, message in bad.items()}
        (skipped,) = broadcast_object_list([skipped])
        messages = [message for found in skipped.values() for message in found.values()]
        if not messages:
            return splits, None
        if self.options.on_bad_image == "stop":
            more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
            raise ValueError(f"{messages[0]}{more} Mend or remove it, or pass --on-bad-image skip.")
        for name, found in skipped.items():
            split = getattr(splits, name)
            rows = [index for index in range(len(split)) if str(index) not in found]
            splits = replace(splits, **{name: split.select(rows)})
        lost = set(range(len(splits.names))) - set(splits.train["label"])
        if lost:
            names = ", ".join(splits.names[label] for label in sorted(lost))
            raise ValueError(f"No readable training images of {names}.")
        self.accelerator.print(f"Skipped {len(messages)} images that cannot be read; they are listed in {record}")
        return splits, skipped

    def _check_same_data(self) -> None:
        """Whether a run goes on with the data that it began with."""
        if self.state is None:
            return
        (images, names), found = self.state["data"], (len(self.splits.train), self.splits.names)
        if (images, names) != found:
            raise ValueError(
                f"{self.options.data} has changed since the run began, with {images} training images of {len(names)} "
                f"classes; now it has {found[0]} of {len(found[1])}. Put it back, or start a new run."
            )

    def _fit_into_memory(self) -> None:
        """Raise `gradient_accumulation_steps` until forward and backward fit into memory, if that is asked for."""
        if not self.options.find_batch_size or self.state is not None:
            return
        share = self.options.batch_size // self.accelerator.num_processes
        smaller = (size for size in range(share - 1, -1, -1) if size == 0 or share % size == 0)
        image_size, device = self.image_processor.size, self.accelerator.device

        @find_executable_batch_size(starting_batch_size=share, reduce_batch_size_fn=lambda: next(smaller))
        def fitting(size: int) -> int:
            pixels = torch.zeros(size, 3, image_size["height"], image_size["width"], device=device)
            labels = torch.zeros(size, dtype=torch.long, device=device)
            with self.accelerator.autocast():
                self.model(pixels, labels).loss.backward()
            return size

        self.model.to(device).train()
        try:
            size = fitting()
        except RuntimeError as error:
            if "reached zero" not in str(error):
                raise
            advice = "a smaller --image-size" if self.options.gradient_checkpointing else "--gradient-checkpointing"
            raise ValueError(f"Not even a single image fits into memory; try {advice}.") from None
        self.model.zero_grad()
        size = min(gather_object([size]))
        self.options = replace(self.options, gradient_accumulation_steps=share // size, find_batch_size=False)
        self.accelerator.print(f"{size} images at a time on each device, of {self.options.batch_size} a step")

    def _views(self) -> Views | CachedFeatures:
        """What the model is shown: augmented photographs, or the features of some."""
        options, num_workers = self.options, _given(self.options.num_workers)
        views = Views(self.splits.train, self.transform, options.seed)
        if not options.cache_features:
            return views
        self.model.to(self.accelerator.device)
        return CachedFeatures(
            self.model, views, options.cache_features, num_workers, self.accelerator, self.features_dir
        )

    def _training_loader(self, first_step: int) -> DataLoader:
        """This process's share of all batches of the run from `first_step` (counted from 0) on."""
        return DataLoader(
            self.views,
            batch_sampler=_Batches(len(self.views), first_step, self.options, self.accelerator),
            num_workers=_given(self.options.num_workers) if isinstance(self.views, Views) else 0,  # nothing to decode
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # otherwise it would draw from the global one
        )

    # --- The loop

    def go(self) -> dict[str, Any]:
        """Train from the first step, or the one after the state that there is, to the last."""
        options, accelerator = self.options, self.accelerator
        self.trainable = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        accelerator.gradient_accumulation_steps = options.gradient_accumulation_steps
        self.wrapped, self.optimizer = accelerator.prepare(self.model, _new_optimizer(options, self.trainable))
        if options.compile:
            self.model.compile()
        if options.report_to is not None:
            accelerator.init_trackers("promptcam", config={k: v for k, v in asdict(options).items() if v is not None})
        rates = list(learning_rates(options.epochs, _given(options.learning_rate), options.warmup_epochs))
        num_steps = options.epochs * self.steps_per_epoch
        first_step = 0 if self.state is None else self.state["step"]
        batches = iter(self._training_loader(first_step))
        set_seed(options.seed, device_specific=True)
        self._restore()
        log = TrainingLog(self.output_dir, first_step) if self.is_main else None
        num_trainable = sum(weight.numel() for weight in self.trainable.values())
        accelerator.print(
            f"{len(self.splits.train)} training and {len(self.splits.evaluation)} evaluation images of "
            f"{len(self.splits.names)} classes; {num_trainable:,} trainable parameters on {options.backbone}"
            + (f"; resumed after step {first_step}" if first_step else "")
        )

        result: dict[str, Any] = {}
        predictions = None
        progress = tqdm(
            total=num_steps * options.batch_size,
            initial=first_step * options.batch_size,
            unit="img",
            disable=not self.is_main,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file is not a screen
        )
        with progress:
            started, images = time.perf_counter(), 0
            for step in range(first_step + 1, num_steps + 1):
                epoch = (step - 1) // self.steps_per_epoch + 1
                for group in self.optimizer.param_groups:
                    group["lr"] = rates[epoch - 1]
                row = {"epoch": epoch, "step": step, **self._step(batches, epoch, step)}
                self.epoch_loss += row["train_loss"] / self.steps_per_epoch
                self._log(log, row)
                loss, rate = f"{row['train_loss']:.3f}", f"{rates[epoch - 1]:.2g}"
                progress.set_postfix(epoch=epoch, step=step, loss=loss, lr=rate, refresh=False)
                progress.update(options.batch_size)
                images += options.batch_size

                ends_epoch = step % self.steps_per_epoch == 0
                if ends_epoch and (epoch % options.evaluate_every == 0 or step == num_steps):
                    speed = images / (time.perf_counter() - started)
                    predictions = self._predict()
                    result = {"epoch": epoch, "step": step, "train_loss": self.epoch_loss, **metrics(predictions)}
                    self._log(log, result | {"images_per_second": round(speed, 1)})
                    is_best = self.best is None or _rank(result) > _rank(self.best)
                    if self.is_main:
                        progress.write(_summary(result) + ("  best" if is_best else ""))
                        self._save_checkpoint(is_best)
                    self.best = result if is_best else self.best
                if ends_epoch:
                    self.epoch_loss = 0.0
                if ends_epoch or (options.save_every is not None and step % options.save_every == 0):
                    self._save_state(step)
                if ends_epoch:
                    started, images = time.perf_counter(), 0
        if predictions is None:  # resumed after its last step
            predictions = self._predict()
            result = {"epoch": options.epochs, "step": num_steps, **metrics(predictions)}
            if self.is_main:
                self._save_checkpoint(is_best=False)
        if self.is_main:
            self._finish(predictions)
        accelerator.wait_for_everyone()
        # The wrapped model goes before the process group does: in the other order it would be the last to hold the
        # group, and would wait, with Python's lock, for a thread of the group that waits for that lock
        del self.wrapped, self.optimizer
        accelerator.free_memory()
        accelerator.end_training()
        return result

    def _step(self, batches: Iterator[dict[str, torch.Tensor]], epoch: int, step: int) -> dict[str, Any]:
        """One optimiser step: the mean loss over all devices' parts of the batch, and the learning rate."""
        self.model.train()
        loss = 0.0
        for _ in range(self.options.gradient_accumulation_steps):
            batch = next(batches)
            indices = batch.pop("index")
            batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            if "pixel_values" in batch:
                batch["pixel_values"] = self.transform.normalise(batch["pixel_values"])
            with self.accelerator.accumulate(self.wrapped):
                part = self.wrapped(**batch).loss
                mean = self.accelerator.gather(part.detach().float()).mean().item()
                if not math.isfinite(mean):
                    self._stop_at(mean, indices, epoch, step)
                self.accelerator.backward(part)
                self.optimizer.step()
                self.optimizer.zero_grad()
            loss += mean / self.options.gradient_accumulation_steps
        row = {"train_loss": loss, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        # Where fp16 gradients overflow, the scaler leaves a step out and lowers its scale
        return row | ({"skipped": True} if self.accelerator.optimizer_step_was_skipped else {})

    def _stop_at(self, loss: float, indices: torch.Tensor, epoch: int, step: int) -> NoReturn:
        photographs = Photographs(self.splits.train, self.transform)
        names = gather_object([photographs.name(index) for index in indices.tolist()])
        full = "" if self.options.mixed_precision == "no" else ", or mixed_precision='no'"
        raise FloatingPointError(
            f"The loss is {loss} in step {step} (epoch {epoch}); try a lower learning rate than "
            f"{self.options.learning_rate}{full}. The images of this step: {', '.join(names)}."
        )

    def _predict(self) -> Predictions:
        return predict(
            self.model,
            Photographs(self.splits.evaluation, EvaluationTransform(self.image_processor)),
            batch_size=EVALUATION_BATCH_SIZE,
            num_workers=_given(self.options.num_workers),
            accelerator=self.accelerator,
            progress=False,
        )

    # --- What is written

    def _log(self, log: TrainingLog | None, row: dict[str, Any]) -> None:
        if log is not None:
            log.write(row)
        self.accelerator.log({key: row[key] for key in row if key not in ("epoch", "step")}, step=row["step"])

    def _save_checkpoint(self, is_best: bool) -> None:
        for folder in (self.output_dir, self.output_dir / BEST) if is_best else (self.output_dir,):
            save_checkpoint(self.model, self.image_processor, folder, prompts_only=self.options.prompts_only)

    def _save_state(self, step: int) -> None:
        states = gather_object([random_states()])
        if self.is_main:
            scaler = self.accelerator.scaler
            state = {
                "step": step,
                "data": (len(self.splits.train), self.splits.names),
                "epoch_loss": self.epoch_loss,
                "best": self.best,
                "weights": {name: weight.detach() for name, weight in self.trainable.items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random_states": states,
            }
            save_state(state, self.output_dir, self.options.save_total_limit)

    def _restore(self) -> None:
        """Put everything as the state that is resumed from had it."""
        state = self.state
        if state is None:
            return
        self.epoch_loss, self.best = state["epoch_loss"], state["best"]
        with torch.no_grad():
            for name, weight in self.trainable.items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        processes = len(state["random_states"])
        if processes == self.accelerator.num_processes:
            set_random_states(state["random_states"][self.accelerator.process_index])
        else:
            self.accelerator.print(
                f"The run had {processes} processes and goes on with {self.accelerator.num_processes}: dropout will be "
                "drawn anew."
            )

    def _finish(self, predictions: Predictions) -> None:
        """Report, pictures, model card, and what is asked for on the Hub."""
        options, splits = self.options, self.splits
        photographs = Photographs(splits.evaluation, EvaluationTransform(self.image_processor))
        source = {"model": self.output_dir.resolve().name, "data": splits.name, "split": splits.split}
        write_report(
            predictions,
            photographs,
            self.model,
            self.image_processor,
            self.output_dir / EVALUATION,
            source | {"hub_id": splits.hub_id},
        )
        write_model_card(self.output_dir, license=options.license)
        if options.push_to_hub is not None:
            try:
                address = push(self.output_dir, options.push_to_hub, private=options.private or None)
            except (ValueError, OSError) as error:
                raise OSError(
                    f"The training is complete, in {self.output_dir}, but could not be pushed: {error} Then: promptcam "
                    f"push {self.output_dir} {options.push_to_hub}"
                ) from None
            self.accelerator.print(f"Pushed: {address}")


class _Batches(Sampler):
    """The batches of a run: lists of (epoch, index of the image), all parts of a step one after the other. An epoch's
    order depends on seed and epoch alone, and a batch is the same whatever the number of processes that share it."""

    def __init__(self, num_images: int, first_step: int, options: TrainingOptions, accelerator: Accelerator):
        self.num_images = num_images
        self.options = options
        self.parts, self.rank = options.gradient_accumulation_steps, accelerator.process_index
        self.processes = accelerator.num_processes
        self.steps_per_epoch = num_images // options.batch_size
        self.steps = range(first_step, options.epochs * self.steps_per_epoch)

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        size = self.options.batch_size // (self.parts * self.processes)
        for step in self.steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = order_of_epoch(self.num_images, self.options.seed, epoch)
            start = step % self.steps_per_epoch * self.options.batch_size
            for part in range(self.parts):
                first = start + (part * self.processes + self.rank) * size
                yield [(epoch, index) for index in order[first : first + size]]


# --- Parts


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


def _model_type(backbone: str) -> str:
    if not Path(backbone).exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", backbone):
        raise ValueError(f"backbone={backbone}: no such folder, and no Hub id such as facebook/dino-vitb16.")
    try:
        return AutoConfig.from_pretrained(backbone).model_type
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"backbone={backbone}: cannot be opened ({reason})") from None


def _new_model(options: TrainingOptions, names: list[str]) -> PromptCamForImageClassification:
    """A model for these classes, in float32, its position encoding at the size that it is trained at."""
    prompts = ("class_prompt_layer", "num_agnostic_prompts", "num_prompted_layers")
    rates = ("prompt_dropout", "drop_path_rate", "patch_dropout")
    model = PromptCamForImageClassification.from_backbone(
        _given(options.backbone),
        image_size=options.image_size,
        id2label=dict(enumerate(names)),
        **{name: getattr(options, name) for name in prompts + rates if getattr(options, name) is not None},
    )
    return model.float()


def _new_optimizer(options: TrainingOptions, trainable: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": _given(options.learning_rate), "weight_decay": options.weight_decay}
    if options.optimizer == "adamw":
        return torch.optim.AdamW(trainable.values(), **settings)
    return torch.optim.SGD(trainable.values(), momentum=MOMENTUM, **settings)


def _check_tracker(name: str | None) -> None:
    if name is None:
        return
    try:
        distribution(name)
    except PackageNotFoundError:
        raise ValueError(f"report_to={name}: the package {name} is not installed; `pip install {name}`.") from None


def _given(value: Any) -> Any:
    assert value is not None  # `TrainingOptions.resolved` has seen to it
    return value


def _rank(result: dict[str, Any]) -> tuple[float, float]:
    """Of evaluations, the best has the highest accuracy and, of equals, the lowest loss."""
    return result["accuracy"], -result["loss"]


def _summary(result: dict[str, Any]) -> str:
    return (
        f"epoch {result['epoch']:3}  training loss {result['train_loss']:.4f}  evaluation loss {result['loss']:.4f}  "
        f"accuracy {result['accuracy']:.2%}  top-5 {result['top5_accuracy']:.2%}"
    )
