"""The backbone's layers are called as modules are: hooks run, and FSDP2 and device maps work."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from promptcam_hf.modeling.backbone_promptcam import LAYERS, find

from ..tiny_models import CASES, HIDDEN_SIZE, NUM_IMAGE_TOKENS, NUM_LABELS, NUM_LAYERS, images, tiny_model

ROOT = Path(__file__).resolve().parents[2]
# Two processes share a model's weights, by every class that it names for that, or layer by layer
SHARDED = """
import os
import sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from tests.tiny_models import CASES, images, tiny_model

torch.set_num_threads(1)
mesh, labels = init_device_mesh("cpu", (2,)), torch.tensor([1, 3])
for family, layer in CASES:
    for checkpointing in (False, True):
        model = tiny_model(family, layer)
        expected = model(images(), labels=labels)
        expected.loss.backward()
        gradient = model.class_prompts.grad.clone()
        model.zero_grad()
        units = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
        assert len(units) in (3, 4), units  # layers and, in most releases, embeddings
        for unit in units[checkpointing:]:
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        found = model(images(), labels=labels)
        found.loss.backward()
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(model.class_prompts.grad.full_tensor(), gradient)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(images()).logits, expected.logits)
    model, policy = tiny_model(family, layer), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for unit in [module for module in model.modules() if type(module).__name__ in model._no_split_modules]:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    found = model(images(), labels=labels)
    found.loss.backward()
    assert found.logits.dtype == torch.bfloat16
    spread = expected.logits.detach().std().item()
    torch.testing.assert_close(found.logits.float(), expected.logits, rtol=0, atol=0.1 * spread)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # what torch's threads do while Python shuts down is not ours: once in many runs they abort
"""


@pytest.fixture(params=CASES, ids=str)
def model(request):
    return tiny_model(*request.param)


def layers_of(model) -> list[torch.nn.Module]:
    return list(find(model.backbone, LAYERS))


def test_forward_hooks_on_layers_see_what_enters_and_leaves_and_may_change_it(model):
    with torch.no_grad():
        expected = model(images(), output_hidden_states=True)
        seen: list = []
        handles = [
            layer.register_forward_hook(lambda module, args, output: seen.append((module, args[0], output)))
            for layer in layers_of(model)
        ]
        model(images())
        assert [module for module, _, _ in seen] == layers_of(model)
        for (_, entered, left), before, after in zip(
            seen, expected.hidden_states, expected.hidden_states[1:], strict=False
        ):
            torch.testing.assert_close(entered, before)
            torch.testing.assert_close(left, after)
        for handle in handles:
            handle.remove()

        first, *_, last = layers_of(model)
        zeroed = first.register_forward_pre_hook(lambda module, args: (torch.zeros_like(args[0]), *args[1:]))
        with_zeros = model(images(), output_hidden_states=True)
        assert not torch.allclose(with_zeros.logits, expected.logits)
        zeroed.remove()
        last.register_forward_hook(lambda module, args, kwargs, output: 0 * output, with_kwargs=True)
        output = model(images())
        scores = model.score_head(model.backbone.layernorm(torch.zeros(2, NUM_LABELS, HIDDEN_SIZE))).squeeze(-1)
        torch.testing.assert_close(output.logits, scores)


def test_hook_may_remove_itself(model):
    seen = []

    def once(module, args, output):
        seen.append(output)
        handle.remove()

    handle = layers_of(model)[0].register_forward_hook(once)
    for _ in range(2):
        model(images())
    assert len(seen) == 1
    assert seen[0].shape[1:] == (NUM_IMAGE_TOKENS + NUM_LABELS * (model.config.class_prompt_layer == 1), HIDDEN_SIZE)


def test_layers_on_several_devices(model):
    """As `device_map` puts them. Here the second device is torch's "meta", on which results have a shape only; an
    operation on tensors of two devices fails there as everywhere."""
    second = layers_of(model)[1:]
    for layer in second:
        layer.to("meta")
    names = {id(module): name for name, module in model.named_modules()}
    devices = {names[id(layer)]: "meta" for layer in second}
    rest = [names[id(model.backbone.embeddings)], names[id(layers_of(model)[0])], names[id(model.backbone.layernorm)]]
    devices |= dict.fromkeys([*rest, "score_head"], "cpu")
    attach_align_device_hook_on_blocks(model, execution_device={name: torch.device(d) for name, d in devices.items()})
    seen = []
    for layer in layers_of(model):
        layer.register_forward_hook(lambda module, args, output: seen.append((args[0].device.type, output.device.type)))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # back to the score head
        model(images())
    assert seen == [("cpu", "cpu")] + [("meta", "meta")] * (NUM_LAYERS - 1)


def test_weights_are_sharded_by_layers_with_fsdp2():
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    result = subprocess.run(
        [*launch, sys.executable, "-c", SHARDED], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert result.returncode == 0, result.stderr[-4000:]
