"""The LitAPI of one model: the hooks that both executors drive.

The route calls `decode_request` and `encode_response`; the executor calls `batch`, `predict`, `unbatch`, in
the API process or in one of LitServe's workers. Bad input is refused by `decode_request`, so a batch holds
nothing that can fail.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from litserve import LitAPI
from litserve.loops import LitLoop

from serving.codecs.base import Protocol, Query, Reply, Request, Timing
from serving.codecs.bodies import Limits
from serving.engine.batching import Prediction
from serving.engine.recorder import RunMetrics
from serving.model.repository import ModelEntry
from serving.model.session import Device, Images, Scores, Session


class Batch(NamedTuple):
    """Images of several requests in one array `uint8 [N, 28, 28]`, and how many belong to each."""

    images: Images
    sizes: list[int]


class Output(NamedTuple):
    """One run's answers, each `float32 [N, 10]`, and when it started and finished (`time.monotonic`)."""

    logits: Scores
    probabilities: Scores
    sizes: list[int]
    started: float
    finished: float


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

    def setup(self, device: str) -> None:  # noqa: ARG002 - the device is one of our own settings
        """Load the model and warm it up, in the process that will run it."""
        self.session = Session(self.entry.path, threads=self.settings.threads, device=self.settings.device)
        self.metrics = RunMetrics(self.entry.name)

    def decode_request(self, request: Request, *, protocol: Protocol) -> Query:
        """Turn a request into images and wishes; raises `RequestError` for one that is not right."""
        return protocol.decode(request, self.settings.limits)

    def batch(self, inputs: list[Images]) -> Batch:
        """Join the images of several requests."""
        if len(inputs) == 1:
            return Batch(inputs[0], [len(inputs[0])])
        return Batch(np.concatenate(inputs), [len(images) for images in inputs])

    def predict(self, batch: Batch) -> Output:
        """Run the model once."""
        started = time.monotonic()
        logits, probabilities = self.session.run(batch.images)
        finished = time.monotonic()
        return Output(logits, probabilities, batch.sizes, started, finished)

    def unbatch(self, output: Output) -> list[Prediction]:
        """Give every request its own part."""
        logits, probabilities, sizes, started, finished = output
        digits = probabilities.argmax(axis=1)
        predictions = []
        start = 0
        for size in sizes:
            end = start + size
            part = slice(start, end)
            predictions.append(Prediction(digits[part], logits[part], probabilities[part], started, finished))
            start = end
        return predictions

    def encode_response(
        self, output: Prediction, *, protocol: Protocol, query: Query, timing: Timing
    ) -> Reply:
        """Write the answer to one request."""
        return protocol.encode(self.entry.manifest, query, output, timing)


def run_batch(api: DigitAPI, inputs: list[Images]) -> list[Prediction]:
    """The executor's hooks in a row, and what they took."""
    begun = time.monotonic()
    output = api.predict(api.batch(inputs))
    predictions = api.unbatch(output)
    ended = time.monotonic()
    api.metrics.ran(
        len(output.logits), output.started - begun, output.finished - output.started, ended - output.finished
    )
    return predictions
