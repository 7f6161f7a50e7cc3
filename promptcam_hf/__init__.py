"""Prompt-CAM as a Hugging Face model: which traits, on a photograph, make a thing what it is.

Importing this package registers the configuration, the model and the pipeline task `"prompt-cam"` with transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from . import demo
from .modeling import (
    PromptCamComparison,
    PromptCamConfig,
    PromptCamForImageClassification,
    PromptCamHeadRanking,
    PromptCamImageClassifierOutput,
    PromptCamPipeline,
    open_clip_backbone,
)
from .modeling.configuration_promptcam import TASK
from .version import __version__

if TYPE_CHECKING:
    from .evaluation.evaluate import evaluate
    from .explanation.compare import compare
    from .explanation.explain import explain
    from .share.conversion import convert_checkpoint
    from .share.hub import push
    from .share.run import resume, train
    from .training.options import TrainingOptions
    from .training.trainer import PromptCamTrainer

AutoConfig.register(PromptCamConfig.model_type, PromptCamConfig, exist_ok=True)
AutoModelForImageClassification.register(PromptCamConfig, PromptCamForImageClassification, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=PromptCamPipeline,
    pt_model=AutoModelForImageClassification,
    default={"model": (str(demo.MODEL), None)},  # where no model is named; it has no revisions
    type="image",
)

# Imported at their first use: datasets and accelerate take seconds
_MODULE_OF = {
    "PromptCamTrainer": ".training.trainer",
    "TrainingOptions": ".training.options",
    "compare": ".explanation.compare",
    "convert_checkpoint": ".share.conversion",
    "evaluate": ".evaluation.evaluate",
    "explain": ".explanation.explain",
    "push": ".share.hub",
    "resume": ".share.run",
    "train": ".share.run",
}

__all__ = [
    "PromptCamComparison",
    "PromptCamConfig",
    "PromptCamForImageClassification",
    "PromptCamHeadRanking",
    "PromptCamImageClassifierOutput",
    "PromptCamPipeline",
    "PromptCamTrainer",
    "TrainingOptions",
    "__version__",
    "compare",
    "convert_checkpoint",
    "demo",
    "evaluate",
    "explain",
    "open_clip_backbone",
    "push",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
