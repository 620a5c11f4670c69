"""An onnxruntime session for one model: explicit threads, warmed up, with a measured run time."""

import logging
import math
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from distillery import DistilleryError
from serving.model.acceptance import Digits, Shares, confidence_of, confidences_of, most_probable
from serving.model.graph_check import GraphError
from serving.model.repository import OUTLIER, OUTPUTS, POWER, THRESHOLD
from serving.model.tensors import SIDE, Accepted, Images, Scores

Device = Literal["auto", "cpu", "cuda"]

_CUDA = "CUDAExecutionProvider"
_ERRORS = (
    *(ort.EPFail, ort.Fail, ort.InvalidArgument, ort.InvalidGraph),
    *(ort.InvalidProtobuf, ort.NotImplemented, ort.RuntimeException),
)
"""Of a graph: those that onnxruntime raises when it opens or runs one."""
_FATAL = 4
"""The level of onnxruntime's own messages, written by its C++ code, that an exception does not repeat."""
_WARM_UP = (1, 64)
"""Images per run."""
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
    except _ERRORS as error:
        return f"a first run on CUDA failed ({_first_line(error)})"
    return None


@cache  # once for all models of a process
def _warn_of_cpu(reason: str) -> None:
    _logger.warning("--device auto: %s; models run on the CPU", reason)


def _first_line(error: Exception) -> str:
    """Return the first line of an error of onnxruntime, without its number and the function that raised it."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ [^()]*\([^()]*\) ", "", line)


GraphOutputs = list[Scores]
"""What a run returns, `float32` each: logits [N, 10], probabilities [N, 10], and outlier [N, 1] if the graph has it."""


class Outputs(NamedTuple):
    """The outputs of a run over N images; the last two are None for a file without an acceptance rule."""

    digits: list[int]  # N, the most probable ones
    logits: Scores  # [N, 10]
    probabilities: Scores  # [N, 10]
    confidence: list[float] | None = None  # N
    accepted: list[bool] | None = None  # N


class OutputArrays(NamedTuple):
    """The same as arrays, which are faster for many images."""

    digits: Digits
    logits: Scores
    probabilities: Scores
    confidence: Shares | None = None
    accepted: Accepted | None = None


class RunTimes(NamedTuple):
    """A run of n images is expected to take `run_seconds + n * image_seconds`."""

    run_seconds: float
    image_seconds: float


class Session:
    """One model, ready to run."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 1,
        device: Device = "cpu",
        run_times: RunTimes | None = None,
    ) -> None:
        """Open and warm up a graph that passed `check_graph`. Raises `GraphError` if it cannot run, `DeviceError`.

        With `run_times`, another process has run it on this machine, and its outputs are not checked again.
        """
        try:
            self._session = open_session(model, threads=threads, device=device)
        except _ERRORS as error:
            raise GraphError(f"onnxruntime cannot load it: {_first_line(error)}") from None
        rule = self._session.get_modelmeta().custom_metadata_map
        self._specs = [*OUTPUTS, OUTLIER][: len(self._session.get_outputs())]
        self._names = [spec.name for spec in self._specs]
        self._power, self._threshold = self._acceptance_rule(rule)
        if run_times:
            self._measure(1, runs=1)
        else:
            for images in _WARM_UP:
                self._check_outputs(images)
        self.run_times = run_times or self._measure_times()

    def run(self, images: Images) -> Outputs:
        """Return the outputs for `uint8 [N, 28, 28]` ink values."""
        if len(images) > 1:
            digits, logits, probabilities, confidence, accepted = self.outputs_of([self.run_graph(images)])
            return Outputs(
                digits.tolist(),
                logits,
                probabilities,
                None if confidence is None else confidence.tolist(),
                None if accepted is None else accepted.tolist(),
            )
        logits, probabilities, *outlier = self._session.run(self._names, {"image": images})
        digit = most_probable(probabilities)
        if not outlier:
            return Outputs(digit, logits, probabilities)
        [share] = confidence_of(digit, logits, probabilities, outlier[0], self._power)
        # Truncated, not rounded, to as many decimals as the threshold has: that never moves a share across it.
        share = int(share * 1e6) / 1e6
        return Outputs(digit, logits, probabilities, [share], [share >= self._threshold])

    def run_graph(self, images: Images) -> GraphOutputs:
        """Return the outputs of the graph, for `outputs_of`."""
        outputs: GraphOutputs = self._session.run(self._names, {"image": images})
        return outputs

    def outputs_of(self, runs: Sequence[GraphOutputs]) -> OutputArrays:
        """Return digits and confidences of one or several runs, in their order, faster than run by run."""
        logits, probabilities, *outlier = (
            runs[0] if len(runs) == 1 else map(np.concatenate, zip(*runs, strict=True))
        )
        digits: Digits = probabilities.argmax(axis=1)
        if not outlier:
            return OutputArrays(digits, logits, probabilities)
        shares = confidences_of(digits, logits, probabilities, outlier[0], self._power)
        shares = np.trunc(shares * 1e6) / 1e6
        return OutputArrays(digits, logits, probabilities, shares, shares >= self._threshold)

    def images_within(self, seconds: float) -> int:
        """Return the number of images that one run is expected to process within `seconds`."""
        left = seconds - self.run_times.run_seconds
        return max(0, int(left / max(self.run_times.image_seconds, 1e-9)))

    def _acceptance_rule(self, metadata: Mapping[str, str]) -> tuple[float, float]:
        """Return power and threshold, which a file has if it has the output `outlier`. Raises `GraphError`."""
        if OUTLIER not in self._specs and POWER not in metadata:
            return 1.0, 1.0
        found = [metadata.get(name, "missing") for name in (POWER, THRESHOLD)]
        try:
            power, threshold = map(float, found)
        except ValueError:
            power = threshold = math.nan
        if OUTLIER not in self._specs or not (0 < power < math.inf and 0 <= threshold <= 1):
            raise GraphError(
                f"its metadata {POWER} and {THRESHOLD} are {found[0]} and {found[1]}, expected a number above 0 and "
                f"one from 0 to 1, and the output {OUTLIER.name}"
            )
        return power, threshold

    def _check_outputs(self, images: int) -> None:
        """Run the graph once and check shapes and values of what it returns. Raises `GraphError`."""
        ink = np.arange(images * SIDE * SIDE, dtype=np.uint32) // 3 % 256
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL
        batch = ink.astype(np.uint8).reshape(images, SIDE, SIDE)
        try:
            outputs = self._session.run(self._names, {"image": batch}, options)
        except _ERRORS as error:
            raise GraphError(f"a run of {images} images failed: {_first_line(error)}") from None
        for spec, output in zip(self._specs, outputs, strict=True):
            expected = (images, *spec.shape[1:])
            if output.shape != expected:
                raise GraphError(
                    f"its output {spec.name} has the shape {output.shape} for {images} images, expected {expected}"
                )
            if not np.isfinite(output).all():
                raise GraphError(f"its output {spec.name} contains infinite values or NaN")

    def _measure_times(self) -> RunTimes:
        one, many = map(self._measure, _WARM_UP)
        image_seconds = max(many - one, 0.0) / 63
        return RunTimes(max(one - image_seconds, 0.0), image_seconds)

    def _measure(self, images: int, *, runs: int = 5) -> float:
        """Return the shortest of a few runs, in seconds, which other load on the machine affects least."""
        blank = np.zeros((images, SIDE, SIDE), np.uint8)
        shortest = float("inf")
        for _ in range(runs):
            started = time.perf_counter()
            self.run(blank)
            shortest = min(shortest, time.perf_counter() - started)
        return shortest
