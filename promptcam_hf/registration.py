"""Tells transformers about Prompt-CAM: configuration, model and the pipeline task `"prompt-cam"`.

`import promptcam_hf` should not load torch and transformers, which takes seconds: the command line would make people
wait for `--help`. Yet whoever imports both packages, in whatever order, expects `pipeline("prompt-cam")` to work. So
registering waits for the import of transformers. Python has no callback for that; the usual way is a finder in
`sys.meta_path` that wraps the loader of the awaited module.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODELING = f"{__package__}.modeling"


def register_with_transformers() -> None:
    """Register now if transformers has been imported, or else right after it is."""
    if "transformers" in sys.modules:
        _register()
    elif not any(isinstance(finder, _Registration) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Registration())


def _register() -> None:
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from . import demo
    from .modeling import PromptCamConfig, PromptCamForImageClassification, PromptCamPipeline
    from .modeling.configuration_promptcam import TASK

    AutoConfig.register(PromptCamConfig.model_type, PromptCamConfig, exist_ok=True)
    AutoModelForImageClassification.register(PromptCamConfig, PromptCamForImageClassification, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=PromptCamPipeline,
        pt_model=AutoModelForImageClassification,
        default={"model": (str(demo.MODEL), None)},  # where no model is named; it has no revisions
        type="image",
    )


class _Registration(MetaPathFinder):
    """Registers once both transformers and our `modeling` are complete. Either import triggers the other."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        after = {"transformers": self._transformers_is_here, _MODELING: self._modeling_is_here}.get(name)
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others) if after else iter(())
        spec = next((spec for spec in specs if spec), None)
        if after and spec and spec.loader:
            _call_after(spec.loader, after)
        return spec

    def _transformers_is_here(self) -> None:
        if _MODELING not in sys.modules:  # or else it is what imports transformers, and not complete yet
            importlib.import_module(_MODELING)

    def _modeling_is_here(self) -> None:
        sys.meta_path.remove(self)
        _register()


def _call_after(loader: object, call: Callable[[], None]) -> None:
    """Call something as soon as this loader has executed its module."""
    execute = loader.exec_module  # type: ignore[attr-defined]

    def execute_then_call(module: ModuleType) -> None:
        del loader.exec_module  # type: ignore[attr-defined]
        execute(module)
        call()

    loader.exec_module = execute_then_call  # type: ignore[attr-defined]
