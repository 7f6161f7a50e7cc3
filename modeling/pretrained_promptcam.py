"""How the weights of a Prompt-CAM are initialised, loaded, saved and frozen."""

import os
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from typing_extensions import Self

from .backbone_promptcam import DOWNLOAD, encoder_of, load_pretrained, load_weights, pair
from .configuration_promptcam import PromptCamConfig
from .hub_promptcam import PushedWithoutLocalPaths


class PromptCamPreTrainedModel(PushedWithoutLocalPaths, PreTrainedModel):
    """How weights are initialised, loaded and saved, and that the backbone stays frozen."""

    config_class = PromptCamConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, which `Trainer` divides by itself
    backbone: Any
    class_prompts: nn.Parameter
    agnostic_prompts: nn.Parameter | None

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
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As of every transformers model, but weights that the checkpoint lacks are an error. Those of other shapes, such
        as the prompts of other classes, start anew with `ignore_mismatched_sizes=True`. With
        `output_loading_info=True`, weights that are missing start anew, too, and are reported.

        Raises:
            ValueError: If weights are missing.
        """
        # The checkpoint's download options hold for the backbone, too
        download = {name: kwargs[name] for name in DOWNLOAD if name in kwargs}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        if (missing := sorted(info["missing_keys"])) and not output_loading_info:
            source = pretrained_model_name_or_path or "The state_dict"
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(
                f"{source} lacks the weights {', '.join(missing[:3])}{more}; expected a complete checkpoint. To start "
                "a new Prompt-CAM on a backbone, use from_backbone(...)."
            )
        if model.config.prompts_only:
            model._load_backbone(**download)
        model.freeze_backbone()  # loading puts new parameters, which require gradients, in the place of the frozen ones
        return loaded if output_loading_info else model

    def save_pretrained(self, save_directory, *args, prompts_only: bool | None = None, **kwargs):
        """
        As of every transformers model, and in a small form: prompts, score head and the backbone's id, a few MB instead
        of hundreds.

        Args:
            prompts_only (`bool`, *optional*): Whether to save the small form. By default as `config.prompts_only` says,
                which this sets: a model keeps the form that it was last saved in.

        Raises:
            ValueError: If the small form is asked for, but where the backbone came from is not known, or its weights
                have been trained; or if it is to be pushed, but its backbone is not on the Hub.
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
        if getattr(self, "_hf_peft_config_loaded", False) and any(
            weight.requires_grad for name, weight in self.named_parameters() if not name.startswith("backbone.")
        ):
            raise ValueError(
                "Adapters are saved alone, without the prompts, which are trained, too. Put them in with "
                "peft.get_peft_model, and save what its merge_and_unload() returns."
            )
        config.prompts_only = prompts_only  # not before all checks have passed
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike | PreTrainedModel,
        *,
        image_size: int | None = None,
        revision: str | None = None,
        **config,
    ) -> Self:
        """
        A new Prompt-CAM on a pre-trained backbone: random prompts and score head, the backbone's weights.

        Args:
            backbone (`str`, `os.PathLike` or `PreTrainedModel`): Hub id or local folder of a model of transformers, or
                of open_clip (see [`open_clip_backbone`]); or a loaded model. Of a model with more than a backbone, such
                as a classifier or CLIP, the backbone for images is used.
            image_size (`int`, *optional*): Height and width of the images in pixels, if they differ from the
                backbone's. Position embeddings are interpolated once, here.
            revision (`str`, *optional*): Branch, tag or commit of the Hub repository.
            config: Arguments of [`PromptCamConfig`], notably `id2label` or `num_labels`, and of the download, as of
                `from_pretrained`: `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            ValueError: If the backbone's family is not supported, its weights are incomplete, or the configuration
                contradicts itself.
            OSError: If there is no such model.
        """
        download = {name: config.pop(name) for name in DOWNLOAD if name in config}
        if not isinstance(backbone, PreTrainedModel):
            name = os.fspath(backbone)
            backbone, commit = load_pretrained(name, revision, **download)
            config = {"backbone": name, "backbone_revision": commit} | config
        backbone_config, weights = encoder_of(backbone, image_size)
        model = cls(PromptCamConfig(backbone_config=backbone_config, **config))
        cast(nn.Module, model).to(backbone.device)
        model.backbone.to(backbone.dtype)  # what is trained stays float32: Adam's epsilon is 0 in float16
        load_weights(model.backbone, backbone_config, weights, model.config.backbone or "")
        return model

    def _load_backbone(self, **download) -> None:
        """Fetch the weights of `config.backbone`. `download` and errors are those of `from_backbone`."""
        name = self.config.backbone
        if any(weight.is_meta for weight in self.backbone.parameters()):
            raise ValueError(
                "device_map puts the backbone on disk, but this checkpoint holds only prompts. Keep the backbone in "
                "memory, or save the whole model, with prompts_only=False."
            )
        try:
            source, commit = load_pretrained(name, self.config.backbone_revision, **download)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise OSError(
                f"This checkpoint holds only prompts, and its backbone {name!r} cannot be opened ({reason}). If it is "
                "elsewhere, pass from_pretrained(..., backbone=<id or folder>)."
            ) from None
        load_weights(self.backbone, *encoder_of(source, self.config.backbone_config.image_size), name)
        self.config.backbone_revision = commit

    def freeze_backbone(self) -> None:
        """Let no gradient reach the backbone's weights."""
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.backbone.modules():
            if getattr(module, "is_frozen", False):  # adapters are trained; copies, as of PEFT, keep dropout off
                module.training = False
        return self
