"""The device of a session, with the onnxruntime for CPUs: it must never replace CUDA silently."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from serving.model import session
from serving.model.session import DeviceError, Session, open_session, resolve_device

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this machine has an onnxruntime that can use CUDA",
)


@pytest.fixture(autouse=True)
def warn_again() -> Iterator[None]:
    session._warn_of_cpu.cache_clear()
    yield
    session._warn_of_cpu.cache_clear()


def test_cuda_is_an_error_where_it_cannot_be_used(one_model: Path) -> None:
    with pytest.raises(
        DeviceError, match="--device cuda: this onnxruntime has no CUDAExecutionProvider; use"
    ):
        resolve_device("cuda")
    # Asked for CUDA, onnxruntime itself opens a session on the CPU, as it does without driver or libraries.
    with pytest.raises(DeviceError, match="--device cuda: onnxruntime could not start CUDAExecutionProvider"):
        open_session(one_model / "student/1/model.onnx", device="cuda")


def test_auto_is_the_cpu_with_one_warning_where_cuda_cannot_be_used(
    one_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        Session(one_model / "student/1/model.onnx", device="auto")
    assert caplog.messages == [
        "--device auto: onnxruntime could not start CUDAExecutionProvider, see its message above; "
        "models run on the CPU"
    ]
    caplog.clear()
    assert resolve_device("auto") == "cpu"
    assert caplog.messages == [
        "--device auto: this onnxruntime has no CUDAExecutionProvider; models run on the CPU"
    ]


class TooOldGpu(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session as on a GPU that onnxruntime was not built for: it starts, and fails at the first run."""

    def __init__(self, *arguments: Any, providers: list[str]) -> None:
        self._on_cuda = providers == ["CUDAExecutionProvider"]
        super().__init__(*arguments, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"] if self._on_cuda else super().get_providers()

    def run(self, *arguments: Any) -> Any:
        if self._on_cuda:
            raise RuntimeException("CUDA failure 209: no kernel image is available\nmore")
        return super().run(*arguments)


def test_a_gpu_that_fails_at_the_first_run_is_an_error_with_cuda_and_a_warning_with_auto(
    one_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", TooOldGpu)
    reason = "a first run on CUDA failed (CUDA failure 209: no kernel image is available)"
    with pytest.raises(
        DeviceError, match=re.escape(f"--device cuda: {reason}; check GPU, driver, CUDA and cuDNN")
    ):
        open_session(one_model / "student/1/model.onnx", device="cuda")
    Session(one_model / "student/1/model.onnx", device="auto")
    assert caplog.messages == [f"--device auto: {reason}; models run on the CPU"]


def test_the_cpu_needs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_device("cpu") == "cpu"
    assert not caplog.messages
