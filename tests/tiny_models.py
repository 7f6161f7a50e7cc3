"""Models small enough to build and run by the hundred."""

from typing import Any

import torch

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification

# What a tiny configuration of each family says beyond the sizes that all have
FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"intermediate_size": 48},
    "dinov2": {"mlp_ratio": 2},
    "deit": {"intermediate_size": 48},
    "vit_msn": {"intermediate_size": 48},
    "ijepa": {"intermediate_size": 48},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 3},
    "dinov3_vit": {"intermediate_size": 48, "num_register_tokens": 3, "use_gated_mlp": True, "layerscale_value": 0.5},
    "clip_vision_model": {"intermediate_size": 48},
    "siglip_vision_model": {"intermediate_size": 48},
}
FAMILIES = ("vit", "dinov2")  # for tests of what no family does its own way
NUM_LAYERS, NUM_HEADS, HIDDEN_SIZE, IMAGE_SIZE, PATCH_SIZE, NUM_LABELS, NUM_AGNOSTIC = 3, 4, 32, 32, 8, 5, 4
NUM_IMAGE_TOKENS = 1 + (IMAGE_SIZE // PATCH_SIZE) ** 2
# Class prompts that enter at the last layer (deep), at the first (shallow) and in between
CASES = [(family, layer) for family in FAMILIES for layer in (NUM_LAYERS, 2, 1)]


def tiny_config(
    family: str = "vit", class_prompt_layer: int = NUM_LAYERS, backbone: dict[str, Any] | None = None, **kwargs: Any
) -> PromptCamConfig:
    """A configuration with another number of class-agnostic prompts than of classes, so that none passes for the
    other, and with weights wide enough for attention that is far from uniform."""
    backbone_config = {
        "model_type": family,
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "initializer_range": 0.2,
    }
    classes = {} if "id2label" in kwargs else {"num_labels": NUM_LABELS}
    return PromptCamConfig(
        backbone_config=backbone_config | FAMILY_CONFIGS[family] | (backbone or {}),
        class_prompt_layer=class_prompt_layer,
        **{"num_agnostic_prompts": NUM_AGNOSTIC} | classes | kwargs,
    )


def tiny_model(
    family: str = "vit", class_prompt_layer: int = NUM_LAYERS, **kwargs: Any
) -> PromptCamForImageClassification:
    """A model in evaluation mode, always with the same weights, none of them (biases, norms) as they start."""
    torch.manual_seed(0)
    model = PromptCamForImageClassification(tiny_config(family, class_prompt_layer, **kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def images(batch_size: int = 2, num_channels: int = 3, size: int = IMAGE_SIZE, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, num_channels, size, size, generator=torch.Generator().manual_seed(seed))


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """To `tolerance` of the largest value expected: CPUs and numbers of threads differ in how they round sums."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())
