"""Checkpoint folders: what goes into one, and how it is written."""

import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from transformers import BaseImageProcessor, ViTImageProcessorPil

from .modeling import PromptCamForImageClassification


def new_image_processor(image_size: int) -> BaseImageProcessor:
    """The paper's preprocessing for evaluation: resize to `image_size` x `image_size`, aspect ignored, and normalise
    with mean 0.5 and standard deviation 0.5."""
    return ViTImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=Image.Resampling.BILINEAR,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_checkpoint(
    model: PromptCamForImageClassification, image_processor: BaseImageProcessor, output_dir: str | os.PathLike
) -> None:
    """
    Write all that `from_pretrained` and `pipeline("prompt-cam")` need: weights, configuration, image processor, and the
    code for machines without this package. Every file is written under another name and then moved, so that at no time
    there is half a file; other files in the folder stay.

    Args:
        output_dir: Folder to write to; made if need be.

    Raises:
        OSError: If it cannot be written.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".writing-", dir=output_dir))
    try:
        model.save_pretrained(draft)
        image_processor.save_pretrained(draft)
        for file in sorted(draft.iterdir()):
            os.replace(file, output_dir / file.name)
    finally:
        shutil.rmtree(draft)
