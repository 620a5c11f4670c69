"""The device of a session, with the onnxruntime for CPUs: it must never replace CUDA silently."""

from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest

from serving.model import session
from serving.model.session import DeviceError, Session, open_session, resolve_device

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime can use CUDA"
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
        "--device auto: onnxruntime could not start CUDAExecutionProvider; models run on the CPU"
    ]
    caplog.clear()
    assert resolve_device("auto") == "cpu"
    assert caplog.messages == [
        "--device auto: this onnxruntime has no CUDAExecutionProvider; models run on the CPU"
    ]


def test_the_cpu_needs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_device("cpu") == "cpu"
    assert not caplog.messages
