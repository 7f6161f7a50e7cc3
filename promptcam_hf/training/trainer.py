"""Training prompts on a frozen backbone, on any number of devices, unattended: a run can be killed and resumed."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..checkpoint import save_checkpoint
from ..data.division import SPLIT_FILE, joined
from ..data.duplicates import content_keys
from ..data.overview import overview
from ..data.photographs import EvaluationTransform, Photographs
from ..data.splits import Splits
from ..devices import accelerator_on, as_device
from ..evaluation.calibration import FEW_IMAGES, fit_temperature
from ..evaluation.prediction import Predictions, judge, metrics, predict, scores_of
from ..evaluation.report import report_source, write_report
from ..files import check_new_folder, write_atomically
from ..messages import counted
from ..modeling import PromptCamForImageClassification
from .batches import MicroBatches, check_batch_size, choose_batch_size
from .class_start import start_at_class_means
from .feature_cache import CachedFeatures, affordable_views
from .inputs import (
    build_image_processor,
    build_model,
    build_train_transform,
    check_precision,
    fingerprint,
    open_splits,
    resolve_options,
    skip_unreadable,
)
from .optimization import largest_micro_batch, learning_rates, new_loss, new_optimizer
from .options import RECIPE, TrainingOptions, load_run_options
from .state import (
    TrainingLog,
    check_same_run,
    load_newest_state,
    locked_folder,
    random_states,
    save_state,
    set_random_states,
)
from .validation import choose_held_out
from .views import PlainViews, Views

BEST, EVALUATION, SKIPPED = "best", "evaluation", "skipped_images.json"


class PromptCamTrainer:
    """
    Trains Prompt-CAM (Chowdhury et al., "Prompt-CAM", CVPR 2025), as it is or under `accelerate launch`.

    `output_dir` gets

    - the last checkpoint, which `pipeline("prompt-cam")` opens, and the best one in `best/`;
    - the evaluation of the last checkpoint in `evaluation/`;
    - `recipe.yaml` with all options, and `training_log.jsonl`;
    - `states/`, from which `resume` goes on.

    What is chosen along the way (the best checkpoint, an early end, the temperature of the probabilities) is chosen by
    photographs that are held out from the training split; the evaluation split is looked at once, at the end. In the
    last `options.final_epochs` nothing is chosen any more, and the photographs that were held out are used for
    training as well. With `options.validation_share=0`, the evaluation split takes their place, and the temperature
    stays as it is.

    [`train`][promptcam_hf.train] does the same, and then writes the model card and pushes to the Hub: the options
    `push_to_hub`, `private` and `license` are not used here.

    Args:
        options: What to train and how.
        output_dir: A new or empty folder for `train`, the folder of the interrupted run for `resume`.
        splits: Photographs, instead of those of `options.data`: splits of `datasets` by the names `train` and
            `validation`, `val` or `test`, whose columns `options.image_column` and `options.label_column` name where
            that is not clear, or what [`load_splits`][promptcam_hf.data.splits.load_splits] returns.
        model: A model to train, instead of a new one on `options.backbone`; see
            [`from_backbone`][promptcam_hf.PromptCamForImageClassification.from_backbone]. Its classes are those of the
            photographs, in this order. It is trained in place, in float32, from the prompts that it has.
        device: Where to train, such as `"cuda:1"` or `"cpu"`, or the number of a GPU; a run may be resumed elsewhere,
            in the precision that it began with. Default: the GPU, or those of `accelerate launch`, if there are any.
        features_dir: Folder for the feature cache (`options.cache_features`). Default: one in the Hugging Face cache
            that all runs share.
        on_step: Called on every process after each optimiser step with the row that goes into the log: `{"step",
            "epoch", "train_loss", "learning_rate"}`, steps and epochs counted from 1. If it raises an exception, the
            run ends with it and can be resumed.

    Attributes (from the start of training on):
        model: The model, with the weights of the latest step.
        options: The options with all defaults filled in.
        splits: The photographs, without those that were skipped.
        validation: The photographs of the training split that are held out; None if there are none.
        kept: The rows of the others in the training split.
        accelerator: Devices and processes.

    Example:

    ```python
    >>> photographs = datasets.load_dataset("timm/oxford-iiit-pet")
    >>> options = TrainingOptions(backbone="facebook/dino-vitb16", epochs=30, label_column="label")
    >>> trainer = PromptCamTrainer(options, "runs/pets", splits=photographs)
    >>> trainer.train()["accuracy"]
    ```
    """

    model: PromptCamForImageClassification
    splits: Splits
    validation: datasets.Dataset | None
    kept: list[int]
    accelerator: Accelerator
    batch_size: int
    step: int  # the latest one, counted from 1; 0 before the first
    steps_per_epoch: int
    epoch_loss: float  # of the steps of this epoch so far, divided by the number of all its steps
    best: dict[str, Any] | None  # evaluation so far

    def __init__(
        self,
        options: TrainingOptions,
        output_dir: str | os.PathLike,
        splits: datasets.DatasetDict | Splits | None = None,
        model: PromptCamForImageClassification | None = None,
        *,
        device: str | int | torch.device | None = None,
        features_dir: str | os.PathLike | None = None,
        on_step: Callable[[dict[str, Any]], object] | None = None,
    ):
        self.options = options
        self.output_dir = Path(output_dir)
        self.features_dir = None if features_dir is None else Path(features_dir)
        self.on_step = on_step
        self._device = as_device(device)
        self._given_splits, self._given_model = splits, model

    def train(self) -> dict[str, Any]:
        """
        Train from the beginning.

        Returns:
            The evaluation of the last checkpoint: `epoch`, `step`, `train_loss` (mean over the epoch), and the metrics
            of the evaluation split: see `prediction.metrics`.

        Raises:
            ValueError: If options, photographs and model do not fit each other, `output_dir` is not empty, or another
                process trains in it.
            OSError: If something cannot be read or written.
            FloatingPointError: If the loss stops being finite.
        """
        hint = f", or --resume {self.output_dir}" if (self.output_dir / RECIPE).exists() else ""
        check_new_folder(self.output_dir, hint)
        return self._run(is_new=True)

    def resume(self) -> dict[str, Any]:
        """
        Go on with an interrupted run from its newest state, with the options in its `recipe.yaml`. On a CPU, with as
        many processes and threads as before, it ends with the same weights, bit by bit, as an uninterrupted run.

        Returns:
            As `train`.

        Raises:
            ValueError: If there is no run in `output_dir`, another process trains in it, or options, photographs,
                backbone or model are not those it began with.
            OSError, FloatingPointError: As `train`.
        """
        recipe = load_run_options(self.output_dir)
        for name, value in self.options:
            began_with = getattr(recipe, name)
            is_searched = self.options.find_batch_size and name in ("find_batch_size", "gradient_accumulation_steps")
            if value not in (None, began_with) and not is_searched:
                raise ValueError(
                    f"{name}={value!r}, but the run in {self.output_dir} began with {began_with!r}; expected the same "
                    "options, or a new folder."
                )
        for name, given in (("data", self._given_splits), ("backbone", self._given_model)):
            if getattr(recipe, name) is None and given is None:
                raise ValueError(
                    f"The run in {self.output_dir} began with splits or a model that were passed to PromptCamTrainer; "
                    "pass them again, and call its resume()."
                )
        self.options = recipe
        return self._run(is_new=False)

    # --- Before the first step

    def _run(self, is_new: bool) -> dict[str, Any]:
        """Check all that can be checked, then train, with the folder locked. Until there is a state to resume from, an
        error leaves nothing behind."""
        self._open()
        with locked_folder(self.output_dir, is_new) if self.is_main else nullcontext():
            self.accelerator.wait_for_everyone()  # for the folder
            self._prepare()
            try:
                return self._train()
            finally:
                vars(self.model).pop("forward", None)  # which Accelerate replaced by one in mixed precision

    def _open(self) -> None:
        """Open what is given: options, photographs, model."""
        options = resolve_options(self.options, self._given_model)
        self.accelerator = accelerator_on(
            self._device,
            mixed_precision=options.mixed_precision or "fastest",
            log_with=options.report_to,
            project_dir=self.output_dir / "trackers",
        )
        self.is_main = self.accelerator.is_main_process
        precision = self.accelerator.mixed_precision
        self.options = options = options.replace(mixed_precision=precision)
        check_precision(precision, self.accelerator.device.type)
        check_batch_size(options, self.accelerator.num_processes)
        with self.accelerator.main_process_first():  # the other processes find in the cache what it has prepared
            splits = open_splits(options, self._given_splits, self.output_dir)
        set_seed(options.seed)
        self.model = build_model(options, self._given_model, splits.names)
        self.image_processor = build_image_processor(options, self.model)
        self.train_transform = build_train_transform(options, self.model, self.image_processor)
        self.evaluation_transform = EvaluationTransform(self.image_processor)
        self.backbone_fingerprint = fingerprint(self.model.backbone)
        self.splits = splits

    def _prepare(self) -> None:
        """Compare with the state to resume from, if there is one, and build what training needs."""
        options = self.options
        self.state = load_newest_state(self.output_dir)
        self.splits, skipped = skip_unreadable(
            self.splits, self.output_dir / SKIPPED, options, self.accelerator, is_resumed=self.state is not None
        )
        if self.is_main and self.state is None:
            messages = [message for images in (skipped or {}).values() for message in images.values()]
            print(overview(self.splits, messages))
        self._hold_out()
        if self.state is not None:
            data = (len(self.splits.train), self.splits.names)
            check_same_run(self.state, self.output_dir, options, self.backbone_fingerprint, data)
        self.labels = torch.tensor(self.splits.train["label"][:])
        self.batch_size = choose_batch_size(options, len(self.kept), self.accelerator.num_processes)
        self.options = options.replace(batch_size=self.batch_size)
        self.model.to(self.accelerator.device)
        self._fit_into_memory()
        self._build_views()
        if self._given_model is None and options.prompt_init == "mean_cls" and self.state is None:
            start_at_class_means(
                self.model,
                self.views,
                [(0, index) for index in self.kept],
                normalise=self.train_transform.normalise,
                num_workers=self._workers_for(self.views),
                accelerator=self.accelerator,
            )
        if self.is_main:
            if skipped is not None:
                write_atomically(self.output_dir / SKIPPED, json.dumps(skipped, indent=1))
            if self.splits.division is not None:
                write_atomically(self.output_dir / SPLIT_FILE, self.splits.division)
            self.options.save(self.output_dir / RECIPE)

    def _fit_into_memory(self) -> None:
        """Raise `gradient_accumulation_steps` until a micro-batch fits into memory, if the options ask for it."""
        if not self.options.find_batch_size or self.state is not None:
            return
        most = self.batch_size // self.accelerator.num_processes
        size = largest_micro_batch(self.model, self.train_transform.size, most, self.accelerator)
        self.options = self.options.replace(gradient_accumulation_steps=most // size, find_batch_size=False)
        self.accelerator.print(f"Micro-batches of {counted(size, 'image')} on each device, {self.batch_size} per step")

    def _hold_out(self) -> None:
        """Choose the photographs for `validation`: groups and copies of a photograph as a whole. `kept` has the rows of
        the others. `last_watched` is the last epoch after which something is chosen."""
        train, options = self.splits.train, self.options
        groups = train["group"][:] if "group" in train.column_names else [None] * len(train)
        groups = joined(groups, content_keys([train])[0])
        rows = choose_held_out(train["label"][:], options.validation_share, options.seed, groups)
        self.kept = sorted(set(range(len(train))) - set(rows))
        self.validation, self.last_watched = None, options.epochs
        if rows:
            self.validation = train.select(rows)
            self.last_watched -= options.final_epochs or 0
            if len(rows) < FEW_IMAGES:
                self.accelerator.print(
                    f"Only {counted(len(rows), 'photograph')} held out: chance has a part in what becomes {BEST}/, "
                    "and calibration makes no answer surer. A larger --validation-share improves both."
                )
        elif options.validation_share:
            self.accelerator.print(
                f"No class has enough training images to hold out {options.validation_share:.0%} of them: "
                f"{self.splits.split}/ decides which checkpoint is the best, and probabilities are not calibrated."
            )

    def _build_views(self) -> None:
        """`views`, what the model sees in training: augmented photographs, or cached features of them. `watched`, what
        it is evaluated on along the way: the photographs that are held out, or the evaluation split, or cached features
        of these, if they are evaluated more than once."""
        options = self.options
        self.views: Views | CachedFeatures = Views(self.splits.train, self.train_transform, options.seed)
        watched = self.splits.evaluation if self.validation is None else self.validation
        self.watched: Dataset = Photographs(watched, self.evaluation_transform)
        if options.cache_features is None:
            size = self.train_transform.size
            found = affordable_views(self.model, len(self.views), size, options.epochs, self.features_dir)
            (found,) = broadcast_object_list([found])
            self.options = options = options.replace(cache_features=found)
        if not options.cache_features:
            return
        settings: dict[str, Any] = {"accelerator": self.accelerator, "folder": self.features_dir}
        settings["num_workers"] = self._workers_for(self.views)
        self.views = CachedFeatures(self.model, self.views, options.cache_features, **settings)
        if self.last_watched > options.evaluate_every:
            cached = CachedFeatures(self.model, PlainViews(watched, self.evaluation_transform), 1, **settings)
            rows: Any = [(0, index) for index in range(len(watched))]
            self.watched = Subset(cached, rows)

    def _workers_for(self, items: Dataset) -> int:
        """How many processes read them: none for cached features, which need no decoding."""
        return (self.options.num_workers or 0) if isinstance(items, Views | Photographs) else 0

    # --- The loop

    def _train(self) -> dict[str, Any]:
        """Train from the first step, or the one after the state, to the last."""
        options = self.options
        batches = self._start()
        predictions: Predictions | None = None  # of the weights as they are now, if they have been evaluated
        with self._progress_bar() as progress:
            timed_from, started = self.step, time.perf_counter()
            while self.step < options.epochs * self.steps_per_epoch:
                if self.step % self.steps_per_epoch == 0:
                    if self._stops_early():
                        break
                    self.epoch_loss = 0.0
                self.step += 1
                row = self._step(batches)
                predictions = None
                self.epoch_loss += row["train_loss"] / self.steps_per_epoch
                self._log(row)
                loss, rate = f"{row['train_loss']:.3f}", f"{row['learning_rate']:.2g}"
                progress.set_postfix(epoch=self.epoch, step=self.step, loss=loss, lr=rate, refresh=False)
                progress.update(self.batch_size)
                if self.on_step is not None:
                    self.on_step(row)

                ends_epoch = self.step % self.steps_per_epoch == 0
                if ends_epoch and self._is_watched():
                    images_per_second = (self.step - timed_from) * self.batch_size / (time.perf_counter() - started)
                    predictions = self._watch(images_per_second)
                elif ends_epoch and self.is_main:
                    tqdm.write(self._losses())
                if ends_epoch or (options.save_every is not None and self.step % options.save_every == 0):
                    self._save_state()
                if ends_epoch:
                    timed_from, started = self.step, time.perf_counter()
        return self._finish(predictions)

    def _watch(self, images_per_second: float) -> Predictions:
        """Evaluate along the way, and save the checkpoint. Fits the temperature to the photographs that are held out,
        if there are any."""
        if self.validation is None:
            predictions = predict(self.model, self.watched, **self._prediction_options(self.watched))
        else:
            batches = scores_of(self.model, self.watched, **self._prediction_options(self.watched))
            scores, labels = (torch.cat(column) for column in zip(*batches, strict=True))
            self.model.config.temperature = fit_temperature(scores, labels)
            predictions = judge(scores, labels, self.model.config.temperature)
        result = self._result(predictions)
        self._log(result | {"images_per_second": round(images_per_second, 1)})
        is_best = self.best is None or self._quality(result) > self._quality(self.best)
        if self.is_main:
            measured_on = self.splits.split if self.validation is None else "held-out"
            tqdm.write(f"{self._losses()}  {measured_on} {_measured(result)}" + ("  best" if is_best else ""))
            self._save_checkpoint(is_best)
        self.best = result if is_best else self.best
        return predictions

    def _finish(self, predictions: Predictions | None) -> dict[str, Any]:
        """Save the last checkpoint and evaluate it, unless that has been done along the way. Write the evaluation."""
        if predictions is None and self.is_main:
            self._save_checkpoint(is_best=False)
        photographs = Photographs(self.splits.evaluation, self.evaluation_transform)
        if predictions is None or self.validation is not None:
            predictions = predict(self.model, photographs, **self._prediction_options(photographs))
            self.accelerator.print(f"{self.splits.split}/  {_measured(metrics(predictions))}")
        result = self._result(predictions)
        if self.validation is not None:  # otherwise it is in the log
            self._log(result)
        if result["accuracy"] <= (chance := 1 / self.model.num_labels):
            self.accelerator.print(
                f"No better than chance, {chance:.1%}: train for more epochs or on more photographs."
            )
        if self.is_main:
            source, folder = report_source(self.output_dir, self.splits), self.output_dir / EVALUATION
            write_report(predictions, photographs, self.model, self.image_processor, folder, source)
        self._end()
        return result

    def _losses(self) -> str:
        return f"epoch {self.epoch:3}  training loss {self.epoch_loss:.4f}"

    @property
    def epoch(self) -> int:
        """The epoch of the latest step, counted from 1."""
        return math.ceil(self.step / self.steps_per_epoch)

    def _result(self, predictions: Predictions) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, "train_loss": self.epoch_loss, **metrics(predictions)}

    def _is_watched(self) -> bool:
        """Whether there is an evaluation after this epoch, by which something is chosen."""
        every, last = self.options.evaluate_every, self.last_watched
        return self.epoch == last or (self.epoch < last and self.epoch % every == 0)

    def _stops_early(self) -> bool:
        """Whether too many evaluations up to the end of this epoch were worse than the best one."""
        patience, every = self.options.early_stopping, self.options.evaluate_every
        if patience is None or self.best is None or self.epoch > self.last_watched:
            return False
        stops = self.epoch // every - self.best["epoch"] // every >= patience
        if stops:
            best = self.best["epoch"]
            self.accelerator.print(f"Stopped after epoch {self.epoch}; the best was epoch {best}, in {BEST}/")
        return stops

    def _start(self) -> Iterator[dict[str, torch.Tensor]]:
        """Build optimiser and loader, and put everything in the state to go on from. Returns the micro-batches."""
        options, accelerator = self.options, self.accelerator
        self.trainable = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        accelerator.gradient_accumulation_steps = options.gradient_accumulation_steps
        self.wrapped, self.optimizer = accelerator.prepare(self.model, new_optimizer(options, self.trainable.values()))
        if options.compile:
            self.model.compile()
        if options.report_to is not None:
            accelerator.init_trackers("promptcam", config=options.model_dump(exclude_none=True))
        self.loss = new_loss(options, self.labels, len(self.splits.names))
        self.rates = list(learning_rates(options.epochs, options.learning_rate or 0.0, options.warmup_epochs or 0))
        self.step = 0 if self.state is None else self.state["step"]
        sampler = MicroBatches(self.labels, self.kept, self.batch_size, self.step, options, accelerator)
        self.steps_per_epoch = sampler.steps_per_epoch
        loader = DataLoader(
            self.views,
            batch_sampler=sampler,
            num_workers=self._workers_for(self.views),
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # without one it would draw from the global generator
        )
        batches = iter(loader)
        set_seed(options.seed, device_specific=True)
        self.epoch_loss, self.best = 0.0, None
        self._restore()
        self.log = TrainingLog(self.output_dir, self.step) if self.is_main else None
        num_trainable = sum(weight.numel() for weight in self.trainable.values())
        num_held_out = len(self.labels) - len(self.kept)
        until = f" (until epoch {self.last_watched})" if num_held_out and self.last_watched < options.epochs else ""
        accelerator.print(
            f"{len(self.kept)} training, {num_held_out} held-out{until} and {len(self.splits.evaluation)} "
            f"{self.splits.split} images of {len(self.splits.names)} classes; {num_trainable:,} trainable parameters "
            f"on {options.backbone or self.model.config.backbone or 'the given model'}"
            + (f"; resumed after step {self.step}" if self.step else "")
        )
        return batches

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.options.epochs * self.steps_per_epoch * self.batch_size,
            initial=self.step * self.batch_size,
            unit="img",
            disable=not self.is_main,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # few lines if it goes into a log file
        )

    def _step(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, Any]:
        """One optimiser step. Returns its row of the log; its loss is the mean over all devices' micro-batches."""
        self.model.train()
        rate = self.rates[self.epoch - 1]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = 0.0
        for _ in range(self.options.gradient_accumulation_steps):
            batch = next(batches)
            indices = batch.pop("index")
            batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            if "pixel_values" in batch:
                batch["pixel_values"] = self.train_transform.normalise(batch["pixel_values"])
            with self.accelerator.accumulate(self.wrapped):
                labels = batch.pop("labels")
                output = self.wrapped(**batch, blurred_classes=labels if self.options.blurred_negative else None)
                micro_loss = self.loss(output.logits, labels, output.blurred_logits)
                mean = self.accelerator.reduce(micro_loss.detach().float(), reduction="mean").item()
                if not math.isfinite(mean):
                    self._stop_at(mean, indices)
                self.accelerator.backward(micro_loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            loss += mean / self.options.gradient_accumulation_steps
        row = {"epoch": self.epoch, "step": self.step, "train_loss": loss, "learning_rate": rate}
        # Where fp16 gradients overflow, the scaler skips the step and lowers its scale
        return row | ({"skipped": True} if self.accelerator.optimizer_step_was_skipped else {})

    def _stop_at(self, loss: float, indices: torch.Tensor) -> NoReturn:
        photographs = Photographs(self.splits.train, self.train_transform)
        names = gather_object([photographs.name(index) for index in indices.tolist()])
        precision = "" if self.options.mixed_precision == "no" else ", or mixed_precision='no'"
        raise FloatingPointError(
            f"The loss is {loss} in step {self.step} (epoch {self.epoch}); try a lower learning rate than "
            f"{self.options.learning_rate}{precision}. The images of this step: {', '.join(names)}."
        )

    def _prediction_options(self, photographs: Dataset) -> dict[str, Any]:
        return {"accelerator": self.accelerator, "num_workers": self._workers_for(photographs), "progress": False}

    def _quality(self, result: dict[str, Any]) -> tuple[float, float]:
        """The best evaluation has the highest accuracy and, of equals, the lowest loss."""
        return result[self.options.best_metric], -result["loss"]

    def _end(self) -> None:
        """Release devices and processes."""
        self.accelerator.wait_for_everyone()
        # The wrapped model goes before the process group does: in the other order it would be the last to hold the
        # group, and would wait, with Python's lock, for a thread of the group that waits for that lock
        del self.wrapped, self.optimizer
        self.accelerator.free_memory()
        self.accelerator.end_training()

    # --- What is written

    def _log(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(row)
        self.accelerator.log({key: row[key] for key in row if key not in ("epoch", "step")}, step=row["step"])

    def _save_checkpoint(self, is_best: bool) -> None:
        for folder in (self.output_dir, self.output_dir / BEST) if is_best else (self.output_dir,):
            save_checkpoint(self.model, self.image_processor, folder, prompts_only=self.options.prompts_only)

    def _save_state(self) -> None:
        states = gather_object([random_states()])
        if self.is_main:
            scaler = self.accelerator.scaler
            state = {
                "step": self.step,
                "options": self.options.model_dump(),
                "backbone": self.backbone_fingerprint,
                "data": (len(self.splits.train), self.splits.names),
                "epoch_loss": self.epoch_loss,
                "best": self.best,
                "temperature": self.model.config.temperature,
                "weights": {name: weight.detach() for name, weight in self.trainable.items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random_states": states,
            }
            save_state(state, self.output_dir, self.options.save_total_limit)

    def _restore(self) -> None:
        """Put everything in the state that the run is resumed from."""
        state = self.state
        if state is None:
            return
        self.epoch_loss, self.best = state["epoch_loss"], state["best"]
        shapes, saved = (
            {name: weight.shape for name, weight in of.items()} for of in (self.trainable, state["weights"])
        )
        if shapes != saved:
            raise ValueError(f"The given model has other trainable weights than the run in {self.output_dir}.")
        with torch.no_grad():
            for name, weight in self.trainable.items():
                weight.copy_(state["weights"][name])
        self.model.config.temperature = state["temperature"]
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        num_processes = len(state["random_states"])
        if num_processes == self.accelerator.num_processes:
            set_random_states(state["random_states"][self.accelerator.process_index])
        else:
            self.accelerator.print(
                f"The run had {counted(num_processes, 'process')} and goes on with {self.accelerator.num_processes}: "
                "dropout will differ from what it would have been."
            )


def _measured(result: dict[str, Any]) -> str:
    return f"loss {result['loss']:.4f}  accuracy {result['accuracy']:.2%}"
