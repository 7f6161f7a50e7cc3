import pytest
import torch
from accelerate.state import AcceleratorState

from promptcam_hf.devices import accelerator_on


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


def test_another_precision_in_the_same_process_is_refused():
    accelerator_on("cpu", mixed_precision="no")
    assert accelerator_on("cpu", mixed_precision="no").mixed_precision == "no"
    with pytest.raises(ValueError, match="mixed_precision=bf16: this process already works with no; start a new one"):
        accelerator_on("cpu", mixed_precision="bf16")
