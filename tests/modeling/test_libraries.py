"""Libraries that change any model: adapters, quantisation, replicas on several devices."""

import gc
import weakref
from threading import Thread

import pytest
import torch
from torch import nn

from promptcam_hf import PromptCamForImageClassification

from ..tiny_models import CASES, FAMILIES, assert_close, images, tiny_model

LABELS = torch.tensor([3, 0])


@pytest.fixture(params=FAMILIES)
def model(request) -> PromptCamForImageClassification:
    return tiny_model(request.param)


# --- PEFT -------------------------------------------------------------------------------------------------------------


def with_adapters(model, **options):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r".*\.(q_proj|query)", **options))
    model.class_prompts.requires_grad_()
    model.agnostic_prompts.requires_grad_()
    return adapted


def trained(adapted):
    optimizer = torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        adapted.train()(pixel_values=images(), labels=LABELS).loss.backward()
        optimizer.step()
    return adapted.eval()


def test_adapters_and_prompts_are_trained_and_saved_in_one_checkpoint(model, tmp_path):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = trained(with_adapters(model, modules_to_save=["score_head"]))
    with torch.no_grad():
        expected = adapted(pixel_values=images()).logits
    merged = adapted.merge_and_unload()
    changed = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed > {"class_prompts", "agnostic_prompts", "score_head.weight"}
    assert {name.split(".")[-2] for name in changed if name.startswith("backbone.")} <= {"q_proj", "query"}
    merged.save_pretrained(tmp_path)
    loaded = PromptCamForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(loaded(images()).logits, expected, 1e-4)


def test_dropout_of_adapters_is_on_in_training_alone(model):
    adapted = with_adapters(model, lora_dropout=0.5, init_lora_weights=False)
    with torch.no_grad():
        one, other = (adapted.train()(pixel_values=images()).logits for _ in range(2))
        assert not torch.equal(one, other)
        one, other = (adapted.eval()(pixel_values=images()).logits for _ in range(2))
        assert torch.equal(one, other)


def test_adapter_that_would_be_saved_without_trained_prompts_is_refused(model, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=r".*\.(q_proj|query)", init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")  # the prompts are not trained
    model.class_prompts.requires_grad_()
    with pytest.raises(ValueError, match=r"^Adapters are saved alone, without the prompts.*merge_and_unload"):
        model.save_pretrained(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


# --- torchao ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_quantised_model_runs_again_and_again_and_its_prompts_can_be_trained(model):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    with torch.no_grad():
        expected = model(images()).logits
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        first = model(images()).logits
        assert not torch.equal(first, expected)
        assert (first - expected).abs().max() < 0.1 * expected.abs().max()
        assert_close(model(images()).logits, first)
        with model.cached_prompts():
            for _ in range(2):
                assert_close(model(images()).logits, first)
        assert torch.equal(model.rank_heads(images()).logits.argmax(-1), first.argmax(-1))
    for _ in range(2):
        model.zero_grad()
        model.train()(images(), labels=LABELS).loss.backward()
        assert model.class_prompts.grad.abs().sum() > 0


# --- torch.ao ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_in_place_frees_the_weights(model):
    expected = model(images()).logits
    linear = next(module for module in model.backbone.modules() if isinstance(module, nn.Linear))
    original = weakref.ref(linear)
    del linear
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    gc.collect()
    assert original() is None
    with torch.no_grad():
        found = model(images()).logits
        assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
        assert torch.equal(model.rank_heads(images()).logits, found)


# --- nn.DataParallel --------------------------------------------------------------------------------------------------


def replica_of(model: nn.Module) -> nn.Module:
    """As `torch.nn.parallel.replicate`, which takes no CPU, makes one: copies in the place of parameters."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            if child is not None:
                setattr(replica, name, replicas[child])
        for name, weight in module._parameters.items():
            if weight is not None:
                setattr(replica, name, weight.clone())
    return replicas[model]


@pytest.mark.parametrize(("family", "layer"), CASES)
def test_replicas_share_a_batch_and_their_gradients_add_up(family, layer):
    model, pixels, labels = tiny_model(family, layer), images(4), torch.tensor([3, 0, 1, 1])
    expected = model(pixels, labels=labels)
    expected.loss.backward()
    gradient = model.class_prompts.grad.clone()
    model.zero_grad()
    replicas, outputs = [replica_of(model) for _ in range(2)], [None, None]
    assert not list(replicas[0].parameters())

    def run(index: int) -> None:
        part = slice(2 * index, 2 * index + 2)
        outputs[index] = replicas[index](pixels[part], labels=labels[part], output_attentions=True)

    threads = [Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_close(torch.cat([output.logits for output in outputs]), expected.logits)
    torch.stack([output.loss for output in outputs]).mean().backward()
    assert_close(model.class_prompts.grad, gradient)
    with torch.no_grad():
        ranking, found = model.rank_heads(pixels), replicas[0].rank_heads(pixels)
    assert torch.equal(found.order, ranking.order)
