"""`cached_prompts`: prompts are projected once within the context, and nothing outlives it."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from promptcam_hf.modeling import modeling_promptcam
from promptcam_hf.modeling.attention_promptcam import MANY_PROMPTS

from promptcam_hf import PromptCamForImageClassification

from ..tiny_models import CASES, NUM_LAYERS, images, tiny_model

all_cases = pytest.mark.parametrize(("family", "layer"), CASES)
Model = PromptCamForImageClassification


def logits_of(model: Model, seed: int = 1) -> torch.Tensor:
    with torch.no_grad():
        return model(images(seed=seed)).logits


@all_cases
def test_logits_attentions_and_ranking_are_those_without_it(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    for many in (False, True):
        if many:
            model = tiny_model(family, layer, num_labels=MANY_PROMPTS)
        with torch.no_grad():
            expected = [model(images(seed=seed), output_attentions=True) for seed in range(3)]
            ranking = model.rank_heads(images(seed=0))
            with model.cached_prompts():
                for seed in range(3):
                    found = model(images(seed=seed), output_attentions=True)
                    assert torch.equal(found.logits, expected[seed].logits)
                    assert torch.equal(found.attentions[-1], expected[seed].attentions[-1])
                assert torch.equal(model.rank_heads(images(seed=0)).trait_maps, ranking.trait_maps)


@pytest.mark.parametrize(("cached", "calls"), [(True, 1), (False, 3)])
def test_prompts_are_projected_once_in_it_and_once_per_batch_outside(cached: bool, calls: int) -> None:
    model, seen = tiny_model(), []
    for layer in range(1, NUM_LAYERS + 1):
        model.layer_parts(layer).key.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    num_prompts = {model.config.num_agnostic_prompts, model.num_labels}
    with torch.no_grad():
        if cached:
            with model.cached_prompts():
                for seed in range(3):
                    model(images(seed=seed))
        else:
            for seed in range(3):
                model(images(seed=seed))
    assert sum(length in num_prompts for length in seen) == calls * NUM_LAYERS


@all_cases
def test_a_new_context_sees_new_weights_and_none_is_left_behind(family: str, layer: int) -> None:
    model = tiny_model(family, layer)
    for _ in range(2):
        with model.cached_prompts(), model.cached_prompts():
            inside = logits_of(model)
        assert torch.equal(inside, logits_of(copy.deepcopy(model)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert torch.equal(logits_of(model), logits_of(copy.deepcopy(model)))
    with pytest.raises(ValueError, match="expected floats"), model.cached_prompts():
        model(images().long())
    with torch.no_grad():
        model.class_prompts.mul_(2)
    assert torch.equal(logits_of(model), logits_of(copy.deepcopy(model)))


def test_training_in_the_context_is_training() -> None:
    model, pixels, labels = tiny_model(prompt_dropout=0.5), images(), torch.tensor([3, 0])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(model(pixels, labels).loss, trainable)
    with model.cached_prompts():
        logits_of(model)
        for found, wanted in zip(torch.autograd.grad(model(pixels, labels).loss, trainable), expected, strict=True):
            assert torch.equal(found, wanted)
        model.train()
        assert not torch.equal(logits_of(model), logits_of(model))  # dropout is drawn anew


def test_precisions_and_models_keep_apart_in_one_context() -> None:
    first, second = tiny_model(), tiny_model()
    with torch.no_grad():
        second.class_prompts.mul_(-1)
    full, other = logits_of(first), logits_of(second)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = logits_of(first)
    with first.cached_prompts():
        for _ in range(2):
            assert torch.equal(logits_of(first), full)
            assert torch.equal(logits_of(second), other)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(logits_of(first), cast)


def test_models_that_come_and_go_in_the_context_of_another_use_their_own_prompts() -> None:
    with tiny_model().cached_prompts():
        for scale in range(1, 20):  # each may lie where the one before it lay
            model = tiny_model()
            with torch.no_grad():
                model.class_prompts.mul_(scale)
            uncached = model(images()).logits  # gradients are recorded, so nothing is taken from a cache
            torch.testing.assert_close(logits_of(model), uncached)
            del model


def test_an_inner_context_shares_what_the_outer_keeps(monkeypatch) -> None:
    model, projected, own = tiny_model(), [], modeling_promptcam.project
    monkeypatch.setattr(modeling_promptcam, "project", lambda *given: projected.append(given) or own(*given))
    with model.cached_prompts():
        for seed in range(3):
            with model.cached_prompts():
                logits_of(model, seed)
    assert len(projected) == NUM_LAYERS


def test_works_on_the_meta_device() -> None:
    model = tiny_model().to("meta")
    with torch.no_grad(), model.cached_prompts():
        for _ in range(2):
            assert model(images().to("meta")).logits.shape == (2, model.num_labels)


@pytest.mark.parametrize("layer", [1, NUM_LAYERS])
def test_threads_predict_while_weights_are_swapped(layer: int) -> None:
    """A swap between two predictions, as of a moving average: what starts after it must use the new weights."""
    model = tiny_model("vit", layer)
    weights = [{name: weight.clone() for name, weight in model.state_dict().items()}]
    weights.append({name: weight * 1.1 for name, weight in weights[0].items()})
    expected = []
    for state in weights:
        model.load_state_dict(state)
        expected.append([logits_of(model, seed) for seed in range(3)])
    reads, swaps = threading.Barrier(4), threading.Barrier(4)

    def read(seed: int) -> list[torch.Tensor]:
        found = []
        for _ in range(40):
            reads.wait()
            with model.cached_prompts():
                found.append(logits_of(model, seed))
            swaps.wait()
        return found

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, seed) for seed in range(3)]
        for trial in range(40):
            with torch.no_grad():
                for name, weight in model.state_dict().items():
                    weight.copy_(weights[trial % 2][name])
            reads.wait()
            swaps.wait()
        for seed, reader in enumerate(readers):
            for trial, logits in enumerate(reader.result()):
                assert torch.equal(logits, expected[trial % 2][seed]), trial


def test_a_swap_during_a_prediction_does_no_lasting_harm() -> None:
    model = tiny_model()
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected, stop = logits_of(model), threading.Event()

    def read() -> None:
        while not stop.is_set():
            with model.cached_prompts():
                logits_of(model)

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        with torch.no_grad():
            for trial in range(40):
                for name, weight in model.state_dict().items():
                    weight.data.copy_(state[name] * (1.0 if trial % 2 else 1.5))
        for _ in range(3):
            with model.cached_prompts():
                assert torch.equal(logits_of(model), expected)
        stop.set()
        for reader in readers:
            reader.result()
