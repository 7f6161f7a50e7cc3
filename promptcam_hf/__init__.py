"""Prompt-CAM as a Hugging Face model: which traits, on a photograph, make a thing what it is.

Importing this package registers the configuration, the model and the pipeline task `"prompt-cam"` with transformers.
"""

from transformers import AutoConfig, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from . import demo
from .modeling import (
    PromptCamConfig,
    PromptCamForImageClassification,
    PromptCamHeadRanking,
    PromptCamImageClassifierOutput,
    PromptCamPipeline,
)
from .modeling.configuration_promptcam import TASK
from .share.conversion import convert_checkpoint
from .version import __version__

AutoConfig.register(PromptCamConfig.model_type, PromptCamConfig, exist_ok=True)
AutoModelForImageClassification.register(PromptCamConfig, PromptCamForImageClassification, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=PromptCamPipeline,
    pt_model=AutoModelForImageClassification,
    default={"model": (str(demo.MODEL), None)},  # where no model is named; it has no revisions
    type="image",
)

__all__ = [
    "PromptCamConfig",
    "PromptCamForImageClassification",
    "PromptCamHeadRanking",
    "PromptCamImageClassifierOutput",
    "PromptCamPipeline",
    "__version__",
    "convert_checkpoint",
    "demo",
]
