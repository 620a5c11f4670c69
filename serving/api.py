"""The LitAPI of one model: the hooks that both executors drive.

The route calls `decode_request` and `encode_response`; the executor calls `batch`, `predict`, `unbatch`, in
the API process or in one of LitServe's workers. Bad input is refused by `decode_request`, so a batch holds
nothing that can fail.
"""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from litserve import LitAPI
from litserve.loops import LitLoop

from serving.batching import Prediction
from serving.decode import Body, Limits, decode
from serving.metrics import RunMetrics
from serving.repository import ModelEntry
from serving.session import Device, Images, Probabilities, Session


class Batch(NamedTuple):
    """Images of several requests in one array `uint8 [N, 28, 28]`, and how many belong to each."""

    images: Images
    sizes: list[int]


class Output(NamedTuple):
    """One run's answer `float32 [N, 10]`, and when the run started and finished (`time.monotonic`)."""

    probabilities: Probabilities
    sizes: list[int]
    started: float
    finished: float


class Timing(NamedTuple):
    """Milliseconds that one request spent where."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float

    def header(self) -> bytes:
        """The value of `Server-Timing` (W3C), which browsers' developer tools draw."""
        return b"decode;dur=%g, queue;dur=%g, inference;dur=%g, total;dur=%g" % self


@dataclass(frozen=True)
class ModelSettings:
    """What is common to all models of a service."""

    limits: Limits
    threads: int = 1
    device: Device = "cpu"
    max_batch: int = 64


class DigitAPI(LitAPI):  # type: ignore[misc]
    """One model of the repository. Pickles into LitServe's workers: the session is made in `setup`."""

    session: Session
    metrics: RunMetrics

    def __init__(self, entry: ModelEntry, settings: ModelSettings, loop: LitLoop | None = None) -> None:
        super().__init__(
            max_batch_size=max(2, settings.max_batch), api_path=f"/predict/{entry.name}", loop=loop
        )
        self.entry = entry
        self.settings = settings
        self._head = {"model": entry.name, "version": entry.manifest.version}

    def setup(self, device: str) -> None:  # noqa: ARG002 - the device is one of our own settings
        """Load the model and warm it up, in the process that will run it."""
        self.session = Session(self.entry.path, threads=self.settings.threads, device=self.settings.device)
        self.metrics = RunMetrics(self.entry.name)

    def decode_request(self, request: Body) -> Images:
        """Turn a body into `uint8 [N, 28, 28]`; raises `RequestError` for one that is not right."""
        return decode(request, self.settings.limits)

    def batch(self, inputs: list[Images]) -> Batch:
        """Join the images of several requests."""
        if len(inputs) == 1:
            return Batch(inputs[0], [len(inputs[0])])
        return Batch(np.concatenate(inputs), [len(images) for images in inputs])

    def predict(self, batch: Batch) -> Output:
        """Run the model once."""
        started = time.monotonic()
        probabilities = self.session.run(batch.images)
        finished = time.monotonic()
        self.metrics.ran(len(batch.images), finished - started)
        return Output(probabilities, batch.sizes, started, finished)

    def unbatch(self, output: Output) -> list[Prediction]:
        """Give every request its own part."""
        probabilities, sizes, started, finished = output
        digits = probabilities.argmax(axis=1)
        predictions = []
        start = 0
        for size in sizes:
            end = start + size
            predictions.append(Prediction(digits[start:end], probabilities[start:end], started, finished))
            start = end
        return predictions

    def encode_response(self, output: Prediction, *, timing: Timing) -> bytes:
        """Write the answer's JSON."""
        answer: dict[str, Any] = self._head | {
            "predictions": [
                {"digit": digit, "probability": row[digit], "probabilities": row}
                for digit, row in zip(output.digits.tolist(), output.probabilities, strict=True)
            ],
            "timing": {
                "decode_ms": timing.decode_ms,
                "queue_ms": timing.queue_ms,
                "inference_ms": timing.inference_ms,
                "total_ms": timing.total_ms,
            },
        }
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def run_batch(api: DigitAPI, inputs: list[Images]) -> list[Prediction]:
    """The executor's hooks in a row."""
    return api.unbatch(api.predict(api.batch(inputs)))
