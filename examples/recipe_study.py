"""What makes Prompt-CAM accurate: train it with one setting changed at a time, beside other uses of the same backbone.

    python -m examples.recipe_study --data photos/ --backbone facebook/dinov2-small --output-dir runs/study
    python -m examples.recipe_study ... --test --only default "linear probe"

Each row of `study.csv` is one setting and one seed. A seed holds out its own fifth of the training photographs, trains
on the others, and measures on that fifth. The test photographs are not looked at, so this table may choose the best
setting. `--test` trains what has been chosen on all training photographs, and measures it on the test photographs.

Give the command again to continue an interrupted study. `docs/recipe.md` has its table.
"""

import argparse
import csv
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModel

from examples.benchmarks.linear_probe import fit_probe
from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.data.photographs import EvaluationTransform, Photographs
from promptcam_hf.data.splits import Splits, load_splits
from promptcam_hf.evaluation.prediction import judge, metrics
from promptcam_hf.training.inputs import build_image_processor, build_model, build_train_transform, resolve_options
from promptcam_hf.training.options import TrainingOptions, load_run_options
from promptcam_hf.training.trainer import PromptCamTrainer
from promptcam_hf.training.views import Views

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HELD_OUT = 5  # the fifth part
LORA_EPOCHS, LORA_RANK, LORA_LEARNING_RATE = 10, 8, 1e-3
TABLE = "study.csv"
COLUMNS = (
    "setting",
    "seed",
    "split",
    "images",
    "accuracy",
    "loss",
    "calibration_error",
    "raw_calibration_error",
    "seconds",
)
PUBLISHED = {
    "optimizer": "sgd",
    "learning_rate": 0.02,
    "label_smoothing": 0.0,
    "blurred_negative": False,
    "mixed_precision": "no",
    "prompt_init": "random",
    "normalisation": "paper",
    "crops": "paper",
    "image_size": 224,
    "num_prompted_layers": 1,
}
LAST = {"num_prompted_layers": 1}
# What changes from the default options
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "2 prompted layers": {"num_prompted_layers": 2},
    "3 prompted layers": {"num_prompted_layers": 3},
    "6 prompted layers": {"num_prompted_layers": 6},
    "random start": {"prompt_init": "random"},
    "no blurred negative": {"blurred_negative": False},
    "no label smoothing": {"label_smoothing": 0.0},
    "label smoothing 0.2": {"label_smoothing": 0.2},
    "learning rate 0.003": {"learning_rate": 0.003},
    "learning rate 0.005": {"learning_rate": 0.005},
    "learning rate 0.02": {"learning_rate": 0.02},
    "weight decay 0.01": {"weight_decay": 0.01},
    "weight decay 0.1": {"weight_decay": 0.1},
    "batch size 8": {"batch_size": 8},
    "batch size 32": {"batch_size": 32},
    "8 epochs": {"epochs": 8},
    "16 epochs": {"epochs": 16},
    "40 epochs": {"epochs": 40},
    "2 views": {"cache_features": 2},
    "8 views": {"cache_features": 8},
    "image size 224": {"image_size": 224},
    "crops as in the paper": {"crops": "paper"},
    "prompt dropout 0.1": {"prompt_dropout": 0.1},
    "drop path 0.1": {"drop_path_rate": 0.1},
    "patch dropout 0.2": {"patch_dropout": 0.2},
    "patch dropout 0.5": {"patch_dropout": 0.5},
    "5 agnostic prompts": {"num_agnostic_prompts": 5},
    "50 agnostic prompts": {"num_agnostic_prompts": 50},
    # Cheaper to compare: only the last layer prompted
    "last layer": LAST,
    "last layer, as published": PUBLISHED,
    "last layer, random start": LAST | {"prompt_init": "random"},
    "last layer, no blurred negative": LAST | {"blurred_negative": False},
    "last layer, no label smoothing": LAST | {"label_smoothing": 0.0},
    "last layer, label smoothing 0.2": LAST | {"label_smoothing": 0.2},
    "last layer, learning rate 0.003": LAST | {"learning_rate": 0.003},
    "last layer, learning rate 0.02": LAST | {"learning_rate": 0.02},
    "last layer, weight decay 0.1": LAST | {"weight_decay": 0.1},
    "last layer, 20 epochs": LAST | {"epochs": 20},
    "last layer, 40 epochs": LAST | {"epochs": 40},
    "last layer, 1 view": LAST | {"cache_features": 1},
    "last layer, 4 views": LAST | {"cache_features": 4},
    "last layer, patch dropout 0.5": LAST | {"patch_dropout": 0.5},
    "last layer, prompt dropout 0.1": LAST | {"prompt_dropout": 0.1},
    "last layer, pixels as in the paper": LAST | {"normalisation": "paper"},
}


class Study:
    """The settings and baselines on one dataset and backbone, and the table of what they reach."""

    def __init__(self, args: argparse.Namespace):
        self.folder, self.is_test = args.output_dir, args.test
        self.options = TrainingOptions(backbone=args.backbone, batch_size=16, num_workers=args.num_workers)
        self.splits = load_splits(args.data)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table = self.folder / TABLE
        self.done = set()
        if self.table.exists():
            with open(self.table, newline="", encoding="utf-8") as file:
                self.done = {(row["setting"], int(row["seed"]), row["split"]) for row in csv.DictReader(file)}

    def measure(self, name: str, seed: int) -> None:
        """Add a row to the table, unless it is there."""
        splits = self.splits if self.is_test else held_out(self.splits, seed)
        if (name, seed, splits.split) in self.done:
            return
        started = time.perf_counter()
        if name in SETTINGS:
            found = self._train(name, seed, splits)
        else:
            found = metrics(judge(*BASELINES[name](self.options.replace(seed=seed), splits), temperature=1.0))
        row = {**found, "setting": name, "seed": seed, "split": splits.split, "images": len(splits.evaluation)}
        row["seconds"] = round(time.perf_counter() - started)
        with open(self.table, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        print(
            f"{name}, seed {seed}: accuracy {found['accuracy']:.1%} on {len(splits.evaluation)} photographs", flush=True
        )

    def _train(self, name: str, seed: int, splits: Splits) -> dict[str, Any]:
        options = self.options.replace(seed=seed, **SETTINGS[name])
        if not self.is_test:  # measured once, at the end
            options = options.replace(validation_share=0.0, evaluate_every=options.epochs)
        run = self.folder / f"{name}-{seed}-{splits.split}".replace(" ", "_")
        is_resumed = any(run.glob("states/*.pt"))
        if is_resumed:
            options = load_run_options(run)
        else:
            shutil.rmtree(run, ignore_errors=True)  # killed before its first state
        trainer = PromptCamTrainer(options, run, splits, features_dir=self.folder / "features")
        return trainer.resume() if is_resumed else trainer.train()


def held_out(splits: Splits, seed: int) -> Splits:
    """A fifth of each class's training photographs in the place of the evaluation split; another one for each seed."""
    generator, labels = torch.Generator().manual_seed(0), torch.tensor(splits.train["label"][:])
    place = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        place[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows))
    is_held_out = place % HELD_OUT == seed % HELD_OUT
    train, evaluation = (splits.train.select(rows.nonzero()[:, 0].tolist()) for rows in (~is_held_out, is_held_out))
    return replace(splits, train=train, evaluation=evaluation, split="held-out")


# --- Other uses of the backbone ---------------------------------------------------------------------------------------


@torch.no_grad()
def cls_states(model: PromptCamForImageClassification, photographs: Photographs) -> tuple[torch.Tensor, torch.Tensor]:
    """[CLS] after the last layer and norm `(n, D)`, and labels `(n,)`."""
    states, labels = [], []
    for batch in tqdm(DataLoader(photographs, batch_size=32, generator=torch.Generator()), desc="[CLS]"):
        states.append(model.backbone(batch["pixel_values"].to(model.device)).last_hidden_state[:, 0].cpu())
        labels.append(batch["labels"])
    return torch.cat(states), torch.cat(labels)


def prepared(options: TrainingOptions, splits: Splits) -> tuple[PromptCamForImageClassification, Any]:
    """A model, whose backbone is used, and its image processor."""
    options = resolve_options(options, None)
    model = build_model(options, None, splits.names).eval().to(DEVICE)
    return model, build_image_processor(options, model)


def nearest(options: TrainingOptions, splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    """1-NN by cosine similarity of [CLS]. The score of a class is that of its nearest photograph."""
    model, processor = prepared(options, splits)
    plain = EvaluationTransform(processor)
    known, known_labels = cls_states(model, Photographs(splits.train, plain))
    states, labels = cls_states(model, Photographs(splits.evaluation, plain))
    similarity = normalize(states, dim=-1) @ normalize(known, dim=-1).T
    scores = [similarity[:, known_labels == label].amax(-1) for label in range(len(splits.names))]
    return torch.stack(scores, dim=-1), labels


def linear_probe(options: TrainingOptions, splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear classifier of [CLS], its penalty chosen on a part of the training photographs."""
    model, processor = prepared(options, splits)
    plain = EvaluationTransform(processor)
    known, known_labels = cls_states(model, Photographs(splits.train, plain))
    states, labels = cls_states(model, Photographs(splits.evaluation, plain))
    classifier, _ = fit_probe(known[None], known_labels, len(splits.names))
    return classifier(states), labels


def lora(options: TrainingOptions, splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    """Low-rank adapters in the queries and values of all layers, and a linear classifier of [CLS]."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(options.seed)
    model, processor = prepared(options, splits)
    transform = build_train_transform(options, model, processor)
    adapters = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=r".*(query|value|q_proj|v_proj)")
    backbone = inject_adapter_in_model(adapters, AutoModel.from_pretrained(options.backbone).float()).to(DEVICE)
    classifier = torch.nn.Linear(backbone.config.hidden_size, len(splits.names), device=DEVICE)
    weights = [weight for weight in backbone.parameters() if weight.requires_grad] + [*classifier.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LORA_LEARNING_RATE)
    views = Views(splits.train, transform, options.seed)
    steps = LORA_EPOCHS * (len(views) // options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LORA_LEARNING_RATE, steps)
    generator = torch.Generator().manual_seed(options.seed)
    for epoch in tqdm(range(LORA_EPOCHS), desc="LoRA", unit="epoch"):
        order = torch.randperm(len(views), generator=generator)
        for rows in order.split(options.batch_size)[: steps // LORA_EPOCHS]:
            batch = [views[epoch, row] for row in rows.tolist()]
            pixels = views.normalise(torch.stack([row["pixel_values"] for row in batch]).to(DEVICE))
            states = backbone(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
            loss = cross_entropy(classifier(states), torch.tensor([row["labels"] for row in batch], device=DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    loader = DataLoader(Photographs(splits.evaluation, EvaluationTransform(processor)), batch_size=32)
    outputs = []
    with torch.no_grad():
        for batch in loader:
            states = backbone(batch["pixel_values"].to(DEVICE), interpolate_pos_encoding=True).last_hidden_state[:, 0]
            outputs.append((classifier(states).cpu(), batch["labels"]))
    scores, labels = (torch.cat(column) for column in zip(*outputs, strict=True))
    return scores, labels


BASELINES: dict[str, Callable[[TrainingOptions, Splits], tuple[torch.Tensor, torch.Tensor]]] = {
    "1-NN": nearest,
    "linear probe": linear_probe,
    "LoRA": lora,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for `promptcam train`")
    parser.add_argument("--backbone", required=True, help="as for `promptcam train`")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the table, features and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--only", nargs="+", help=f"some of: {', '.join([*SETTINGS, *BASELINES])} (default: all)")
    parser.add_argument("--test", action="store_true", help="measure on the test photographs")
    parser.add_argument("--num-workers", type=int, help="processes that read photographs")
    args = parser.parse_args()
    names = args.only or [*SETTINGS, *BASELINES]
    if unknown := [name for name in names if name not in SETTINGS and name not in BASELINES]:
        sys.exit(f"error: no setting {unknown[0]!r}; expected some of {', '.join([*SETTINGS, *BASELINES])}.")
    study = Study(args)
    for seed in args.seeds:
        for name in names:
            study.measure(name, seed)


if __name__ == "__main__":
    main()
