"""Checkpoint folders: what goes into one, and how it is written."""

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
    """The paper's preprocessing for evaluation: resize to `image_size` x `image_size`, aspect ignored, and normalise
    with mean 0.5 and standard deviation 0.5."""
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
    Write all that `from_pretrained` and `pipeline("prompt-cam")` need: weights, configuration, image processor, and the
    code for machines without this package. Every file is written under another name and then moved, so that at no time
    there is half a file; other files in the folder stay.

    Args:
        output_dir: Folder to write to; made if need be.
        prompts_only: Whether to leave the backbone's weights out; see the model's `save_pretrained`.

    Raises:
        ValueError: If `prompts_only` and it is not known where the backbone came from.
        OSError: If it cannot be written.
    """
    with write_files_atomically(Path(output_dir)) as draft:
        try:
            with _no_progress_bar():
                model.save_pretrained(draft, prompts_only=prompts_only)
        except SafetensorError as error:  # which is what a full disk is to it
            raise OSError(f"{output_dir}: cannot be written ({error}).") from None
        image_processor.save_pretrained(draft)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers counts the files that it writes, one of one."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
