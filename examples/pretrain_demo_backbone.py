"""Pre-train the tiny ViT that ships with the package, on drawn birds of species that are made up at random.

    python examples/pretrain_demo_backbone.py runs/tiny --objective dino          # no labels: self-distillation
    python examples/pretrain_demo_backbone.py runs/tiny --objective attributes    # told what the parts look like

**dino**: a student and a teacher, the moving average of it, look at different crops of the same picture, and the
student learns to say what the teacher says (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
ICCV 2021): two large crops, which both see, and several small ones, for the student alone; the teacher's output is
centred (by Sinkhorn-Knopp, as in DINOv2) and sharpened. Crops keep their colours, for colours are the traits here.

**attributes**: the colour and shape of each part are predicted, from three places. From [CLS], all of them. From a
prompt for each part, which enters in the last layer as the class prompts of Prompt-CAM do. And from every patch as it
enters the last layer, which parts and colours it shows: so patches go on describing the place where they are. Prompts
that are trained on the frozen backbone later start at random, so there are such beginners in pre-training too, and ever
new ones (`Beginners`): the last layer learns to be one in which a prompt finds what it looks for from any start.

The species that the demo tells apart are not among those drawn here. The command can be interrupted and given again: it
goes on from its last state. OUTPUT_DIR/backbone is what `promptcam train --backbone` takes.
"""

import argparse
import math
import os
from collections.abc import Iterator
from copy import deepcopy
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, interpolate
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTModel

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification
from promptcam_hf.demo.drawing import BEAKS, COLOURS, PARTS, TAILS, draw_bird, random_species

IMAGE_SIZE, PATCH_SIZE = 96, 8
GRID = IMAGE_SIZE // PATCH_SIZE
COLOUR_NAMES = list(COLOURS)
ABSENT, HIDDEN = len(COLOUR_NAMES), -100  # instead of a colour: left out; or not to be seen, so not asked for
SHAPES = {"beak": list(BEAKS), "tail": list(TAILS), "crown": ["cap", "crest"], "face": ["cheek", "mask"]}
SHAPES["breast"] = ["", "spotted"]
BATCH_SIZE, WEIGHT_DECAY, WARMUP, SAVE_EVERY = 32, 0.05, 0.05, 200


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
    """A bird of a species of its own: picture (96, 96, 3) uint8; share of each patch that each part takes (12, 12, 11)
    uint8, in 255ths; colour of each part (11,), and of those with shapes their shape (5,), int8 and int16."""
    rng = np.random.default_rng((1, seed))
    species = random_species(seed)
    without = rng.choice(PARTS, rng.integers(1, 4), replace=False) if rng.random() < 0.4 else ()
    # No picture of the demo's data sets has so high a seed
    image, masks = draw_bird(species, 10**12 + seed, IMAGE_SIZE, without=without)
    cover = np.stack([masks[part] for part in PARTS], axis=-1).reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE, -1)
    shares = (255 * cover.mean(axis=(1, 3))).round().astype(np.uint8)
    looks = [COLOUR_NAMES.index(species.colours[part]) if masks[part].any() else HIDDEN for part in PARTS]
    colours = np.array([ABSENT if part in without else look for part, look in zip(PARTS, looks, strict=True)])
    shapes = [HIDDEN if p in without else names.index(species.shapes[p]) for p, names in SHAPES.items()]
    return np.asarray(image), shares, colours.astype(np.int16), np.array(shapes, np.int16)


def load_birds(folder: Path, count: int, workers: int) -> tuple[torch.Tensor, ...]:
    """`draw` for so many seeds; kept on disk for the next time."""
    file = folder / f"birds-{count}.npz"
    if not file.exists():
        with Pool(workers) as pool:
            rows = list(tqdm(pool.imap(draw, range(count), chunksize=32), total=count, desc="drawing", unit="bird"))
        draft = folder / "birds.part.npz"
        np.savez(draft, *(np.stack(column) for column in zip(*rows, strict=True)))
        os.replace(draft, file)
    with np.load(file) as arrays:
        return tuple(torch.from_numpy(arrays[name]) for name in arrays.files)


def batches(birds: tuple[torch.Tensor, ...], first_step: int, steps: int, seed: int) -> Iterator[list[torch.Tensor]]:
    """Batches from a step on, each epoch in a new order that the seed decides; half of the pictures mirrored."""
    per_epoch = len(birds[0]) // BATCH_SIZE
    for step in range(first_step, steps):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(birds[0]), generator=torch.Generator().manual_seed(seed + epoch))
        rows = order[place * BATCH_SIZE : (place + 1) * BATCH_SIZE]
        images, shares, colours, shapes = (column[rows] for column in birds)
        mirrored = torch.rand(len(rows), generator=torch.Generator().manual_seed(step)) < 0.5
        images[mirrored], shares[mirrored] = images[mirrored].flip(2), shares[mirrored].flip(2)
        pixel_values = images.permute(0, 3, 1, 2).float() / 127.5 - 1  # as the image processor normalises
        yield [pixel_values, shares.flatten(1, 2).float() / 255, colours.long(), shapes.long()]


# --- Objectives -------------------------------------------------------------------------------------------------------


class Beginners:
    """Prompts that start at random, and what they are to learn in the few steps that they have.

    A quarter of them for each of four looks of one part, drawn at random ("crown: amber, jade, scarlet or none"), as
    the species of a family differ in one part; `FAMILIES` at a time. That embeddings which are started anew all along
    pre-training make a model easier to adapt is from Chen et al., "Improving Language Plasticity via Pretraining with
    Active Forgetting", NeurIPS 2023.
    """

    FAMILIES, LOOKS, LEARNING_RATE = 32, 4, 0.01

    def __init__(self, hidden_size: int, num_looks: list[int], device: torch.device) -> None:
        bound = (6 / (3 * PATCH_SIZE**2 + hidden_size)) ** 0.5  # as `PromptCamForImageClassification` starts them
        prompts = torch.empty(self.FAMILIES * self.LOOKS, hidden_size).uniform_(-bound, bound)
        score = 0.02 * torch.randn(1, hidden_size)
        self.weights = {"class_prompts": prompts, "score_head.weight": score, "score_head.bias": torch.zeros(1)}
        self.weights = {name: weight.to(device).requires_grad_() for name, weight in self.weights.items()}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=self.LEARNING_RATE)
        choices = [part for part, count in enumerate(num_looks) if count > 1]
        self.parts = torch.tensor(choices)[torch.randint(len(choices), (self.FAMILIES,))].to(device)  # (F,)
        looks = [torch.randperm(num_looks[part])[: self.LOOKS].tolist() for part in self.parts]
        looks = [row + [HIDDEN - 1] * (self.LOOKS - len(row)) for row in looks]  # a part may have fewer of them
        self.looks = torch.tensor(looks, device=device)  # (F, L)

    def loss(self, prompted: PromptCamForImageClassification, entering: torch.Tensor, looks: torch.Tensor):
        """Of patches (B, S, D) that enter the last layer of birds with such looks (B, parts)."""
        logits = functional_call(prompted, self.weights, kwargs={"features": entering}).logits
        logits = logits.unflatten(1, self.looks.shape).masked_fill(self.looks < HIDDEN, -1e4)  # (B, F, L)
        is_it = looks[:, self.parts, None] == self.looks
        concerned = is_it.any(-1)  # (B, F): birds of none of a family's looks say nothing about it
        return cross_entropy(logits[concerned], is_it.int().argmax(-1)[concerned])

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class Attributes(nn.Module):
    """Supervised by the looks of the parts."""

    LEARNING_RATE = 1e-3  # its highest value
    beginners: Beginners

    def __init__(self) -> None:
        super().__init__()
        backbone = tiny_vit()
        # A prompt for each part, in the last layer: what it gives is read by heads that all parts share
        config = PromptCamConfig(backbone_config=backbone.config, num_labels=len(PARTS), num_prompted_layers=1)
        self.prompted = PromptCamForImageClassification(config)
        self.prompted.backbone.load_state_dict(backbone.state_dict())
        self.prompted.backbone.requires_grad_(True)
        self.prompted.score_head.requires_grad_(False)  # of no use here
        size, num_looks = backbone.config.hidden_size, len(COLOUR_NAMES) + 1
        self.patch_norm = nn.LayerNorm(size)
        self.patch_part, self.patch_colour = nn.Linear(size, len(PARTS) + 1), nn.Linear(size, num_looks)
        self.part_colour, self.cls_colour = nn.Linear(size, num_looks), nn.Linear(size, len(PARTS) * num_looks)
        self.part_shape = nn.ModuleList(nn.Linear(size, len(names)) for names in SHAPES.values())
        self.cls_shape = nn.ModuleList(nn.Linear(size, len(names)) for names in SHAPES.values())

    @property
    def backbone(self) -> ViTModel:
        return self.prompted.backbone

    def finished(self) -> ViTModel:
        return self.prompted.backbone

    def before_step(self, step: int) -> None:
        if step % SAVE_EVERY == 0:  # new ones after each saved state, which so need not hold any
            num_looks = [1 if part == "eye" else len(COLOUR_NAMES) + 1 for part in PARTS]  # all eyes are alike
            num_looks += [len(names) for names in SHAPES.values()]
            self.beginners = Beginners(self.patch_part.in_features, num_looks, self.patch_part.weight.device)

    def forward(self, pixel_values, shares, colours, shapes) -> dict[str, torch.Tensor]:
        """Shares of patches (B, 144, 11); colours (B, 11); shapes (B, 5)."""
        output = self.backbone(pixel_values, output_hidden_states=True)
        entering = output.hidden_states[-2]  # (B, 145, D): what enters the last layer
        cls = output.last_hidden_state[:, 0]  # (B, D)
        prompts = self.prompted(features=entering, output_hidden_states=True).hidden_states[-1]
        prompts = self.backbone.layernorm(prompts)  # (B, 11, D)

        patches = self.patch_norm(entering[:, 1:])
        nothing = (1 - shares.sum(-1, keepdim=True)).clamp(min=0)
        which = cross_entropy(self.patch_part(patches).transpose(1, 2), torch.cat([shares, nothing], -1).mT)
        seen = shares * (colours >= 0)[:, None]
        share_of_colour = seen.new_zeros(*seen.shape[:2], ABSENT + 1)
        share_of_colour.scatter_add_(2, colours.clamp(min=0)[:, None].expand_as(seen), seen)
        share_of_colour[..., ABSENT] = nothing[..., 0]
        painted = cross_entropy(self.patch_colour(patches).transpose(1, 2), share_of_colour.mT)

        by_prompt = cross_entropy(self.part_colour(prompts).transpose(1, 2), colours)
        by_cls = cross_entropy(self.cls_colour(cls).unflatten(-1, (len(PARTS), -1)).transpose(1, 2), colours)
        shape = torch.zeros(())
        for column, (part, of_prompt, of_cls) in enumerate(zip(SHAPES, self.part_shape, self.cls_shape, strict=True)):
            prompt = prompts[:, PARTS.index(part)]
            for prediction in (of_prompt(prompt), of_cls(cls)):
                shape = shape + cross_entropy(prediction, shapes[:, column]) / (2 * len(SHAPES))
        beginners = self.beginners.loss(self.prompted, entering, torch.cat([colours, shapes], dim=1))
        return {
            "patch_part": which,
            "patch_colour": painted,
            "prompt": by_prompt,
            "cls": by_cls,
            "shape": shape,
            "beginners": beginners,
        }

    def after_step(self, progress: float) -> None:
        self.beginners.step()


class Dino(nn.Module):
    """Self-distillation: the loss compares what student and teacher say of crops of the same picture."""

    LEARNING_RATE = 5e-4
    LARGE, SMALL, NUM_SMALL = 64, 32, 4  # pixels of a side; the position encoding is interpolated
    PROTOTYPES, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, MOMENTUM = 512, 0.1, 0.04, 0.99

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"backbone": tiny_vit(), "head": self._head()})
        self.teacher = deepcopy(self.student).requires_grad_(False)

    def finished(self) -> ViTModel:
        return self.teacher["backbone"]  # the better one of the two, as in the paper

    def before_step(self, step: int) -> None:
        pass

    def _head(self) -> nn.Module:
        projection = nn.utils.parametrizations.weight_norm(nn.Linear(64, self.PROTOTYPES, bias=False))
        projection.parametrizations.weight.original0.data.fill_(1)
        projection.parametrizations.weight.original0.requires_grad_(False)
        return nn.Sequential(nn.Linear(144, 512), nn.GELU(), nn.Linear(512, 64), _UnitLength(), projection)

    def _says(self, model: nn.ModuleDict, crops: torch.Tensor) -> torch.Tensor:
        tokens = model["backbone"](crops, interpolate_pos_encoding=True).last_hidden_state
        return model["head"](tokens[:, 0])

    def forward(self, pixel_values, *labels) -> dict[str, torch.Tensor]:
        large = torch.cat([_crops(pixel_values, self.LARGE, 0.4, 1.0) for _ in range(2)])  # (2 B, 3, 64, 64)
        small = torch.cat([_crops(pixel_values, self.SMALL, 0.08, 0.4) for _ in range(self.NUM_SMALL)])
        with torch.no_grad():
            targets = centred(self._says(self.teacher, large) / self.TEACHER_TEMPERATURE).chunk(2)
        said = [*self._says(self.student, large).chunk(2), *self._says(self.student, small).chunk(self.NUM_SMALL)]
        losses = [
            cross_entropy(logits / self.STUDENT_TEMPERATURE, target)
            for view, logits in enumerate(said)
            for other, target in enumerate(targets)
            if view != other  # never the same crop to both
        ]
        return {"distillation": torch.stack(losses).mean()}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        momentum = 1 - (1 - self.MOMENTUM) * (1 + math.cos(math.pi * progress)) / 2
        for mean, weight in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(weight, 1 - momentum)


def centred(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities `(n, K)`, of logits of that shape, by which all K are used alike over the n crops (Sinkhorn-Knopp).
    Batches are small here: with a running mean, as in the first DINO, six of 2048 were in use after 200 steps."""
    probabilities = logits.softmax(-1)
    for _ in range(3):
        probabilities = probabilities / probabilities.sum(0)
        probabilities = probabilities / probabilities.sum(1, keepdim=True)
    return probabilities


class _UnitLength(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, dim=-1)


def _crops(images: torch.Tensor, size: int, smallest: float, largest: float) -> torch.Tensor:
    """A random crop of each image, of so much of its area, resized, sometimes mirrored, lighter or darker."""
    crops = []
    for image in images:
        side = round(image.shape[-1] * math.sqrt(smallest + (largest - smallest) * torch.rand(()).item()))
        top, left = torch.randint(image.shape[-1] - side + 1, (2,)).tolist()
        crop = image[None, :, top : top + side, left : left + side]
        crop = crop.flip(-1) if torch.rand(()) < 0.5 else crop
        crop = interpolate(crop, (size, size), mode="bilinear", antialias=True)
        crops.append(((crop + 1) * (0.8 + 0.4 * torch.rand(())) - 1).clamp(-1, 1))
    return torch.cat(crops)


OBJECTIVES: dict[str, Any] = {"dino": Dino, "attributes": Attributes}

# --- Training ---------------------------------------------------------------------------------------------------------


def pretrain(output_dir: Path, objective: str, num_images: int, epochs: int, seed: int) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    birds = load_birds(output_dir, num_images, os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_seed(seed)
    model = OBJECTIVES[objective]().to(device).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=model.LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    steps, first_step = epochs * (num_images // BATCH_SIZE), 0
    settings = [objective, num_images, epochs, seed]
    state_file = output_dir / f"{objective}.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["settings"] != settings:
            raise SystemExit(f"{state_file} is of a run with {state['settings']}, not {settings}; remove it first.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        first_step = state["step"]

    means: dict[str, float] = {}
    with tqdm(total=steps, initial=first_step, desc=objective, unit="step") as progress:
        for step, batch in enumerate(batches(birds, first_step, steps, seed), start=first_step + 1):
            model.before_step(step - 1)
            warmup, decay = step / (WARMUP * steps), (1 + math.cos(math.pi * step / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = model.LEARNING_RATE * min(warmup, 1) * max(decay, 0.01)
            losses = model(*(column.to(device) for column in batch))
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            model.after_step(step / steps)
            for name, value in losses.items():
                means[name] = 0.98 * means.get(name, value.item()) + 0.02 * value.item()
            progress.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
            progress.update()
            if step % SAVE_EVERY == 0 or step == steps:
                draft = state_file.with_suffix(".part")
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
                torch.save(state | {"step": step, "settings": settings}, draft)
                os.replace(draft, state_file)
    model.finished().save_pretrained(output_dir / "backbone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder for the birds, the state and backbone/")
    parser.add_argument("--objective", choices=list(OBJECTIVES), default="dino")
    parser.add_argument("--images", type=int, default=16_000, help="birds to draw (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="times through them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pretrain(args.output_dir, args.objective, args.images, args.epochs, args.seed)


if __name__ == "__main__":
    main()
