"""The model under torch's transformations: several weights at once, forward derivatives, tracing."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..tiny_models import CASES, assert_close, images, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
all_cases = pytest.mark.parametrize(("family", "layer"), CASES)


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(images()).logits


@all_cases
def test_ensemble_of_models_in_one_call(family: str, layer: int) -> None:
    models = [tiny_model(family, layer) for _ in range(2)]
    with torch.no_grad():
        models[1].class_prompts.add_(0.5)
    weights, buffers = stack_module_state(models)
    base = models[0]

    def call(weights: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(base, (weights, buffers), (images(),)).logits

    with torch.no_grad():
        # Whether or not dropout is off, vmap takes attention for a random operation
        found = torch.vmap(call, randomness="same")(weights, buffers)
    torch.testing.assert_close(found, torch.stack([logits_of(model) for model in models]))


@all_cases
def test_forward_derivative_by_the_prompts(family: str, layer: int) -> None:
    model = tiny_model(family, layer).double()
    prompts, step = model.class_prompts.detach(), torch.randn_like(model.class_prompts)

    def call(prompts: torch.Tensor) -> torch.Tensor:
        return functional_call(model, {"class_prompts": prompts}, (images(),)).logits

    # The other attention kernels have no forward derivative
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(call(forward_ad.make_dual(prompts, step))).tangent
        expected = (call(prompts + 1e-5 * step) - call(prompts - 1e-5 * step)) / 2e-5
    assert found is not None
    assert_close(found, expected, 1e-4)


@all_cases
def test_traced_model_takes_batches_of_any_size(family: str, layer: int) -> None:
    model = tiny_model(family, layer, return_dict=False)
    with torch.no_grad():
        traced = torch.jit.trace(model, images(2), check_trace=False)
        for batch_size in (1, 2, 5):
            torch.testing.assert_close(traced(images(batch_size)), model(images(batch_size)))
