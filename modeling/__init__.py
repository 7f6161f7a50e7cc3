"""Prompt-CAM for transformers: the files that travel to the Hub inside every checkpoint.

Flat, and importing nothing but torch, Pillow, transformers and what transformers needs, so that a checkpoint loads with
`trust_remote_code=True` on a machine where this package is not installed.
"""

from .comparison_promptcam import PromptCamComparison
from .configuration_promptcam import PromptCamConfig
from .explanations_promptcam import Explanations
from .head_ranking_promptcam import PromptCamHeadRanking
from .modeling_promptcam import PromptCamForImageClassification, PromptCamImageClassifierOutput
from .open_clip_promptcam import open_clip_backbone
from .pipeline_promptcam import PromptCamPipeline
from .pretrained_promptcam import PromptCamPreTrainedModel

__all__ = [
    "Explanations",
    "PromptCamComparison",
    "PromptCamConfig",
    "PromptCamForImageClassification",
    "PromptCamHeadRanking",
    "PromptCamImageClassifierOutput",
    "PromptCamPipeline",
    "PromptCamPreTrainedModel",
    "open_clip_backbone",
]
