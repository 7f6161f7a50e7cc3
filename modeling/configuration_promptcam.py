"""Prompt-CAM configuration."""

import os
from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .backbone_promptcam import family_of
from .hub_promptcam import PushedWithoutLocalPaths

TASK = "prompt-cam"


class PromptCamConfig(PushedWithoutLocalPaths, PreTrainedConfig):
    r"""
    Configuration of a [`PromptCamForImageClassification`]: a frozen Vision Transformer of N layers, and the prompts
    that are learned for it (Chowdhury et al., "Prompt-CAM", CVPR 2025). The defaults describe Prompt-CAM-Deep on a
    ViT-B/16.

    Layers are counted from 1 to N. Class prompts enter at layer `class_prompt_layer` and flow on to layer N. Each
    prompted layer before it has class-agnostic prompts of its own, whose outputs are thrown away.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone, of a model type of `backbone_promptcam.FAMILIES`. Defaults to `ViTConfig()`.
        class_prompt_layer (`int`, *optional*, defaults to N):
            Layer in which the class prompts enter, 1 to N. With all layers prompted, N is Prompt-CAM-Deep, and 1 is
            Prompt-CAM-Shallow.
        num_agnostic_prompts (`int`, *optional*, defaults to `num_labels`):
            Number of class-agnostic prompts in each prompted layer before `class_prompt_layer`. May be 0.
        num_prompted_layers (`int`, *optional*, defaults to N):
            Prompt only the last `num_prompted_layers` layers, 1 to N.
        prompt_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the prompts in training, in [0, 1).
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth in training, in [0, 1): the rate grows linearly from 0 in layer 1 to this in layer N.
        patch_dropout (`float`, *optional*, defaults to 0.0):
            Share of the patches, in [0, 1), that is left out from the first prompted layer on in training, at random
            for each image (Liu et al., "PatchDropout", WACV 2023). Training is faster, and no prompt can rely on a
            single patch.
        temperature (`float`, *optional*, defaults to 1.0):
            Probabilities are the softmax of logits / temperature, greater than 0; fitted on photographs that served
            for nothing else (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). Logits do not depend
            on it.
        backbone (`str`, *optional*):
            Hub id or local folder that the backbone's weights came from. None if that is not known, or if they have
            been trained since.
        backbone_revision (`str`, *optional*):
            Commit of that Hub repository.
        prompts_only (`bool`, *optional*, defaults to `False`):
            Whether checkpoints hold only prompts and score head, and `from_pretrained` fetches the backbone's weights
            from `backbone`.
        kwargs:
            Arguments of `PreTrainedConfig`, notably `num_labels`, or `id2label` with or without `label2id`.

    Raises:
        ValueError: If a value is out of its range, or two values contradict each other; both are named.

    Example:

    ```python
    >>> from promptcam_hf import PromptCamConfig, PromptCamForImageClassification

    >>> config = PromptCamConfig(backbone_config={"model_type": "dinov2"}, num_labels=200)
    >>> model = PromptCamForImageClassification(config)  # random weights
    ```
    """

    model_type = "promptcam"
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: Any = None
    id2label: Any = None
    label2id: Any = None
    # None until `__post_init__`, which sets the defaults that depend on other values
    class_prompt_layer: int = None  # type: ignore[assignment]
    num_agnostic_prompts: int = None  # type: ignore[assignment]
    num_prompted_layers: int = None  # type: ignore[assignment]
    prompt_dropout: float = 0.0
    drop_path_rate: float = 0.0
    patch_dropout: float = 0.0
    temperature: float = 1.0
    backbone: str | None = None
    backbone_revision: str | None = None
    prompts_only: bool = False

    def __post_init__(self, **kwargs):
        if not isinstance(self.backbone_config, PreTrainedConfig):
            backbone = {"model_type": "vit"} | (self.backbone_config or {})
            self.backbone_config = AutoConfig.for_model(**backbone)
        family_of(self.backbone_config.model_type)
        if self.id2label is None and self.label2id is not None:
            self.id2label = {index: name for name, index in self.label2id.items()}
        num_labels, num_names = kwargs.get("num_labels"), None if self.id2label is None else len(self.id2label)
        if None not in (num_labels, num_names) and num_labels != num_names:
            raise ValueError(f"num_labels={num_labels} contradicts id2label, which names {num_names} classes.")
        if "custom_pipelines" in kwargs:
            from transformers.pipelines import PIPELINE_REGISTRY  # slow to import, and seldom needed

            # A checkpoint brings the code of its pipeline along (see `to_dict`). Where the task is known already,
            # `pipeline(...)` must not ask for `trust_remote_code` to run that copy.
            if TASK in PIPELINE_REGISTRY.get_supported_tasks():
                del kwargs["custom_pipelines"]
        super().__post_init__(**kwargs)

        names = {name: index for index, name in self.id2label.items()}
        self.label2id = {name: int(index) for name, index in (self.label2id or names).items()}
        num_layers = self.backbone_config.num_hidden_layers
        if self.class_prompt_layer is None:
            self.class_prompt_layer = num_layers
        if self.num_prompted_layers is None:
            self.num_prompted_layers = num_layers
        if self.num_agnostic_prompts is None:
            self.num_agnostic_prompts = self.num_labels
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise a `ValueError` that names the values that are out of range or contradict each other."""
        # Called here and not by `@strict`, whose errors take two lines and are no `ValueError`
        num_layers = self.backbone_config.num_hidden_layers
        layer = (int, lambda x: 1 <= x <= num_layers, f"1 to {num_layers}, as num_hidden_layers={num_layers}")
        rate = ((int, float), lambda x: 0 <= x < 1, "a rate in [0, 1)")
        expected: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
            "num_labels": (int, lambda x: x >= 2, "at least 2 classes"),
            "class_prompt_layer": layer,
            "num_prompted_layers": layer,
            "num_agnostic_prompts": (int, lambda x: x >= 0, "0 or more"),
            "prompt_dropout": rate,
            "drop_path_rate": rate,
            "patch_dropout": rate,
            "temperature": ((int, float), lambda x: 0 < x < float("inf"), "a number greater than 0"),
        }
        for name, (kind, is_in_range, text) in expected.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or not is_in_range(value):
                raise ValueError(f"{name}={value!r}: expected {text}.")
        if self.class_prompt_layer < self.first_prompted_layer:
            raise ValueError(
                f"class_prompt_layer={self.class_prompt_layer} contradicts num_prompted_layers="
                f"{self.num_prompted_layers}: of {num_layers} layers only layer {self.first_prompted_layer} and those "
                "after it get prompts."
            )
        if self.prompts_only and self.backbone is None:
            raise ValueError(
                "prompts_only=True contradicts backbone=None: there is nowhere to fetch the backbone from."
            )
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"problem_type={self.problem_type!r}: only single_label_classification is supported.")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"id2label has the keys {sorted(self.id2label)}; expected 0 to {len(self.id2label) - 1}.")
        for index, name in [*self.id2label.items(), *((index, name) for name, index in self.label2id.items())]:
            if self.id2label.get(index) != name or self.label2id.get(name) != index:
                raise ValueError(
                    f"id2label[{index}]={self.id2label.get(index)!r} contradicts label2id[{name!r}]="
                    f"{self.label2id.get(name)}: expected each name once, and the same in both."
                )

    @property
    def first_prompted_layer(self) -> int:
        """First layer that gets prompts, 1 to N."""
        return self.backbone_config.num_hidden_layers - self.num_prompted_layers + 1

    @property
    def num_agnostic_layers(self) -> int:
        """Number of layers that get class-agnostic prompts: `first_prompted_layer` to `class_prompt_layer` - 1."""
        return self.class_prompt_layer - self.first_prompted_layer

    # What tools ask every vision model for
    hidden_size = property(lambda self: self.backbone_config.hidden_size)
    num_hidden_layers = property(lambda self: self.backbone_config.num_hidden_layers)
    image_size = property(lambda self: self.backbone_config.image_size)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {model_type!r} checkpoint, not a {cls.model_type!r} one. To "
                "start a new Prompt-CAM on it, use PromptCamForImageClassification.from_backbone(...)."
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "PromptCamConfig":
        # Classes that are given when a checkpoint is loaded replace all that it says about its own
        about_classes = {"num_labels", "id2label", "label2id"}
        if given := about_classes & kwargs.keys():
            config_dict = {key: value for key, value in config_dict.items() if key not in about_classes}
            config_dict |= {key: kwargs.pop(key) for key in given}
        if (backbone := kwargs.pop("backbone", None)) is not None:
            # Another backbone than the checkpoint's has another commit
            config_dict = config_dict | {"backbone": os.fspath(backbone), "backbone_revision": None}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        # transformers copies every relatively imported file along with a checkpoint: this import is what makes the
        # pipeline travel. The entry tells `pipeline(...)` where it is.
        from .pipeline_promptcam import PromptCamPipeline

        custom_pipeline = {
            "impl": f"pipeline_promptcam.{PromptCamPipeline.__name__}",
            "pt": ["AutoModelForImageClassification"],
            "type": "image",
        }
        return super().to_dict() | {"custom_pipelines": {TASK: custom_pipeline}}


PromptCamConfig.register_for_auto_class()

__all__ = ["PromptCamConfig"]
