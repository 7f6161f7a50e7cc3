"""Which images each process sees in which step."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import Sampler

from .options import TrainingOptions
from .views import seeded


def order_of_epoch(num_images: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch, counted from 0, goes through the images."""
    return torch.randperm(num_images, generator=seeded(seed, epoch)).tolist()


class MicroBatches(Sampler):
    """
    One process's share of all batches of a run: lists of (epoch, index of the image), one list per micro-batch.

    The order within an epoch depends only on the seed and the epoch. The images of a step are the same whatever the
    number of processes and micro-batches that share them.

    Args:
        num_images: Number of training images. Those left over at the end of an epoch, fewer than a batch, are skipped.
        first_step: Step to start from, counted from 0.
        options: `batch_size`, `epochs`, `gradient_accumulation_steps` and `seed` are used.
        accelerator: Tells the number of processes, and which one this is.
    """

    def __init__(self, num_images: int, first_step: int, options: TrainingOptions, accelerator: Accelerator):
        self.num_images = num_images
        self.options = options
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.steps_per_epoch = num_images // options.batch_size
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
                order = order_of_epoch(self.num_images, self.options.seed, epoch)
            start = step % self.steps_per_epoch * self.options.batch_size
            for micro_batch in range(micro_batches):
                first = start + (micro_batch * self.num_processes + self.process) * size
                yield [(epoch, index) for index in order[first : first + size]]
