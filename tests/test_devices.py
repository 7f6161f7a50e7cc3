import pytest
import torch
from accelerate.state import AcceleratorState

from promptcam_hf.devices import accelerator_on, fast_precision


@pytest.fixture(autouse=True)
def no_accelerator_before():
    AcceleratorState._reset_state(reset_partial_state=True)


def test_work_is_on_the_device_that_was_asked_for():
    assert accelerator_on("cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="device=meta: this process already works on cpu; start a new one"):
        accelerator_on(torch.device("meta"))


def test_one_device_is_not_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device=cuda:1: each process takes a device of its own"):
        accelerator_on(torch.device("cuda:1"))


def test_each_run_of_a_process_has_the_precision_that_it_asks_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # of `accelerate launch`

    def precision(**options) -> tuple[str, torch.dtype]:
        accelerator = accelerator_on("cpu", **options)
        with accelerator.autocast():
            return accelerator.mixed_precision, torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype

    assert precision() == ("no", torch.float32)
    assert precision(mixed_precision="bf16") == ("bf16", torch.bfloat16)
    assert accelerator_on("cpu").mixed_precision == "bf16"  # evaluation changes nothing for a run
    assert precision(mixed_precision="no") == ("no", torch.float32)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True, "avx512_bf16": False}, "bf16"), ({"avx2": True}, "no")],
)
def test_bfloat16_is_fast_where_the_cpu_has_instructions_for_it(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fast_precision(torch.device("cpu")) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older releases of torch
    assert fast_precision(torch.device("cpu")) == "no"


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_is_fast_on_gpus_that_do_not_emulate_it(supported, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert fast_precision(torch.device("cuda", 1)) == ("bf16" if supported else "no")
    assert fast_precision(torch.device("mps")) == "no"
