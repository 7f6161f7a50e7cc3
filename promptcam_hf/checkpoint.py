"""Writing checkpoint folders."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError
from transformers import BaseImageProcessor, ViTImageProcessorPil
from transformers.utils import logging

from .files import write_files_atomically
from .modeling import PromptCamForImageClassification


def new_image_processor(image_size: int) -> ViTImageProcessorPil:
    """The paper's preprocessing for evaluation: resize to `image_size` x `image_size` pixels regardless of the aspect
    ratio, and normalise with mean 0.5 and standard deviation 0.5."""
    return ViTImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=Image.Resampling.BILINEAR,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_checkpoint(
    model: PromptCamForImageClassification,
    image_processor: BaseImageProcessor,
    output_dir: str | os.PathLike,
    prompts_only: bool | None = None,
) -> None:
    """
    Write everything that `from_pretrained` and `pipeline("prompt-cam")` need: weights, configuration, image processor,
    and the code for machines without this package. Every file is written atomically. Other files in the folder stay.

    Args:
        model: The model.
        image_processor: Its image processor.
        output_dir: Folder to write to. It is created if needed.
        prompts_only: Whether to leave out the backbone's weights; see the model's `save_pretrained`.

    Raises:
        ValueError: If `prompts_only`, and the model does not know where its backbone came from.
        OSError: If the folder cannot be written to.
    """
    with write_files_atomically(Path(output_dir)) as draft:
        try:
            with _no_progress_bar():
                model.save_pretrained(draft, prompts_only=prompts_only)
        except SafetensorError as error:  # this is how safetensors reports a full disk
            raise OSError(f"{output_dir}: cannot be written ({error}).") from None
        image_processor.save_pretrained(draft)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the progress bar of transformers, which would count to one file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
