"""The device of a training, on machines with a CUDA device and without."""

import pytest
import torch

from training.loop.device import Device, choose_device


@pytest.mark.parametrize("available", [True, False])
def test_auto_is_cuda_where_torch_finds_a_device(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    chosen = Device("cuda" if available else "cpu", bfloat16=False)
    assert choose_device("auto", "float32", threads=1) == chosen
    assert choose_device("cpu", "float32", threads=1) == Device("cpu", bfloat16=False)


def test_cuda_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda", "bfloat16", threads=1) == Device("cuda", bfloat16=True)
