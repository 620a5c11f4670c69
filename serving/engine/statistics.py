"""Statistics of each model by Triton's statistics extension, summed over all processes.

    GET /v2/models/stats
    GET /v2/models/{model}[/versions/{version}]/stats

The statistics cover all protocols and all processes, including those that died. An API process publishes its counts
every 0.1 s and a model worker after every run, so a response is at most that much out of date. The numbers of one
process are consistent with each other; those of two processes may be 0.1 s apart.

What the extension leaves to the server:
- `success` lasts from the body received to the response handed over; `fail` counts every other status than 200,
  clients that disconnected included. A request rejected before its body arrived counts with duration 0.
- `queue`, `compute_input` (decoding), `compute_infer` and `compute_output` (encoding) are those of successful
  requests; a run counts in full for each request in it. The rest of `success` is the wait for the event loop after the
  run and the write to the socket, during which the kernel may schedule a client on the same machine.
- `batch_stats` are those of runs: joining the images of several requests, the run, and splitting its outputs. A run
  whose clients have all disconnected counts.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from serving.codecs.open_inference.rest import find_model
from serving.engine.metrics import merged
from serving.http.v2_routes import v2_router
from serving.model.repository import Manifest, ModelEntry

_Labels = Mapping[str, str]
_Counts = Mapping[str, Sequence[tuple[_Labels, float]]]
"""Of one model: labels and value of each series, by metric name."""


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


def model_statistics(models: Iterable[Manifest]) -> Statistics:
    """Sum what all processes have published of these models. Reads files: not to be called on the event loop."""
    counts: defaultdict[str, defaultdict[str, list[tuple[_Labels, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for metric in (*merged("counter"), *merged("gauge")):
        for sample in metric.samples:
            counts[sample.labels.get("model", "")][sample.name].append((sample.labels, sample.value))
    return Statistics(model_stats=[_one_model(model, counts[model.name]) for model in models])


def add_statistics_routes(app: FastAPI, models: Mapping[str, ModelEntry], guard: Mapping[str, Any]) -> None:
    """Add the routes to `app`, protected by `guard`; before `/v2/models/{model}`, which would match "stats" too."""
    manifests = {name: entry.manifest for name, entry in models.items()}
    every, one = v2_router("/models", guard), v2_router("/models/{model}", guard, 404)

    @every.get("/stats", summary="Statistics of every model")
    async def all_statistics() -> Statistics:
        return await run_in_threadpool(model_statistics, manifests.values())

    @one.get("/stats", summary="Statistics of a model")
    async def statistics(model: str) -> Statistics:
        return await run_in_threadpool(model_statistics, [find_model(manifests, model)])

    @one.get("/versions/{version}/stats", summary="Statistics of a version")
    async def versions_statistics(model: str, version: str) -> Statistics:
        return await run_in_threadpool(model_statistics, [find_model(manifests, model, version)])

    app.include_router(every)
    app.include_router(one)


def _one_model(model: Manifest, counts: _Counts) -> ModelStatistics:
    def total(name: str, **labels: str) -> float:
        return sum(value for found, value in counts[f"distillery_{name}"] if labels.items() <= found.items())

    def outcome(count: float, name: str) -> Duration:
        return _duration(count, total("request_outcome_seconds_total", outcome=name))

    def stage(name: str) -> Duration:
        return _duration(succeeded, total("request_stage_seconds_total", stage=name))

    succeeded = total("requests_total", status="200")
    runs = _runs(counts)
    return ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=round(total("last_prediction_timestamp_seconds") * 1000),
        inference_count=round(total("images_total")),
        execution_count=sum(run.compute_infer.count for run in runs),
        inference_stats=InferenceStatistics(
            success=outcome(succeeded, "success"),
            fail=outcome(total("requests_total") - succeeded, "failure"),
            queue=stage("queue"),
            compute_input=stage("decode"),
            compute_infer=stage("inference"),
            compute_output=stage("encode"),
        ),
        batch_stats=runs,
    )


def _runs(counts: _Counts) -> list[BatchStatistics]:
    """Return the statistics by batch size, in ascending order."""
    runs = {int(labels["images"]): value for labels, value in counts["distillery_runs_total"] if value}
    seconds = {
        (int(labels["images"]), labels["stage"]): value
        for labels, value in counts["distillery_run_seconds_total"]
    }
    return [
        BatchStatistics(
            batch_size=images,
            compute_input=_duration(runs[images], seconds.get((images, "batch"), 0)),
            compute_infer=_duration(runs[images], seconds.get((images, "predict"), 0)),
            compute_output=_duration(runs[images], seconds.get((images, "unbatch"), 0)),
        )
        for images in sorted(runs)
    ]


def _duration(count: float, seconds: float) -> Duration:
    return Duration(count=round(count), ns=round(seconds * 1e9))
