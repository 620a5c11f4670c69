"""The device of a training, on machines with a CUDA device and without."""

import pytest
import torch

from distillery import DistilleryError
from training.loop import device
from training.loop.device import Device, choose_device, runs_on


@pytest.mark.parametrize("available", [True, False])
def test_auto_is_cuda_where_torch_finds_a_device(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    chosen = Device("cuda" if available else "cpu", bfloat16=False)
    assert choose_device("auto", "float32", threads=1) == chosen
    assert choose_device("cpu", "float32", threads=1) == Device("cpu", bfloat16=False)


def test_cuda_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda", "bfloat16", threads=1) == Device("cuda", bfloat16=True)


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 6), ["sm_75", "sm_80"], True),  # machine code of an earlier minor version
        ((9, 0), ["sm_75", "sm_80", "sm_86"], False),  # of another major version
        ((8, 0), ["sm_86"], False),  # of a later minor version
        ((6, 1), ["sm_75", "sm_80", "compute_80"], False),  # kaggle-cli#1151: a GPU too old
        ((12, 0), ["sm_80", "compute_80"], True),  # PTX is compiled for later GPUs
        ((12, 0), ["sm_90a", "compute_90a"], False),  # but not that of one architecture
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_75", "sm_100", "sm_120"], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # ROCm
        ((9, 0), [], True),
    ],
)
def test_a_gpu_runs_code_of_compatible_architectures(
    capability: tuple[int, int], built: list[str], runs: bool
) -> None:
    assert runs_on(capability, built) is runs


def test_a_gpu_too_old_for_torch_is_a_warning_with_auto_and_an_error_with_cuda(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Driver and GPU are imitated: torch finds the GPU, and would fail at the first kernel."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: [(6, 0), (9, 0)][number])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    reason = "GPU 0 has compute capability 6.0, and this torch is built for sm_75, sm_90"
    assert choose_device("auto", "float32", threads=1) == Device("cpu", bfloat16=False)
    assert caplog.messages == [f"--device auto: {reason}; training on the CPU"]
    with pytest.raises(DistilleryError, match=f"--device cuda: {reason}; install a torch for this GPU"):
        choose_device("cuda", "float32", threads=1)
    assert choose_device("cpu", "float32", threads=1) == Device("cpu", bfloat16=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: [(9, 0), (6, 0)][number])
    assert choose_device("auto", "float32", threads=1) == Device(
        "cuda", bfloat16=False
    )  # the first one is used


def test_threads_are_the_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: 3)
    choose_device("cpu", "float32", threads=None)
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    choose_device("cpu", "float32", threads=None)
    assert torch.get_num_threads() == 1
    choose_device("cpu", "float32", threads=2)
    assert torch.get_num_threads() == 2
