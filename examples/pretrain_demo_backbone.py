"""Pre-train the tiny ViT that ships with the package, on drawn birds of random species.

    python examples/pretrain_demo_backbone.py runs/tiny

The training is supervised: the model is told the colour and shape of each part of a bird. It predicts them from three
places:

- from [CLS], for all parts;
- from a prompt for each part, which enters in the last layer like the class prompts of Prompt-CAM;
- from each patch as it enters the last layer: which parts and colours the patch shows, so that a patch keeps describing
  its own place.

Prompts that are later trained on the frozen backbone start at random. So pre-training has such prompts too, and keeps
replacing them (`FreshPrompts`): the last layer learns to let a prompt find what it looks for from any start.

The species of the demo are not among the random ones. An interrupted run continues when the command is given again.
OUTPUT_DIR/backbone is what `promptcam train --backbone` takes.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTModel

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification
from promptcam_hf.demo.drawing import draw_bird
from promptcam_hf.demo.species import COLOURS, PARTS, SHAPES, random_species

IMAGE_SIZE, PATCH_SIZE = 96, 8
GRID = IMAGE_SIZE // PATCH_SIZE
COLOUR_NAMES = list(COLOURS)
NUM_COLOURS = len(COLOUR_NAMES) + 1  # the last one is `ABSENT`
ABSENT = len(COLOUR_NAMES)  # the part was left out
HIDDEN = -100  # the part cannot be seen, so the loss ignores it
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, WARMUP, SAVE_EVERY = 32, 1e-3, 0.05, 0.05, 200


def tiny_vit() -> ViTModel:
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=144,
        num_hidden_layers=5,
        num_attention_heads=6,
        intermediate_size=432,
        layer_norm_eps=1e-6,
    )
    return ViTModel(config, add_pooling_layer=False)


# --- Birds ------------------------------------------------------------------------------------------------------------


def draw(seed: int) -> tuple[np.ndarray, ...]:
    """
    Draw a bird of a random species.

    Returns:
        The picture (96, 96, 3) uint8; the share of each patch that each part covers (12, 12, 14) uint8, in 255ths; the
        colour of each part (14,), and the shape of each part that has more than one (5,), int16.
    """
    rng = np.random.default_rng((1, seed))
    species = random_species(seed)
    without = rng.choice(PARTS, rng.integers(1, 4), replace=False) if rng.random() < 0.4 else ()
    # The datasets of the demo have lower seeds
    image, masks = draw_bird(species, 10**12 + seed, IMAGE_SIZE, without=without)
    cover = np.stack([masks[part] for part in PARTS], axis=-1).reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE, -1)
    shares = (255 * cover.mean(axis=(1, 3))).round().astype(np.uint8)
    colours = [COLOUR_NAMES.index(species.colours[part]) if masks[part].any() else HIDDEN for part in PARTS]
    colours = [ABSENT if part in without else colour for part, colour in zip(PARTS, colours, strict=True)]
    shapes = [HIDDEN if part in without else names.index(species.shapes[part]) for part, names in SHAPES.items()]
    return np.asarray(image), shares, np.array(colours, np.int16), np.array(shapes, np.int16)


def load_birds(folder: Path, count: int) -> tuple[torch.Tensor, ...]:
    """The results of `draw` for the first `count` seeds. They are kept on disk for the next time."""
    file = folder / f"birds-{count}.npz"
    if not file.exists():
        with Pool() as pool:
            rows = list(tqdm(pool.imap(draw, range(count), chunksize=32), total=count, desc="drawing", unit="bird"))
        draft = folder / "birds.part.npz"
        np.savez(draft, *(np.stack(column) for column in zip(*rows, strict=True)))
        os.replace(draft, file)
    with np.load(file) as arrays:
        return tuple(torch.from_numpy(arrays[name]) for name in arrays.files)


def batches(birds: tuple[torch.Tensor, ...], first_step: int, steps: int, seed: int) -> Iterator[list[torch.Tensor]]:
    """The batches from `first_step` on. Each epoch is in another random order; half of the pictures are mirrored."""
    per_epoch = len(birds[0]) // BATCH_SIZE
    for step in range(first_step, steps):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(birds[0]), generator=torch.Generator().manual_seed(seed + epoch))
        rows = order[place * BATCH_SIZE : (place + 1) * BATCH_SIZE]
        images, shares, colours, shapes = (column[rows] for column in birds)
        mirrored = torch.rand(len(rows), generator=torch.Generator().manual_seed(step)) < 0.5
        images[mirrored], shares[mirrored] = images[mirrored].flip(2), shares[mirrored].flip(2)
        pixel_values = images.permute(0, 3, 1, 2).float() / 127.5 - 1  # like the image processor
        yield [pixel_values, shares.flatten(1, 2).float() / 255, colours.long(), shapes.long()]


# --- Objective --------------------------------------------------------------------------------------------------------


class FreshPrompts:
    """
    Prompts that start at random, and what they are to learn in the few steps before they are replaced.

    There are `FAMILIES` groups of four prompts. Each group is about one part, and each of its prompts about one random
    look of that part ("crown: amber, jade, scarlet or absent"), because the species of a family differ in one part.
    Embeddings that are reset again and again during pre-training make a model easier to adapt: Chen et al., "Improving
    Language Plasticity via Pretraining with Active Forgetting", NeurIPS 2023.

    Args:
        hidden_size: Of the backbone.
        num_looks: Number of looks of each part. A part that looks the same on all birds is not asked about.
        device: Of the backbone.
    """

    FAMILIES, LOOKS, LEARNING_RATE = 32, 4, 0.01

    def __init__(self, hidden_size: int, num_looks: list[int], device: torch.device) -> None:
        bound = (6 / (3 * PATCH_SIZE**2 + hidden_size)) ** 0.5  # as in `PromptCamForImageClassification`
        prompts = torch.empty(self.FAMILIES * self.LOOKS, hidden_size).uniform_(-bound, bound)
        score = 0.02 * torch.randn(1, hidden_size)
        self.weights = {"class_prompts": prompts, "score_head.weight": score, "score_head.bias": torch.zeros(1)}
        self.weights = {name: weight.to(device).requires_grad_() for name, weight in self.weights.items()}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=self.LEARNING_RATE)
        choices = [part for part, count in enumerate(num_looks) if count > 1]
        self.parts = torch.tensor(choices)[torch.randint(len(choices), (self.FAMILIES,))].to(device)  # (F,)
        looks = [torch.randperm(num_looks[part])[: self.LOOKS].tolist() for part in self.parts]
        looks = [row + [HIDDEN - 1] * (self.LOOKS - len(row)) for row in looks]  # a part may have fewer looks
        self.looks = torch.tensor(looks, device=device)  # (F, L)

    def loss(self, prompted: PromptCamForImageClassification, entering: torch.Tensor, looks: torch.Tensor):
        """
        The cross-entropy of telling the looks of each family apart.

        Args:
            prompted: The model whose prompts are replaced by these.
            entering: Tokens (B, S, D) that enter the last layer.
            looks: The true looks (B, parts), or `HIDDEN`.
        """
        logits = functional_call(prompted, self.weights, kwargs={"features": entering}).logits
        logits = logits.unflatten(1, self.looks.shape).masked_fill(self.looks < HIDDEN, -1e4)  # (B, F, L)
        is_true = looks[:, self.parts, None] == self.looks
        counts = is_true.any(-1)  # (B, F): a bird with none of a family's looks is ignored
        return cross_entropy(logits[counts], is_true.int().argmax(-1)[counts])

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class AttributeModel(nn.Module):
    """The backbone, and the heads that predict the colours and shapes of the parts."""

    fresh_prompts: FreshPrompts

    def __init__(self) -> None:
        super().__init__()
        backbone = tiny_vit()
        # A prompt for each part in the last layer. All parts share the heads that read the prompts' output
        config = PromptCamConfig(backbone_config=backbone.config, num_labels=len(PARTS), num_prompted_layers=1)
        self.prompted = PromptCamForImageClassification(config)
        self.prompted.backbone.load_state_dict(backbone.state_dict())
        self.prompted.backbone.requires_grad_(True)
        self.prompted.score_head.requires_grad_(False)  # not used here
        size = backbone.config.hidden_size
        self.patch_norm = nn.LayerNorm(size)
        self.patch_part, self.patch_colour = nn.Linear(size, len(PARTS) + 1), nn.Linear(size, NUM_COLOURS)
        self.part_colour, self.cls_colour = nn.Linear(size, NUM_COLOURS), nn.Linear(size, len(PARTS) * NUM_COLOURS)
        self.part_shape = nn.ModuleList(nn.Linear(size, len(names)) for names in SHAPES.values())
        self.cls_shape = nn.ModuleList(nn.Linear(size, len(names)) for names in SHAPES.values())

    def renew_prompts(self) -> None:
        num_looks = [1 if part == "eye" else NUM_COLOURS for part in PARTS]  # all eyes are alike
        num_looks += [len(names) for names in SHAPES.values()]
        self.fresh_prompts = FreshPrompts(self.patch_part.in_features, num_looks, self.patch_part.weight.device)

    def forward(self, pixel_values, shares, colours, shapes) -> dict[str, torch.Tensor]:
        """
        The losses, by name.

        Args:
            pixel_values: (B, 3, 96, 96).
            shares: Of each patch, the share that each part covers (B, 144, 14), in [0, 1].
            colours: Colour of each part (B, 14), `ABSENT` or `HIDDEN`.
            shapes: Shape of each part in `SHAPES` (B, 5), or `HIDDEN`.
        """
        output = self.prompted.backbone(pixel_values, output_hidden_states=True)
        entering = output.hidden_states[-2]  # (B, 145, D): what enters the last layer
        cls = output.last_hidden_state[:, 0]  # (B, D)
        prompts = self.prompted(features=entering, output_hidden_states=True).hidden_states[-1]
        prompts = self.prompted.backbone.layernorm(prompts)  # (B, 14, D)

        patch_part, patch_colour = self._patch_losses(entering[:, 1:], shares, colours)
        cls_colours = self.cls_colour(cls).unflatten(-1, (len(PARTS), NUM_COLOURS))  # (B, 14, colours)
        shape = torch.zeros((), device=cls.device)
        for column, (part, of_prompt, of_cls) in enumerate(zip(SHAPES, self.part_shape, self.cls_shape, strict=True)):
            for prediction in (of_prompt(prompts[:, PARTS.index(part)]), of_cls(cls)):
                shape = shape + cross_entropy(prediction, shapes[:, column]) / (2 * len(SHAPES))
        return {
            "patch_part": patch_part,
            "patch_colour": patch_colour,
            "prompt": cross_entropy(self.part_colour(prompts).transpose(1, 2), colours),
            "cls": cross_entropy(cls_colours.transpose(1, 2), colours),
            "shape": shape,
            "fresh_prompts": self.fresh_prompts.loss(self.prompted, entering, torch.cat([colours, shapes], dim=1)),
        }

    def _patch_losses(self, patches, shares, colours) -> tuple[torch.Tensor, torch.Tensor]:
        """How well each patch (B, 144, D) names the parts and the colours that cover it."""
        patches = self.patch_norm(patches)
        nothing = (1 - shares.sum(-1, keepdim=True)).clamp(min=0)
        part = cross_entropy(self.patch_part(patches).transpose(1, 2), torch.cat([shares, nothing], -1).mT)
        seen = shares * (colours >= 0)[:, None]
        share_of_colour = seen.new_zeros(*seen.shape[:2], NUM_COLOURS)
        share_of_colour.scatter_add_(2, colours.clamp(min=0)[:, None].expand_as(seen), seen)
        share_of_colour[..., ABSENT] = nothing[..., 0]
        return part, cross_entropy(self.patch_colour(patches).transpose(1, 2), share_of_colour.mT)


# --- Training ---------------------------------------------------------------------------------------------------------


def pretrain(output_dir: Path, num_images: int, epochs: int, seed: int) -> None:
    """
    Pre-train the backbone, or continue an interrupted run.

    Args:
        output_dir: Folder for the birds, the state of the run and `backbone/`.
        num_images: Number of birds to draw, `BATCH_SIZE` or more.
        epochs: Passes over them.
        seed: Random seed.

    Raises:
        ValueError: If there are too few birds for a batch, or the folder holds a run with other arguments.
    """
    if num_images < BATCH_SIZE:
        raise ValueError(f"{num_images} birds: expected {BATCH_SIZE} or more, enough for a batch.")
    output_dir.mkdir(parents=True, exist_ok=True)
    birds = load_birds(output_dir, num_images)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_seed(seed)
    model = AttributeModel().to(device).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    steps, first_step = epochs * (num_images // BATCH_SIZE), 0
    settings = {"images": num_images, "epochs": epochs, "seed": seed}
    state_file = output_dir / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["settings"] != settings:
            raise ValueError(f"{state_file} is of a run with {state['settings']}, not {settings}; remove it first.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        first_step = state["step"]

    means: dict[str, float] = {}
    with tqdm(total=steps, initial=first_step, desc="pre-training", unit="step") as progress:
        for step, batch in enumerate(batches(birds, first_step, steps, seed), start=first_step + 1):
            if (step - 1) % SAVE_EVERY == 0:  # just after a state is saved, so that it need not hold them
                model.renew_prompts()
            warmup, decay = step / (WARMUP * steps), (1 + math.cos(math.pi * step / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(warmup, 1) * max(decay, 0.01)
            losses = model(*(column.to(device) for column in batch))
            optimizer.zero_grad()
            torch.stack([*losses.values()]).sum().backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            model.fresh_prompts.step()
            means = {name: 0.98 * means.get(name, value.item()) + 0.02 * value.item() for name, value in losses.items()}
            progress.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
            progress.update()
            if step % SAVE_EVERY == 0 or step == steps:
                draft = state_file.with_suffix(".part")
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
                torch.save(state | {"step": step, "settings": settings}, draft)
                os.replace(draft, state_file)
    model.prompted.backbone.save_pretrained(output_dir / "backbone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder for the birds, the state of the run and backbone/")
    parser.add_argument("--images", type=int, default=16_000, help="number of birds to draw (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the birds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    try:
        pretrain(args.output_dir, args.images, args.epochs, args.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
