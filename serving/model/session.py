"""An onnxruntime session for one model: explicit threads, warmed up, with a measured run time."""

import logging
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, RuntimeException

from distillery import DistilleryError
from serving.model.acceptance import confidence_of, most_probable
from serving.model.repository import OUTLIER, OUTPUTS, POWER, THRESHOLD
from serving.model.tensors import SIDE, Images, Scores

Device = Literal["auto", "cpu", "cuda"]

_CUDA = "CUDAExecutionProvider"
_logger = logging.getLogger("distillery")


class DeviceError(DistilleryError):
    """onnxruntime cannot use the device."""


def resolve_device(device: Device) -> Device:
    """Return `cpu` for `auto` if the installed onnxruntime has no CUDA. Raises `DeviceError` if `cuda` has none.

    Whether CUDA works is known only to the process that runs a model: it must not be initialised before a fork.
    """
    if device == "cpu" or _CUDA in onnxruntime.get_available_providers():
        return device
    if device == "cuda":
        raise DeviceError(
            f"--device cuda: this onnxruntime has no {_CUDA}; use --device cpu or install onnxruntime-gpu"
        )
    _warn_of_cpu(f"this onnxruntime has no {_CUDA}")
    return "cpu"


def open_session(
    model: Path | bytes, *, threads: int = 1, device: Device = "cpu"
) -> onnxruntime.InferenceSession:
    """Open a graph, from a file or from its bytes, with `threads` threads for a run.

    onnxruntime's defaults count the host's cores, not the container's, and its idle threads spin. Raises `DeviceError`
    if `device` is `cuda` and cannot be used, where onnxruntime itself would use the CPU.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the error below replaces it
        provider = "CPUExecutionProvider" if device == "cpu" else _CUDA
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    if device == "cpu" or (error := _cuda_error(session)) is None:
        return session
    if device == "cuda":
        raise DeviceError(f"--device cuda: {error}; check GPU, driver, CUDA and cuDNN, or use --device cpu")
    _warn_of_cpu(error)
    return open_session(model, threads=threads)


def _cuda_error(session: onnxruntime.InferenceSession) -> str | None:
    """Return why a session does not run on CUDA, None if it does."""
    if _CUDA not in session.get_providers():
        return f"onnxruntime could not start {_CUDA}, see its message above"
    try:  # a GPU too old for the build fails at the first run
        session.run(None, {"image": np.zeros((1, SIDE, SIDE), np.uint8)})
    except (Fail, RuntimeException, EPFail) as error:
        return f"a first run on CUDA failed ({str(error).splitlines()[0]})"
    return None


@cache  # once for all models of a process
def _warn_of_cpu(reason: str) -> None:
    _logger.warning("--device auto: %s; models run on the CPU", reason)


class Outputs(NamedTuple):
    """The outputs of a run over N images; the last two are None for a file without an acceptance rule."""

    digits: list[int]  # N, the most probable ones
    logits: Scores  # [N, 10]
    probabilities: Scores  # [N, 10]
    confidence: list[float] | None = None  # N
    accepted: list[bool] | None = None  # N


class Session:
    """One model, ready to run.

    `run_seconds` and `image_seconds` are measured while warming up: a run of n images is expected to take
    `run_seconds + n * image_seconds`.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 1, device: Device = "cpu") -> None:
        self._session = open_session(model, threads=threads, device=device)
        rule = self._session.get_modelmeta().custom_metadata_map
        self._names = [spec.name for spec in ((*OUTPUTS, OUTLIER) if POWER in rule else OUTPUTS)]
        self._power, self._threshold = float(rule.get(POWER, 1)), float(rule.get(THRESHOLD, 1))
        one, many = self._measure(1), self._measure(64)
        self.image_seconds = max(many - one, 0.0) / 63
        self.run_seconds = max(one - self.image_seconds, 0.0)

    def run(self, images: Images) -> Outputs:
        """Return the outputs for `uint8 [N, 28, 28]` ink values."""
        logits, probabilities, *outlier = self._session.run(self._names, {"image": images})
        digits = most_probable(probabilities)
        if not outlier:
            return Outputs(digits, logits, probabilities)
        shares = confidence_of(digits, logits, probabilities, outlier[0], self._power)
        # Truncated, not rounded, to as many decimals as the threshold has: that never moves a share across it.
        confidence = [int(share * 1e6) / 1e6 for share in shares]
        return Outputs(
            digits, logits, probabilities, confidence, [share >= self._threshold for share in confidence]
        )

    def images_within(self, seconds: float) -> int:
        """Return the number of images that one run is expected to process within `seconds`."""
        left = seconds - self.run_seconds
        return max(0, int(left / max(self.image_seconds, 1e-9)))

    def _measure(self, images: int) -> float:
        """Return the shortest of a few runs, in seconds, which other load on the machine affects least."""
        blank = np.zeros((images, SIDE, SIDE), np.uint8)
        self.run(blank)
        shortest = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            self.run(blank)
            shortest = min(shortest, time.perf_counter() - started)
        return shortest
