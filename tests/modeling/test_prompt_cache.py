"""What the prompts are to the layers is kept between calls, and never after it ceased to be true."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptcam_hf import PromptCamForImageClassification

from ..tiny_models import CASES, NUM_LAYERS, images, tiny_config, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
all_cases = pytest.mark.parametrize(("family", "layer"), CASES)
LABELS = torch.tensor([3, 0])
Model = PromptCamForImageClassification


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(images()).logits


def fresh(model: Model) -> Model:
    """A model that never ran, with the same weights."""
    twin = Model(model.config).to(model.dtype).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def assert_up_to_date(model: Model) -> None:
    twin = fresh(model)
    assert torch.equal(logits_of(model), logits_of(twin))
    found, expected = model.rank_heads(images()), fresh(model).rank_heads(images())
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.trait_maps, expected.trait_maps)
    assert torch.equal(found.blurred_probability, expected.blurred_probability)


def prompt_weights(model: Model) -> dict[str, nn.Parameter]:
    """Everything that what the prompts are to their layers depends on, by a name that no release changes."""
    weights = {"class_prompts": model.class_prompts}
    if model.agnostic_prompts is not None:
        weights["agnostic_prompts"] = model.agnostic_prompts
    for layer in range(1, model.config.class_prompt_layer + 1):
        for name in ("norm1", "key", "value", "query"):
            if name != "query" or layer == model.config.class_prompt_layer:
                part = getattr(model.layer_parts(layer), name)
                weights |= {f"{layer}.{name}.{kind}": weight for kind, weight in part.named_parameters()}
    return weights


# --- Every weight ----------------------------------------------------------------------------------------------------


@all_cases
def test_change_of_any_weight_is_seen(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    unused = {"backbone.embeddings.mask_token"}
    for name, weight in model.named_parameters():
        before = logits_of(model)
        with torch.no_grad():
            weight.add_(torch.randn_like(weight), alpha=0.3)
        after = logits_of(model)
        assert torch.equal(after, logits_of(fresh(model))), name
        # A key's bias moves all scores of a query alike, which softmax does not see
        negligible = "k_proj.bias" in name or "key.bias" in name or name in unused
        assert negligible or not torch.allclose(after, before, atol=1e-6), name


# --- Every way to change one -----------------------------------------------------------------------------------------


def in_place(model: Model, name: str) -> None:
    with torch.no_grad():
        prompt_weights(model)[name].mul_(1.5).add_(0.1)


def in_place_in_inference_mode(model: Model, name: str) -> None:
    with torch.inference_mode():
        prompt_weights(model)[name].mul_(1.5).add_(0.1)


def one_value(model: Model, name: str) -> None:
    with torch.no_grad():
        prompt_weights(model)[name].flatten()[-1] += 1


def through_data(model: Model, name: str) -> None:
    prompt_weights(model)[name].data.mul_(1.5).add_(0.1)


def with_other_data(model: Model, name: str) -> None:
    weight = prompt_weights(model)[name]
    weight.data = weight.data * 1.5 + 0.1


def through_numpy(model: Model, name: str) -> None:
    array = prompt_weights(model)[name].detach().numpy()
    array *= 1.5
    array += 0.1


def through_a_detached_view(model: Model, name: str) -> None:
    prompt_weights(model)[name].detach()[..., 0].add_(1)


def changed_state_dict(model: Model, name: str) -> dict[str, torch.Tensor]:
    wanted = prompt_weights(model)[name]
    changed = next(key for key, parameter in model.named_parameters() if parameter is wanted)
    state_dict = {key: weight.clone() for key, weight in model.state_dict().items()}
    state_dict[changed] = state_dict[changed] * 1.5 + 0.1
    return state_dict


def through_load_state_dict(model: Model, name: str) -> None:
    model.load_state_dict(changed_state_dict(model, name))


def through_load_state_dict_with_assign(model: Model, name: str) -> None:
    model.load_state_dict(changed_state_dict(model, name), assign=True)


def with_another_parameter(model: Model, name: str) -> None:
    wanted = prompt_weights(model)[name]
    path = next(key for key, parameter in model.named_parameters() if parameter is wanted)
    module = model.get_submodule(path.rpartition(".")[0])
    setattr(module, path.rpartition(".")[2], nn.Parameter(wanted.detach() * 1.5 + 0.1))


def as_part_of_a_buffer(model: Model, name: str) -> None:
    """As libraries do that keep all weights in one block of memory, whatever its alignment."""
    weight = prompt_weights(model)[name]
    block = torch.cat([weight.new_zeros(1), weight.detach().flatten() * 1.5 + 0.1])
    weight.data = block[1:].view_as(weight)


def with_another_memory_format(model: Model, name: str) -> None:
    weight = prompt_weights(model)[name]
    weight.data = (weight.data * 1.5 + 0.1).transpose(0, -1).contiguous().transpose(0, -1)


def through_an_optimiser(model: Model, name: str) -> None:
    weight = prompt_weights(model)[name]
    weight.requires_grad_(True)
    optimiser = torch.optim.SGD([weight], lr=1.0)
    model(images(), labels=LABELS).loss.backward()
    weight.grad += 0.1
    optimiser.step()


WAYS = [
    in_place,
    in_place_in_inference_mode,
    one_value,
    through_data,
    with_other_data,
    through_numpy,
    through_a_detached_view,
    through_load_state_dict,
    through_load_state_dict_with_assign,
    with_another_parameter,
    as_part_of_a_buffer,
    with_another_memory_format,
    through_an_optimiser,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", ["agnostic_prompts", "class_prompts", "2.norm1.weight", "1.key.weight", "3.query.weight"]
)
def test_change_is_seen_however_it_is_made(way: Callable[[Model, str], None], name: str) -> None:
    model = tiny_model("dinov2")
    before = logits_of(model)
    way(model, name)
    assert_up_to_date(model)
    assert_up_to_date(model)  # from what was kept of the change
    assert not torch.allclose(logits_of(model), before, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_change_that_is_taken_back_is_seen_too(way: Callable[[Model, str], None]) -> None:
    model = tiny_model("vit", 2)
    before, state_dict = logits_of(model), copy.deepcopy(model.state_dict())
    way(model, "2.value.weight")
    assert not torch.allclose(logits_of(model), before, atol=1e-6)
    model.load_state_dict(state_dict)
    assert torch.equal(logits_of(model), before)
    assert_up_to_date(model)


@all_cases
def test_training_is_seen(family: str, layer: int) -> None:
    model = tiny_model(family, layer, prompt_dropout=0.2, drop_path_rate=0.2)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    seen = []
    for _ in range(3):
        seen.append(logits_of(model.eval()))
        assert_up_to_date(model)
        model.train()(images(), labels=LABELS).loss.backward()
        optimiser.step()
    assert not torch.allclose(seen[0], seen[1], atol=1e-4)
    assert not torch.allclose(seen[1], seen[2], atol=1e-4)


@all_cases
def test_moving_average_that_is_swapped_in_is_seen(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda mean, weight, _: (mean + weight) / 2)
    logits_of(average)
    for _ in range(2):
        with torch.no_grad():
            model.class_prompts.add_(0.3)
        average.update_parameters(model)
        assert_up_to_date(average.module)


# --- Data types ------------------------------------------------------------------------------------------------------


@all_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_change_of_dtype_and_back_is_seen(family: str, layer: int, dtype: torch.dtype) -> None:
    model = tiny_model(family, layer)
    before = logits_of(model)
    model.to(dtype)
    assert logits_of(model).dtype == dtype
    assert_up_to_date(model)
    model.float()
    assert_up_to_date(model)
    # Half precision rounded the weights for good, double precision did not
    assert torch.equal(logits_of(model), before) == (dtype == torch.float64)


@all_cases
def test_autocast_and_full_precision_take_turns(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    full = logits_of(fresh(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = logits_of(fresh(model))
    assert (full.dtype, cast.dtype) == (torch.float32, torch.bfloat16)
    for _ in range(2):
        assert torch.equal(logits_of(model), full)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(logits_of(model), cast)
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(logits_of(model), full)


# --- Modes -----------------------------------------------------------------------------------------------------------


@all_cases
@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_take_turns(family: str, layer: int, first: Callable, then: Callable) -> None:
    model = tiny_model(family, layer)
    for mode in (first, then, first):
        with mode():
            output = model(images())
        assert output.logits.requires_grad == (mode is torch.enable_grad)
        assert torch.equal(output.logits.detach(), logits_of(fresh(model)))
        with torch.no_grad():
            model.class_prompts.add_(0.1)


@all_cases
def test_gradients_after_inference_are_those_without_it(family: str, layer: int) -> None:
    model, twin = tiny_model(family, layer), tiny_model(family, layer)
    with torch.inference_mode():
        model(images())
    for candidate in (model, twin):
        candidate(images(), labels=LABELS).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad, rtol=0, atol=0, msg=name)


@all_cases
def test_dropout_on_prompts_is_drawn_anew_and_leaves_no_trace(family: str, layer: int) -> None:
    model = tiny_model(family, layer, prompt_dropout=0.5)
    before = logits_of(model)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(logits_of(model), logits_of(model))
    assert torch.equal(logits_of(model.eval()), before)
    assert torch.equal(before, logits_of(tiny_model(family, layer)))


def test_one_batch_leaves_no_trace_in_the_next() -> None:
    model = tiny_model("dinov2", 2)
    expected = logits_of(fresh(model))
    with torch.no_grad():
        model(images(5, seed=3))
        model(images(1, size=48, seed=4))
        model(images(), output_attentions=True)
        model.rank_heads(images(3))
    assert torch.equal(logits_of(model), expected)


# --- Weights that are not the model's own ----------------------------------------------------------------------------


@all_cases
def test_functional_call_uses_the_weights_it_is_given(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    own = logits_of(model)
    for name, weight in prompt_weights(model).items():
        key = next(key for key, parameter in model.named_parameters() if parameter is weight)
        given = {key: weight.detach() * 1.5 + 0.1}
        twin = fresh(model)
        twin.load_state_dict(given, strict=False)
        with torch.no_grad():
            found = functional_call(model, given, (images(),)).logits
        assert torch.equal(found, logits_of(twin)), name
        assert torch.equal(logits_of(model), own), name


@all_cases
def test_ensemble_of_models_in_one_call(family: str, layer: int) -> None:
    models = [tiny_model(family, layer) for _ in range(2)]
    with torch.no_grad():
        models[1].class_prompts.add_(0.5)
    weights, buffers = stack_module_state(models)
    base = models[0]
    logits_of(base)

    def call(weights: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(base, (weights, buffers), (images(),)).logits

    with torch.no_grad():
        # Whether or not dropout is off, vmap takes attention for a random operation
        found = torch.vmap(call, randomness="same")(weights, buffers)
    torch.testing.assert_close(found, torch.stack([logits_of(model) for model in models]))


@pytest.mark.parametrize("first", ["real", "fake"])
@all_cases
def test_run_without_data_leaves_no_trace(family: str, layer: int, first: str) -> None:
    """As tools do that predict what memory a model takes."""
    model = tiny_model(family, layer)
    expected = logits_of(fresh(model))
    if first == "real":
        logits_of(model)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert model(images()).logits.shape == expected.shape
    assert torch.equal(logits_of(model), expected)


@all_cases
@pytest.mark.parametrize("kept", [False, True])
def test_recorded_operations_follow_the_weights(family: str, layer: int, kept: bool) -> None:
    model = tiny_model(family, layer, return_dict=False)
    with torch.no_grad():
        if kept:
            model(images())
        recorded = make_fx(model)(images())
        for _ in range(2):
            model.class_prompts.add_(0.5)
            torch.testing.assert_close(recorded(images()), model(images()))


@all_cases
@pytest.mark.parametrize("kept", [False, True])
def test_forward_derivative_by_the_prompts(family: str, layer: int, kept: bool) -> None:
    model = tiny_model(family, layer).double()
    prompts, step = model.class_prompts.detach(), torch.randn_like(model.class_prompts)

    def call(prompts: torch.Tensor) -> torch.Tensor:
        return functional_call(model, {"class_prompts": prompts}, (images(),)).logits

    # The other attention kernels have no forward derivative
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if kept:
            model(images())
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(call(forward_ad.make_dual(prompts, step))).tangent
        expected = (call(prompts + 1e-5 * step) - call(prompts - 1e-5 * step)) / 2e-5
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_traced_model_follows_the_weights() -> None:
    model = tiny_model("vit", 2, return_dict=False)
    with torch.no_grad():
        model(images())
        traced = torch.jit.trace(model, images(), check_trace=False)
        for _ in range(2):
            model.class_prompts.add_(0.5)
            model.agnostic_prompts.add_(0.5)
            torch.testing.assert_close(traced(images()), model(images()))


@all_cases
def test_traced_model_takes_batches_of_any_size(family: str, layer: int) -> None:
    model = tiny_model(family, layer, return_dict=False)
    with torch.no_grad():
        traced = torch.jit.trace(model, images(2), check_trace=False)
        for batch_size in (1, 2, 5):
            torch.testing.assert_close(traced(images(batch_size)), model(images(batch_size)))


# --- Parts of the backbone that are not what they were ---------------------------------------------------------------


class Adapted(nn.Module):
    """A projection with a low-rank adapter beside it that can be switched off, as adapter libraries put in."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base, self.enabled = base, True
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x)) if self.enabled else self.base(x)


def replace(model: Model, layer: int, name: str, new: Callable[[nn.Module], nn.Module]) -> nn.Module:
    old = getattr(model.layer_parts(layer), name)
    path = next(path for path, module in model.named_modules() if module is old)
    model.set_submodule(path, new(old))
    return model.get_submodule(path)


@all_cases
@pytest.mark.parametrize("name", ["key", "value"])
def test_adapter_is_seen_when_put_in_switched_off_and_changed(family: str, layer: int, name: str) -> None:
    torch.manual_seed(0)
    model = tiny_model(family, layer)
    plain = logits_of(model)
    adapter = replace(model, 1, name, Adapted)
    adapted = logits_of(model)
    assert torch.equal(adapted, logits_of(copy.deepcopy(model)))
    assert not torch.allclose(adapted, plain, atol=1e-4)
    adapter.enabled = False
    assert torch.equal(logits_of(model), plain)
    adapter.enabled = True
    assert torch.equal(logits_of(model), adapted)
    with torch.no_grad():
        adapter.up.weight.add_(0.5)
    assert torch.equal(logits_of(model), logits_of(copy.deepcopy(model)))


@all_cases
@pytest.mark.parametrize("name", ["norm1", "key", "value"])
def test_hook_on_a_part_is_seen(family: str, layer: int, name: str) -> None:
    model = tiny_model(family, layer)
    plain = logits_of(model)
    part = getattr(model.layer_parts(1), name)
    hook = part.register_forward_hook(lambda module, args, output: output * 1.5 + 0.1)
    hooked = logits_of(model)
    assert torch.equal(hooked, logits_of(copy.deepcopy(model)))
    assert not torch.allclose(hooked, plain, atol=1e-4)
    hook.remove()
    assert torch.equal(logits_of(model), plain)


@all_cases
def test_other_epsilon_of_a_norm_is_seen(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    plain = logits_of(model)
    model.layer_parts(1).norm1.eps = 0.5
    changed = logits_of(model)
    assert torch.equal(changed, logits_of(copy.deepcopy(model)))
    assert not torch.allclose(changed, plain, atol=1e-4)


@all_cases
def test_parametrised_projection_is_seen(family: str, layer: int) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    model = tiny_model(family, layer)
    plain = logits_of(model)
    key = model.layer_parts(1).key
    nn.utils.parametrize.register_parametrization(key, "weight", Doubled())
    doubled = logits_of(model)
    nn.utils.parametrize.remove_parametrizations(key, "weight")
    assert torch.equal(doubled, logits_of(fresh(model)))
    assert not torch.allclose(doubled, plain, atol=1e-4)


# --- Threads ---------------------------------------------------------------------------------------------------------


@all_cases
def test_threads_may_share_a_model(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    batches = [images(seed=seed) for seed in range(8)]
    reference = fresh(model)
    with torch.no_grad():
        expected = [reference(batch).logits for batch in batches]
    together = threading.Barrier(4)

    def work(start: int) -> list[torch.Tensor]:
        together.wait()
        with torch.no_grad():
            return [model(batch).logits for batch in batches[start::4] * 3]

    with ThreadPoolExecutor(4) as pool:
        for start, found in enumerate(pool.map(work, range(4))):
            assert all(map(torch.equal, found, expected[start::4] * 3))


@all_cases
def test_threads_in_different_modes_do_not_disturb_each_other(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    full = logits_of(fresh(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = logits_of(fresh(model))
    together = threading.Barrier(3)

    def in_full_precision() -> bool:
        together.wait()
        return all(torch.equal(logits_of(model), full) for _ in range(10))

    def in_autocast() -> bool:
        together.wait()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return all(torch.equal(logits_of(model), cast) for _ in range(10))

    def with_gradients() -> bool:
        together.wait()
        return all(torch.equal(model(images()).logits, full) for _ in range(10))

    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(work) for work in (in_full_precision, in_autocast, with_gradients)]
        assert [task.result() for task in tasks] == [True] * 3


# --- Copies ----------------------------------------------------------------------------------------------------------


@all_cases
def test_copy_does_not_share_what_was_kept(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    before = logits_of(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in prompt_weights(twin).values():
            weight.add_(0.2)
    assert_up_to_date(twin)
    assert torch.equal(logits_of(model), before)


def test_what_was_kept_is_no_part_of_the_model() -> None:
    model = tiny_model()
    names, parameters = list(model.state_dict()), model.num_parameters()
    logits_of(model)
    assert (list(model.state_dict()), model.num_parameters()) == (names, parameters)
    assert list(model.buffers()) == []


def test_models_keep_apart() -> None:
    first, second = tiny_model(), tiny_model()
    with torch.no_grad():
        second.class_prompts.mul_(-1)
    for _ in range(2):
        assert_up_to_date(first)
        assert_up_to_date(second)


@pytest.mark.parametrize(
    "settings", [{"num_prompted_layers": 2}, {"num_prompted_layers": 1}, {"num_agnostic_prompts": 0}], ids=str
)
def test_models_with_fewer_prompts(settings: dict[str, int]) -> None:
    model = tiny_model("vit", NUM_LAYERS, **settings)
    assert tiny_config(**settings).class_prompt_layer == NUM_LAYERS
    for _ in range(2):
        assert_up_to_date(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05)
