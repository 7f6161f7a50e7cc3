"""How the weights of a Prompt-CAM are initialised, loaded, saved and frozen."""

import os
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from typing_extensions import Self

from .backbone_promptcam import check_same_architecture, encoder_of, load_pretrained, load_weights, pair
from .configuration_promptcam import PromptCamConfig


class PromptCamPreTrainedModel(PreTrainedModel):
    """How weights are initialised, loaded and saved, and that the backbone stays frozen."""

    config_class = PromptCamConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    # The layers are not called as modules but walked through, so one backbone lives on one device
    _no_split_modules = ["ViTModel", "Dinov2Model"]
    _supports_sdpa = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, which `Trainer` divides by itself
    backbone: Any
    class_prompts: nn.Parameter
    agnostic_prompts: nn.Parameter | None
    _frozen_modules: tuple[nn.Module, ...]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PromptCamPreTrainedModel):
            # Xavier-uniform as if prompts were patches: sqrt(6 / (patch pixels + D))
            height, width = pair(self.config.backbone_config.patch_size)
            fan = self.config.backbone_config.num_channels * height * width + self.config.backbone_config.hidden_size
            bound = (6 / fan) ** 0.5
            init.uniform_(module.class_prompts, -bound, bound)
            if module.agnostic_prompts is not None:
                init.uniform_(module.agnostic_prompts, -bound, bound)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        # What is said about the download of the checkpoint holds for that of the backbone
        download = {name: kwargs[name] for name in ("cache_dir", "local_files_only", "token") if name in kwargs}
        loaded = super().from_pretrained(*args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.prompts_only:
            model.load_backbone(**download)
        model.freeze_backbone()  # loading puts new parameters, which require gradients, in the place of the frozen ones
        return loaded

    def save_pretrained(self, save_directory, *args, prompts_only: bool | None = None, **kwargs):
        """
        As of every transformers model, and in a small form: prompts, score head and the backbone's id, a few MB instead
        of hundreds.

        Args:
            prompts_only (`bool`, *optional*): Whether to save the small form. By default as `config.prompts_only` says,
                which this sets: a model keeps the form that it was last saved in.

        Raises:
            ValueError: If the small form is asked for, but where the backbone came from is not known, or its weights
                have been trained.
        """
        config = cast(Any, self.config)
        trained = [name for name, weight in self.backbone.named_parameters() if weight.requires_grad]
        prompts_only = config.prompts_only if prompts_only is None else prompts_only
        if prompts_only:
            if config.backbone is None:
                raise ValueError(
                    "prompts_only=True: it is not known where the backbone came from. Build the model with "
                    "from_backbone(<id or folder>), or set config.backbone."
                )
            if trained:
                raise ValueError(f"prompts_only=True would lose the backbone's trained weights, such as {trained[0]}.")
            weights = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = {n: weight for n, weight in weights.items() if not n.startswith("backbone.")}
        elif trained:  # what is saved is no longer what came from there
            config.backbone = config.backbone_revision = None
        config.prompts_only = prompts_only  # once it is sure that it can be
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike | PreTrainedModel, *, image_size: int | None = None, **config
    ) -> Self:
        """
        A new Prompt-CAM on a pre-trained backbone: random prompts and score head, the backbone's weights.

        Args:
            backbone (`str`, `os.PathLike` or `PreTrainedModel`): Hub id, local folder, or a loaded model. The backbone
                of a model with a head, such as a classifier, is used.
            image_size (`int`, *optional*): Height and width of the images in pixels, if they differ from the
                backbone's. Position embeddings are interpolated once, here.
            config: Arguments of [`PromptCamConfig`], notably `id2label` or `num_labels`.

        Raises:
            ValueError: If the backbone's family is not supported or the configuration contradicts itself.
            OSError: If there is no such model.
        """
        if not isinstance(backbone, PreTrainedModel):
            backbone, revision = load_pretrained(backbone)
            config = {"backbone": backbone.name_or_path, "backbone_revision": revision} | config
        backbone_config, weights = encoder_of(backbone, image_size)
        model = cls(PromptCamConfig(backbone_config=backbone_config, **config))
        cast(nn.Module, model).to(backbone.device)
        model.backbone.to(backbone.dtype)  # what is trained stays float32: Adam's epsilon is 0 in float16
        load_weights(model.backbone, weights, model.config.backbone or "")
        return model

    def load_backbone(self, **download) -> None:
        """
        Load the weights of `config.backbone`, at its `backbone_revision`, into the backbone. `download` holds arguments
        of the download, such as `token` or `cache_dir`.

        Raises:
            OSError: If there is no such model.
            ValueError: If it does not fit this model.
        """
        name = self.config.backbone
        try:
            source, revision = load_pretrained(name, revision=self.config.backbone_revision, **download)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise OSError(
                f"This checkpoint holds only prompts, and its backbone {name!r} cannot be opened ({reason}). If it is "
                "elsewhere, pass from_pretrained(..., backbone=<id or folder>)."
            ) from None
        own = self.config.backbone_config
        config, weights = encoder_of(source, own.image_size)
        check_same_architecture(config, own, name)
        load_weights(self.backbone, weights, name)
        self.config.backbone_revision = revision

    def freeze_backbone(self) -> None:
        """Let no gradient reach the backbone's weights."""
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen_modules:  # adapters that were put in since are trained
            module.training = False
        return self
