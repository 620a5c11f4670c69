"""The LitAPI of one model: the hooks of LitServe that turn a request into a response.

`setup` loads the model. Then, per request and per batch, the hooks run in this order:

    decode_request   InFlightRequest.begin, on the event loop or a decoding thread
    batch            run_batch: called by the executor, in the API process or in one of LitServe's workers
    predict          run_batch
    unbatch          run_batch
    encode_response  InFlightRequest.set_result, on the event loop

`decode_request` rejects invalid input, so one request cannot fail the batch it shares with others.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from litserve import LitAPI
from litserve.loops import LitLoop

from distillery import DistilleryError
from serving.codecs.base import BodyLimits, Codec, Head, Prediction, Query, Reply, Timing
from serving.codecs.errors import NotAccepted
from serving.engine.metrics.recorder import RunMetrics
from serving.model.graph_check import GraphError
from serving.model.repository import ModelEntry, RepositoryError
from serving.model.session import Device, Session
from serving.model.tensors import Images


@dataclass(frozen=True)
class ModelSettings:
    """Settings common to all models of a service."""

    limits: BodyLimits
    threads: int = 1
    device: Device = "cpu"
    max_batch: int = 64
    reject_unaccepted: bool = False
    """Respond with an error to a request with an image whose prediction is not accepted."""


class DigitAPI(LitAPI):  # type: ignore[misc]
    """One model of the repository. Picklable, for LitServe's workers: the session is created by `setup`."""

    session: Session
    metrics: RunMetrics
    """Set by the process that runs the model, which has a row of the shared metrics."""
    latest_run: tuple[Images, Prediction] | None = None
    """The images of the first request in the latest run, and the prediction for the whole run."""
    mirror: Callable[[list[Images], Prediction], None] | None = None
    """Receives the images of the requests in each run, and the prediction for all: `serving.engine.shadow`."""
    end_process: Callable[[str], object] | None = None
    """Set in a process of the service, to report why it cannot start; LitServe and uvicorn would log a traceback."""

    def __init__(self, entry: ModelEntry, settings: ModelSettings, loop: LitLoop | None = None) -> None:
        path = f"/predict/{entry.name}-v{entry.manifest.version}"  # LitServe's own, which must differ; not served
        super().__init__(max_batch_size=max(2, settings.max_batch), api_path=path, loop=loop)
        self.entry = entry
        self.settings = settings

    def setup(self, device: str) -> None:  # noqa: ARG002 - `settings.device` replaces LitServe's device
        """Load and warm up the model in the process that runs it. Raises `DistilleryError`, or ends the process.

        A cascade has nothing to load (`serving.engine.cascade`).
        """
        if self.entry.manifest.cascade:
            return
        try:
            self.session = self._open_session()
        except DistilleryError as error:
            if self.end_process is None:  # in a program that mounts the service
                raise
            self.end_process(str(error))

    def _open_session(self) -> Session:
        try:
            return Session(self.entry.content, threads=self.settings.threads, device=self.settings.device)
        except GraphError as error:
            raise RepositoryError(
                f"model {self.entry.name}: {self.entry.path} is not a graph that this service runs: {error}; "
                "export the model again"
            ) from None

    def decode_request(self, request: bytes, *, codec: Codec, head: Head) -> Query:
        """Decode a request body to images. Raises `RequestError`."""
        return codec.decode(head, request, self.settings.limits)

    def batch(self, inputs: list[Images]) -> tuple[Images, list[int]]:
        """Concatenate the images of several requests; return them with the number of each request's images."""
        if len(inputs) == 1:
            return inputs[0], [len(inputs[0])]
        return np.concatenate(inputs), [len(images) for images in inputs]

    def predict(self, batch: tuple[Images, list[int]]) -> tuple[Prediction, list[int]]:
        """Run the model once over the batch."""
        images, sizes = batch
        started = time.monotonic()
        digits, logits, probabilities, confidence, accepted = self.session.run(images)
        finished = time.monotonic()
        return Prediction(digits, logits, probabilities, started, finished, confidence, accepted), sizes

    def unbatch(self, output: tuple[Prediction, list[int]]) -> list[Prediction]:
        """Split a prediction by request."""
        whole, sizes = output
        if len(sizes) == 1:
            return [whole]
        predictions = []
        start = 0
        for size in sizes:
            end = start + size
            predictions.append(whole.part(slice(start, end)))
            start = end
        return predictions

    def encode_response(self, output: Prediction, *, codec: Codec, query: Query, timing: Timing) -> Reply:
        """Encode the response to one request. Raises `NotAccepted`, if so configured."""
        if self.settings.reject_unaccepted and output.accepted and False in output.accepted:
            raise self._not_accepted(output)
        return codec.encode(self.entry.manifest, query, output, timing)

    def _not_accepted(self, output: Prediction) -> NotAccepted:
        manifest = self.entry.manifest
        assert output.confidence is not None and output.accepted is not None  # noqa: S101, PT018
        index = output.accepted.index(False)
        rule = manifest.acceptance
        threshold = f"the threshold of {manifest.name} is {rule.threshold:.4f}" if rule else "too low"
        return NotAccepted(
            f"image {index + 1} of {len(output.digits)} is not accepted: its confidence is "
            f"{output.confidence[index]:.4f}, {threshold}; it shows no digit, or an unclear one"
        )


def run_batch(api: DigitAPI, inputs: list[Images]) -> list[Prediction]:
    """Run one batch through the hooks `batch`, `predict` and `unbatch`, and record their times."""
    begun = time.monotonic()
    cpu = api.metrics.cpu_started(begun)
    output = api.predict(api.batch(inputs))
    predictions = api.unbatch(output)
    ended = time.monotonic()
    whole = output[0]
    api.latest_run = inputs[0], whole
    if mirror := api.mirror:  # which the event loop may set to None meanwhile
        mirror(inputs, whole)
    if cpu is not None:
        api.metrics.cpu_ended(cpu)
    api.metrics.ran(
        len(whole.digits), whole.started - begun, whole.finished - whole.started, ended - whole.finished
    )
    return predictions
