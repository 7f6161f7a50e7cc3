"""Pre-trained backbones: what they are, and how photographs are prepared for them."""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from .files import read_mapping
from .messages import reason_of
from .modeling.backbone_promptcam import load_config
from .modeling.hub_promptcam import is_hub_id
from .modeling.open_clip_promptcam import HUB_PREFIX, is_open_clip, read_open_clip_config

EXPECTED = (
    "expected the folder or Hub id of a model of transformers, such as facebook/dino-vitb16, or of open_clip, such as "
    f"{HUB_PREFIX}imageomics/bioclip"
)
# Names that timm and the authors give to weights -> where the same weights are for transformers
ON_THE_HUB = {
    r"vit_(small|base|large|giant)_patch14_reg4_dinov2": "facebook/dinov2-with-registers-{}",
    r"vit_(small|base|large|giant)_patch14_dinov2": "facebook/dinov2-{}",
    r"vit_(small|base|large)_patch16_dinov3": "facebook/dinov3-vit{:.1}16-pretrain-lvd1689m",
    r"vit_(small|base)_patch(16|8)_224\.dino": "facebook/dino-vit{:.1}{}",
    r"dino_vit(small|base)(16|8)_pretrain": "facebook/dino-vit{:.1}{}",
    r"dino_deit(small)(16|8)_pretrain": "facebook/dino-vit{:.1}{}",
    r"vit_(base|large)_patch(16|14)_clip_224\.openai": "openai/clip-vit-{}-patch{}",
    r"vit_(base|large|huge)_patch(16|14)_224\.mae": "facebook/vit-mae-{}",
    r"vit_(base|large)_patch16_224\.(?:augreg|orig)_in21k": "google/vit-{}-patch16-224-in21k",
}


def read_backbone_config(backbone: str) -> PreTrainedConfig:
    """
    The configuration of a backbone.

    Args:
        backbone: Hub id or local folder of a model of transformers, or of open_clip (see `open_clip_backbone`).

    Raises:
        ValueError: If it cannot be opened, or is no supported model. The message is one line.
    """
    path = Path(backbone)
    if not is_open_clip(backbone):
        if path.is_file():
            raise ValueError(
                f"backbone={backbone} is a file; {_instead_of(path.name)}. For a checkpoint of the original Prompt-CAM "
                "code there is `promptcam convert`."
            )
        if path.is_dir() and not (path / "config.json").is_file():
            raise ValueError(f"backbone={backbone} has no config.json; {EXPECTED}.")
        if not path.exists() and not is_hub_id(backbone):
            raise ValueError(f"backbone={backbone}: no such folder, and no Hub id such as facebook/dino-vitb16.")
    try:
        if not is_open_clip(backbone):
            given = PreTrainedConfig.get_config_dict(backbone)[0]
            if given.get("model_type") in (None, "timm_wrapper"):
                name = given.get("pretrained_cfg", {}).get("tag", "")
                name = f"{backbone} {given.get('architecture')}.{name}"
                raise ValueError(f"its config.json is of timm or another library; {_instead_of(name)}")
        return load_config(backbone)[0]
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    except (TypeError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:  # wrong values
        reason = " ".join(str(error).split())
    raise ValueError(f"backbone={backbone}: cannot be opened ({reason})")


def _instead_of(name: str) -> str:
    """What to use in the place of weights of timm or of a backbone's authors, by their name."""
    for pattern, there in ON_THE_HUB.items():
        if match := re.search(pattern, name):
            return f"expected its weights for transformers, {there.format(*match.groups())}"
    return EXPECTED


def read_preprocessing(backbone: str | os.PathLike, revision: str | None = None) -> dict[str, Any]:
    """
    How a backbone expects photographs.

    Args:
        backbone: Hub id or local folder.
        revision: Branch, tag or commit of the Hub repository.

    Returns:
        `image_mean`, `image_std` and `resample`, as image processors take them, from its `preprocessor_config.json` or
        `open_clip_config.json`. Of each, nothing if it says nothing; a warning if it says nothing at all.

    Raises:
        OSError: If the Hub cannot be reached.
        ValueError: If a file cannot be read.
    """
    if is_open_clip(backbone):
        given = read_open_clip_config(backbone, revision)["preprocess_cfg"] or {}
        resample = getattr(Image.Resampling, str(given.get("interpolation")).upper(), Image.Resampling.BICUBIC)
        mean, std = given.get("mean") or OPENAI_CLIP_MEAN, given.get("std") or OPENAI_CLIP_STD
        for name, value in (("mean", mean), ("std", std)):
            if np.shape(value) not in ((), (1,), (3,)):
                raise ValueError(f"{backbone}: {name}={value!r} in its preprocess_cfg; expected one number or three.")
        mean, std = (np.broadcast_to(value, 3).tolist() for value in (mean, std))
        return {"image_mean": mean, "image_std": std, "resample": resample}
    for name in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME):  # the second holds that of CLIP and the like in newer releases
        file = cached_file(backbone, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        given = {} if file is None else read_mapping(Path(file), json.loads)
        inner = given.get("image_processor")
        given = inner if isinstance(inner, dict) else given
        if given.get("do_normalize") is False:
            return {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        if given.get("image_mean"):
            return {key: given[key] for key in ("image_mean", "image_std", "resample") if given.get(key) is not None}
    warnings.warn(
        f"{backbone} has no {IMAGE_PROCESSOR_NAME} with an image_mean; photographs are normalised with mean 0.5 and "
        "standard deviation 0.5, and it may have been trained with others.",
        stacklevel=2,
    )
    return {}
