"""Statistics of each model by Triton's statistics extension, summed over all processes.

The statistics cover all protocols and all processes, including those that died. An API process publishes its counts
every 0.1 s and a model worker after every run, so a response is at most that much out of date.

What the extension leaves to the server:
- `success` lasts from the body received to the response handed over; `fail` counts every other status than 200,
  clients that disconnected included. A request rejected before its body arrived counts with duration 0.
- `queue`, `compute_input` (decoding), `compute_infer` and `compute_output` (encoding) are those of successful
  requests; a run counts in full for each request in it. The rest of `success` is the wait for the event loop after the
  run and the write to the socket, during which the kernel may schedule a client on the same machine.
- `batch_stats` are those of runs: joining the images of several requests, the run, and splitting its outputs. A run
  whose clients have all disconnected counts.
"""

from collections.abc import Iterable

from pydantic import BaseModel, Field

from serving.engine.metrics.series import (
    IMAGES,
    LAST_PREDICTION,
    OUTCOME_SECONDS,
    REQUESTS,
    RUN_SECONDS,
    RUNS,
    STAGE_SECONDS,
    Metrics,
    Slots,
    Values,
)
from serving.model.repository import Manifest


class Duration(BaseModel):
    """Number of events, and their total duration in nanoseconds."""

    count: int = 0
    ns: int = 0


class InferenceStatistics(BaseModel):
    """Requests by outcome, and the stages of successful ones."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration = Field(Duration(), description="always 0: this service has no response cache")
    cache_miss: Duration = Duration()


class BatchStatistics(BaseModel):
    """Runs of one batch size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(BaseModel):
    """Statistics of one model since the service started."""

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since 1970; 0 before the first")
    inference_count: int = Field(description="images in successful requests")
    execution_count: int = Field(description="runs of the model")
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class Statistics(BaseModel):
    """The response of `GET /v2/models/…/stats`."""

    model_stats: list[ModelStatistics]


def model_statistics(metrics: Metrics, slots: Slots, models: Iterable[Manifest]) -> Statistics:
    """Sum what all processes have published of these models."""
    totals = metrics.totals()
    return Statistics(
        model_stats=[_one_model(model, slots[model.name, model.version], totals) for model in models]
    )


def _one_model(model: Manifest, slot: str, totals: Values) -> ModelStatistics:
    def total(metric: str, **labels: str) -> float:
        return float(totals.of(metric, slot=slot, **labels).sum())

    def outcome(count: float, name: str) -> Duration:
        return _duration(count, total(OUTCOME_SECONDS, outcome=name))

    def stage(name: str) -> Duration:
        return _duration(succeeded, total(STAGE_SECONDS, stage=name))

    succeeded = total(REQUESTS, status="200")
    runs = _runs(slot, totals)
    return ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=round(total(LAST_PREDICTION) * 1000),
        inference_count=round(total(IMAGES)),
        execution_count=sum(run.compute_infer.count for run in runs),
        inference_stats=InferenceStatistics(
            success=outcome(succeeded, "success"),
            fail=outcome(total(REQUESTS) - succeeded, "failure"),
            queue=stage("queue"),
            compute_input=stage("decode"),
            compute_infer=stage("inference"),
            compute_output=stage("encode"),
        ),
        batch_stats=runs,
    )


def _runs(slot: str, totals: Values) -> list[BatchStatistics]:
    """Return the statistics by batch size, in ascending order."""
    counts = totals.of(RUNS, slot=slot)
    seconds = totals.of(RUN_SECONDS, slot=slot)  # [images, stage]
    runs = []
    for index in counts.nonzero()[0].tolist():
        batch, predict, unbatch = (_duration(counts[index], stage) for stage in seconds[index])
        runs.append(
            BatchStatistics(
                batch_size=index + 1, compute_input=batch, compute_infer=predict, compute_output=unbatch
            )
        )
    return runs


def _duration(count: float, seconds: float) -> Duration:
    return Duration(count=round(count), ns=round(seconds * 1e9))
