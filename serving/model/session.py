"""An onnxruntime session for one model: explicit threads, warmed up, with a measured run time."""

import time
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnxruntime

from distillery import DistilleryError
from serving.model.acceptance import confidence_of, most_probable
from serving.model.repository import OUTLIER, OUTPUTS, POWER, THRESHOLD
from serving.model.tensors import SIDE, Images, Scores

Device = Literal["cpu", "cuda"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class DeviceError(DistilleryError):
    """The installed onnxruntime does not support the device."""


def check_device(device: Device) -> None:
    """Raise `DeviceError` unless the installed onnxruntime supports `device`."""
    if _PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"this onnxruntime has no {_PROVIDERS[device]}; use --device cpu or install onnxruntime-gpu"
        )


def open_session(
    model: Path | bytes, *, threads: int = 1, device: Device = "cpu"
) -> onnxruntime.InferenceSession:
    """Open a graph, from a file or from its bytes, with `threads` threads for a run.

    onnxruntime's defaults count the host's cores, not the container's, and its idle threads spin.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=[_PROVIDERS[device]])


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

    def __init__(self, path: Path, *, threads: int = 1, device: Device = "cpu") -> None:
        self._session = open_session(path, threads=threads, device=device)
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
