"""Runs of `PromptCamTrainer`, and what they leave."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from promptcam_hf.training.options import TrainingOptions, load_run_options
from promptcam_hf.training.state import read_log
from promptcam_hf.training.trainer import PromptCamTrainer

PROMPTS = {"agnostic_prompts", "class_prompts", "score_head.weight", "score_head.bias"}


def train(options: TrainingOptions, run: Path, **arguments) -> dict:
    return PromptCamTrainer(options, run, **arguments).train()


def resume(run: Path, **arguments) -> dict:
    return PromptCamTrainer(load_run_options(run), run, **arguments).resume()


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in load_file(run / "model.safetensors").items() if name in PROMPTS}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(run: Path) -> list[float]:
    return [row["train_loss"] for row in read_log(run) if "accuracy" not in row]


def evaluations(run: Path) -> list[dict]:
    return [row for row in read_log(run) if "accuracy" in row]
