import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.evaluation.trait_data import load_trait_data
from promptcam_hf.evaluation.trait_metrics import part_region

from .cases import BOXES, NAMES, SIZE, mask_image, trait_data


def test_images_come_with_their_masks_and_other_scenes(birds):
    data = trait_data(birds, names=["blue", "green", "red"])
    assert len(data) == 7
    assert data.labels == [0, 0, 0, 2, 2, 2, 2]
    first = data[0]
    assert (first.label, first.pixel_values.shape) == (0, (3, SIZE, SIZE))
    assert first.mask.equal(torch.from_numpy(np.array(mask_image())))
    without, swapped = data.without(0), data.swapped(0)
    assert set(without) == set(BOXES)
    changed = (without["wing"] != first.pixel_values).any(0)
    assert changed.equal(part_region(first.mask, data.table, ["wing"]))
    assert set(swapped) == {"red"}
    assert swapped["red"].equal(data[3].pixel_values)


def test_masks_are_resized_like_their_images_without_new_values(birds, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(birds, folder)
    wide = (96, 48)  # pixels of 3 x 1.5
    for file in ("test/blue/0.png", "test_parts/blue/0.png"):
        Image.open(folder / file).resize(wide, Image.Resampling.NEAREST).save(folder / file)
    assert trait_data(folder)[0].mask.equal(trait_data(birds)[0].mask)
    small = trait_data(folder, size=16)[0].mask
    assert small.shape == (16, 16)
    assert small.equal(torch.from_numpy(np.array(mask_image()))[::2, ::2])
    padded = load_trait_data(folder, NAMES, new_image_processor(SIZE, keep_aspect=True))[0].mask
    assert padded.equal(torch.nn.functional.pad(torch.from_numpy(np.array(mask_image()))[::2], (0, 0, 8, 8)))


def test_masks_that_are_missing_or_do_not_fit_are_refused(birds, tmp_path):
    folder = tmp_path / "birds"
    shutil.copytree(birds, folder)
    mask = folder / "test_parts" / "red" / "1.png"
    mask_image().resize((30, 32)).save(mask)
    with pytest.raises(ValueError, match=r"red.1\.png: a mask of 30 x 32 pixels; expected 32 x 32"):
        list(trait_data(folder))
    mask.unlink()
    with pytest.raises(ValueError, match=r"red.1\.png is missing; expected a mask for each test image"):
        trait_data(folder)


def test_an_image_processor_that_crops_is_refused(birds):
    processor = new_image_processor(SIZE)
    processor.do_center_crop, processor.crop_size = True, processor.size
    with pytest.raises(ValueError, match=r"The image processor crops \(do_center_crop=True\), so the masks do not fit"):
        load_trait_data(birds, NAMES, processor)
