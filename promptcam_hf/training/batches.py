"""Which images each process sees in which step."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import Sampler

from .options import TrainingOptions
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


class MicroBatches(Sampler):
    """
    One process's share of all batches of a run: lists of (epoch, index of the image), one list per micro-batch.

    The order within an epoch depends only on the seed and the epoch. The images of a step are the same whatever the
    number of processes and micro-batches that share them.

    Args:
        labels: The class of each training image, `(n,)`.
        kept: The images that train in every epoch, ascending. In the last `options.final_epochs`, all do. An epoch has
            as many whole batches as these images fill; others, chosen at random, are skipped.
        first_step: Step to start from, counted from 0.
        options: `batch_size`, `epochs`, `final_epochs`, `gradient_accumulation_steps`, `sampling` and `seed` are used.
        accelerator: Tells the number of processes, and which one this is.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        kept: list[int],
        first_step: int,
        options: TrainingOptions,
        accelerator: Accelerator,
    ):
        self.labels, self.kept = labels, kept
        self.options = options
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.steps_per_epoch = len(kept) // options.batch_size
        self.steps = range(first_step, options.epochs * self.steps_per_epoch)

    def __len__(self) -> int:
        return len(self.steps) * self.options.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        micro_batches = self.options.gradient_accumulation_steps
        size = self.options.batch_size // (micro_batches * self.num_processes)
        for step in self.steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                is_final = epoch >= self.options.epochs - (self.options.final_epochs or 0)
                rows = list(range(len(self.labels))) if is_final else self.kept
                order = [rows[place] for place in order_of_epoch(self.labels[rows], self.options, epoch)]
            start = step % self.steps_per_epoch * self.options.batch_size
            for micro_batch in range(micro_batches):
                first = start + (micro_batch * self.num_processes + self.process) * size
                yield [(epoch, index) for index in order[first : first + size]]
