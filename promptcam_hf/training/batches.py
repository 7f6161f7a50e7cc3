"""Which images each process sees in which step."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import Sampler

from ..messages import counted
from .options import BATCH_SIZE, TrainingOptions
from .views import seeded


def order_of_epoch(labels: torch.Tensor, options: TrainingOptions, epoch: int) -> list[int]:
    """
    The images that an epoch, counted from 0, goes through, in order: each once, or, with balanced sampling, as many as
    there are, drawn with replacement so that all classes are equally frequent.

    Args:
        labels: The class of each image, `(n,)`.
        options: `seed` and `sampling` are used.
        epoch: The epoch.
    """
    generator = seeded(options.seed, epoch)
    if options.sampling == "balanced":
        rarity = 1 / labels.bincount()[labels].double()
        return torch.multinomial(rarity, len(labels), replacement=True, generator=generator).tolist()
    return torch.randperm(len(labels), generator=generator).tolist()


def check_batch_size(options: TrainingOptions, num_processes: int) -> None:
    """
    Check that a batch can be divided into micro-batches.

    Args:
        options: `batch_size` and `gradient_accumulation_steps` are used.
        num_processes: How many processes share a batch.

    Raises:
        ValueError: If not.
    """
    num_steps = options.gradient_accumulation_steps
    if (options.batch_size or 0) % (num_processes * num_steps):
        raise ValueError(
            f"batch_size={options.batch_size} cannot be divided among {counted(num_processes, 'device')} and "
            f"gradient_accumulation_steps={num_steps}; expected a multiple of {num_processes * num_steps}."
        )


def choose_batch_size(options: TrainingOptions, num_images: int, num_processes: int) -> int:
    """
    The given batch size or, by default, 16 or the number of images, if there are fewer, rounded down to what can be
    divided into micro-batches.

    Args:
        options: `batch_size`, `gradient_accumulation_steps` and `data` are used.
        num_images: Training images that are not held out.
        num_processes: How many processes share a batch.

    Raises:
        ValueError: If there are fewer images than in a batch.
    """
    num_micro_batches = num_processes * options.gradient_accumulation_steps
    most = max(min(BATCH_SIZE, num_images) // num_micro_batches, 1) * num_micro_batches
    batch_size = options.batch_size or most
    if batch_size > num_images:
        raise ValueError(
            f"batch_size={batch_size} is more than the {num_images} training images of {options.data or 'splits'} that "
            f"are not held out; expected {num_images} or less."
        )
    return batch_size


class MicroBatches(Sampler):
    """
    One process's share of all batches of a run: lists of (epoch, index of the image), one list per micro-batch.

    The order within an epoch depends only on the seed and the epoch. The images of a step are the same whatever the
    number of processes and micro-batches that share them.

    Args:
        labels: The class of each training image, `(n,)`.
        kept: The images to train on in every epoch, ascending; in the last `options.final_epochs`, on all. An epoch has
            as many whole batches as these images fill; others, chosen at random, are skipped.
        batch_size: Images of a step, over all processes and micro-batches.
        first_step: Step to start from, counted from 0.
        options: `epochs`, `final_epochs`, `gradient_accumulation_steps`, `sampling` and `seed` are used.
        accelerator: Tells the number of processes, and which one this is.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        kept: list[int],
        batch_size: int,
        first_step: int,
        options: TrainingOptions,
        accelerator: Accelerator,
    ):
        self.labels, self.kept = labels, kept
        self.options = options
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.batch_size = batch_size
        self.steps_per_epoch = len(kept) // batch_size
        self.steps = range(first_step, options.epochs * self.steps_per_epoch)

    def __len__(self) -> int:
        return len(self.steps) * self.options.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        micro_batches = self.options.gradient_accumulation_steps
        size = self.batch_size // (micro_batches * self.num_processes)
        for step in self.steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                is_final = epoch >= self.options.epochs - (self.options.final_epochs or 0)
                rows = list(range(len(self.labels))) if is_final else self.kept
                order = [rows[place] for place in order_of_epoch(self.labels[rows], self.options, epoch)]
            start = step % self.steps_per_epoch * self.batch_size
            for micro_batch in range(micro_batches):
                first = start + (micro_batch * self.num_processes + self.process) * size
                yield [(epoch, index) for index in order[first : first + size]]
