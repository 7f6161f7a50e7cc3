"""Prompt-CAM as a Hugging Face model: a classifier that shows the traits it decides by.

Importing this package registers the configuration, the model and the pipeline task `"prompt-cam"` with transformers.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import demo
from .registration import register_with_transformers
from .version import __version__

if TYPE_CHECKING:
    from .app.serve import serve_app
    from .app.space import make_space, push_space
    from .doctor import examine
    from .evaluation.evaluate import evaluate
    from .explanation.compare import compare
    from .explanation.explain import explain
    from .explanation.predict import predict
    from .explanation.predictor import PromptCamPredictor
    from .explanation.ray_engine import explain_on_ray
    from .explanation.shards import explain_shards, load_explanations
    from .explanation.sheets import draw_sheets
    from .guide.identification import make_key
    from .guide.site import make_guide
    from .guide.trait_names import TraitNames
    from .guide.traits import make_traits
    from .modeling import (
        Explanations,
        PromptCamComparison,
        PromptCamConfig,
        PromptCamForImageClassification,
        PromptCamHeadRanking,
        PromptCamImageClassifierOutput,
        PromptCamPipeline,
        open_clip_backbone,
    )
    from .share.conversion import convert_checkpoint
    from .share.export import export_onnx
    from .share.hub import push
    from .share.run import resume, train
    from .training.options import TrainingOptions
    from .training.trainer import PromptCamTrainer

_CLONE = Path(__file__).resolve().parents[1]
if not Path(__path__[0], "modeling", "__init__.py").exists() and Path(_CLONE, "modeling", "__init__.py").exists():
    # Python that runs in a clone finds this folder before the installed package, and `modeling/` is beside it
    __path__.append(str(_CLONE))

register_with_transformers()

# Imported at their first use: torch, transformers, datasets and accelerate take seconds
_MODULE_OF = {
    "Explanations": ".modeling",
    "PromptCamComparison": ".modeling",
    "PromptCamConfig": ".modeling",
    "PromptCamForImageClassification": ".modeling",
    "PromptCamHeadRanking": ".modeling",
    "PromptCamImageClassifierOutput": ".modeling",
    "PromptCamPipeline": ".modeling",
    "PromptCamPredictor": ".explanation.predictor",
    "PromptCamTrainer": ".training.trainer",
    "TrainingOptions": ".training.options",
    "TraitNames": ".guide.trait_names",
    "compare": ".explanation.compare",
    "convert_checkpoint": ".share.conversion",
    "draw_sheets": ".explanation.sheets",
    "evaluate": ".evaluation.evaluate",
    "examine": ".doctor",
    "explain": ".explanation.explain",
    "explain_on_ray": ".explanation.ray_engine",
    "explain_shards": ".explanation.shards",
    "export_onnx": ".share.export",
    "load_explanations": ".explanation.shards",
    "make_guide": ".guide.site",
    "make_key": ".guide.identification",
    "make_space": ".app.space",
    "make_traits": ".guide.traits",
    "open_clip_backbone": ".modeling",
    "predict": ".explanation.predict",
    "push": ".share.hub",
    "push_space": ".app.space",
    "resume": ".share.run",
    "serve_app": ".app.serve",
    "train": ".share.run",
}

__all__ = [
    "Explanations",
    "PromptCamComparison",
    "PromptCamConfig",
    "PromptCamForImageClassification",
    "PromptCamHeadRanking",
    "PromptCamImageClassifierOutput",
    "PromptCamPipeline",
    "PromptCamPredictor",
    "PromptCamTrainer",
    "TrainingOptions",
    "TraitNames",
    "__version__",
    "compare",
    "convert_checkpoint",
    "demo",
    "draw_sheets",
    "evaluate",
    "examine",
    "explain",
    "explain_on_ray",
    "explain_shards",
    "export_onnx",
    "load_explanations",
    "make_guide",
    "make_key",
    "make_space",
    "make_traits",
    "open_clip_backbone",
    "predict",
    "push",
    "push_space",
    "resume",
    "serve_app",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
