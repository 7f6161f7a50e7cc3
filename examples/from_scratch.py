"""From a folder of photographs to pictures of their traits, without pre-trained weights.

    python examples/from_scratch.py photos/ runs/mine

Trains a tiny ViT on the classes of `photos/` (with a linear head on [CLS]), freezes it, trains Prompt-CAM on it with
`promptcam train`, and explains some of the test photographs. It works offline on a laptop. The backbone has seen only
these photographs, so expect modest accuracy and coarse maps. For real work, start from a pre-trained backbone:
`promptcam train --backbone facebook/dino-vitb16 ...`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForImageClassification

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import Photographs, TrainTransform
from promptcam_hf.data.splits import load_splits


def pretrain(data: Path, output_dir: Path, epochs: int, image_size: int, seed: int) -> None:
    """Train a tiny ViT (patches of 8 x 8 pixels) on the classes of an image folder."""
    set_seed(seed)
    splits = load_splits(data)
    config = ViTConfig(
        image_size=image_size,
        patch_size=8,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=576,
        num_labels=len(splits.names),
    )
    model = ViTForImageClassification(config)
    transform = TrainTransform(new_image_processor(image_size))
    batch_size = min(32, len(splits.train))
    loader = DataLoader(
        Photographs(splits.train, transform), batch_size=batch_size, shuffle=True, drop_last=True, num_workers=2
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * len(loader), pct_start=0.2)
    with tqdm(total=epochs * len(loader), desc="pre-training", unit="step") as progress:
        for _ in range(epochs):
            for batch in loader:
                loss = model(**batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                progress.update()
    model.save_pretrained(output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/<class>/* and test/<class>/*")
    parser.add_argument("output_dir", type=Path, help="new folder for backbone/, promptcam/ and explained/")
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--explain", type=int, default=6, help="number of test photographs to explain")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    backbone, promptcam = args.output_dir / "backbone", args.output_dir / "promptcam"
    pretrain(args.data, backbone, args.pretrain_epochs, args.image_size, args.seed)
    command = [sys.executable, "-m", "promptcam_hf"]
    options = f"--epochs {args.epochs} --learning-rate {args.learning_rate} --seed {args.seed} --num-workers 2".split()
    subprocess.run(
        [*command, "train", "--data", args.data, "--backbone", backbone, "--output-dir", promptcam, *options],
        check=True,
    )
    folders = sorted(path for path in (args.data / "test").iterdir() if path.is_dir())
    step = max(1, len(folders) // args.explain)
    photographs = [sorted(folder.iterdir())[0] for folder in folders[::step]][: args.explain]
    explained = args.output_dir / "explained"
    subprocess.run(
        [*command, "explain", *photographs, "--model", promptcam, "--output-dir", explained, "--top-k", "2"],
        check=True,
    )


if __name__ == "__main__":
    main()
