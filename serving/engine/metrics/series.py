"""The Prometheus metrics of the service: one table of all series, and their values in memory shared by all processes.

Every series exists from the start with the value 0, because Prometheus sees no increase in a series that appears with
its first count: a burst of errors within one scrape would be invisible. So the number of series is fixed, and a process
is a row of shared numbers with one column per series; a scrape adds the rows up. The series of a model are those of a
slot: there is one for each version that is served, and some for those that are loaded later (`Slots`). A process that
replaces a dead one continues its row: counters never decrease, and processes that die leave nothing behind.

prometheus_client's multiprocess mode keeps the values in a folder of memory-mapped files instead, one set per process.
That fails with the folder: a full disk kills the process (SIGBUS), a cleaner removes the files, and those of dead
processes accumulate. `PROMETHEUS_MULTIPROC_DIR` has no effect on this service.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serving.codecs.errors import prediction_errors
from serving.engine.shared_memory import SharedRows
from serving.model.release import CRITERIA

SECONDS = tuple(
    round(step * decade, 9)
    for decade in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    for step in (1, 1.5, 2, 3, 5, 7.5)
    if 2e-5 <= step * decade <= 5
)
"""Bucket bounds from 20 µs to 5 s, about a factor of 1.5 apart: quantiles are accurate to about 20 %."""

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_RUN_IMAGES = 4096
"""The largest exact batch size; larger runs, which only very high limits permit, count as this."""

CLIENT_GONE = 499
"""The status of a request whose client hung up: never sent, but counted."""
CLIENT_GONE_CODE = "client_gone"

SLOT = "slot"
"""The label of a served version of a model, `Slots`; /metrics has the labels `model` and `version` instead."""
Slots = Mapping[tuple[str, str], str]
"""The slot of each version that is or was served: by name and version of a model."""
UNKNOWN_MODEL = ""
"""The label of requests that name no served model; the name itself must not become a label."""

STAGES = ("decode", "queue", "inference", "delivery", "encode")
"""Of a successful request; `delivery` is the wait for the event loop after its run."""

RUN_STAGES = ("batch", "predict", "unbatch")
OUTCOMES = ("success", "failure")
COMPARISONS = ("true", "false")
"""Whether the digit of a model is that of the teacher."""
CORRECT = ("true", "false")
"""Whether the digit of a model is the true one."""
REFERENCES = ("both", "stable", "candidate")
"""The versions with which the teacher agrees about a mirrored image; both: also if it agrees with neither."""
DECISIONS = ("start", "promote", "rollback")
DECIDERS = ("person", "rule")
HYPOTHESES = ("worse", "as_good")
LOG_KINDS = ("requests", "feedback")
DROP_REASONS = ("rate", "memory", "disk")
"""Why a row is not in the request log: over its rate, a writer that is behind, a folder that cannot be written."""
ROUTE_SECONDS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0)
"""Bounds of the durations by route, fewer than those by model; all of them are in `SECONDS`."""
UNKNOWN_ROUTE = "unknown"
"""The label of requests whose path is no route's; the path itself must not become a label."""
STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")
LAG_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

TEACHER = "teacher"
"""The model that others are compared with, where it is served: by the agreement, the rules and the dashboards."""
PROCESSES = ("api", "worker")
DIGITS = tuple(map(str, range(10)))

REQUESTS = "distillery_requests_total"
REQUEST_SECONDS = "distillery_request_duration_seconds"
ROUTE_REQUESTS = "distillery_route_requests_total"
ROUTE_REQUEST_SECONDS = "distillery_route_request_duration_seconds"
QUEUE_SECONDS = "distillery_queue_wait_seconds"
INFERENCE_SECONDS = "distillery_inference_duration_seconds"
BATCH_IMAGES = "distillery_batch_size_images"
STAGE_SECONDS = "distillery_request_stage_seconds_total"
OUTCOME_SECONDS = "distillery_request_outcome_seconds_total"
IMAGES = "distillery_images_total"
PREDICTIONS = "distillery_predictions_total"
REJECTED = "distillery_rejected_predictions_total"
ESCALATED = "distillery_escalated_images_total"
REJECTED_REQUESTS = "distillery_rejected_requests_total"
TEACHER_COMPARISONS = "distillery_teacher_comparisons_total"
FEEDBACK = "distillery_feedback_total"
SHADOW_COMPARISONS = "distillery_shadow_comparisons_total"
SHADOW_REFERENCES = "distillery_shadow_references_total"
SHADOW_DROPPED = "distillery_shadow_dropped_requests_total"
RELEASE_DECISIONS = "distillery_release_decisions_total"
RELEASE_DECISION_TIME = "distillery_release_decision_timestamp_seconds"
RELEASE_EVIDENCE = "distillery_release_evidence"
LOG_ROWS = "distillery_request_log_rows_total"
LOG_DROPPED = "distillery_request_log_dropped_rows_total"
LOG_WRITTEN_BYTES = "distillery_request_log_written_bytes_total"
LOG_REMOVED_BYTES = "distillery_request_log_removed_bytes_total"
LOG_BYTES = "distillery_request_log_bytes"
QUEUED = "distillery_requests_queued"
LOOP_LAG = "distillery_event_loop_lag_seconds"
PROCESSES_RUNNING = "distillery_processes"
PROCESS_MEMORY = "distillery_process_resident_memory_bytes"
PROCESS_DESCRIPTORS = "distillery_process_open_fds"
PROCESS_MAX_DESCRIPTORS = "distillery_process_max_fds"
CPU_PERIODS = "distillery_cpu_periods_total"
CPU_THROTTLED_PERIODS = "distillery_cpu_throttled_periods_total"
CPU_THROTTLED_SECONDS = "distillery_cpu_throttled_seconds_total"
RUN_CPU_SECONDS = "distillery_run_cpu_seconds_total"
PROCESS_CPU_SECONDS = "distillery_process_cpu_seconds_total"
PROCESS_RESTARTS = "distillery_process_restarts_total"
IN_FLIGHT = "distillery_requests_in_flight"
LAST_PREDICTION = "distillery_last_prediction_timestamp_seconds"
RUNS = "distillery_runs_total"
RUN_SECONDS = "distillery_run_seconds_total"
EXEMPLARS = "distillery_exemplars"
EXEMPLAR_PARTS = ("time", "seconds", "trace_id 1", "trace_id 2", "trace_id 3", "trace_id 4")


@dataclass(frozen=True)
class Metric:
    """A metric and its labels; it has a series for each combination of their values."""

    name: str
    help: str
    labels: Mapping[str, Sequence[str]]
    kind: Literal["counter", "gauge", "histogram"] = "counter"
    total: Literal["sum", "max"] = "sum"
    """Of all processes: `max` of what each of them measures of the whole service."""
    bounds: Sequence[float] = ()
    """Of a histogram's buckets."""
    exposed: bool = True
    """Whether /metrics shows it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values of each label; of a histogram also that of its buckets, one without bound, and sum."""
        values = tuple(len(values) for values in self.labels.values())
        return (*values, len(self.bounds) + 2) if self.kind == "histogram" else values


def statuses() -> Sequence[str]:
    """Return every status that a prediction request can end with."""
    found = {200, CLIENT_GONE, *(error.status for error in prediction_errors())}
    return [str(status) for status in sorted(found)]


def rejections() -> Sequence[str]:
    """Return every reason for which a prediction request ends without a prediction: the codes of errors."""
    return sorted({error.code for error in prediction_errors()} | {CLIENT_GONE_CODE})


def status_class(status: int) -> str:
    """Return the label of a status in metrics by route."""
    return f"{status // 100}xx"


def metrics_table(
    slots: int, protocols: Sequence[str], routes: Sequence[str], max_run: int
) -> Sequence[Metric]:
    """Return all metrics, for at most `slots` versions of models.

    `max_run` is the largest number of images in a run.
    """
    model = {SLOT: tuple(map(str, range(slots)))}
    model_or_unknown = {SLOT: (*model[SLOT], UNKNOWN_MODEL)}
    process = {"process": PROCESSES}
    route = {"route": (*routes, UNKNOWN_ROUTE)}
    exact_size = {"images": tuple(map(str, range(1, min(max_run, MAX_RUN_IMAGES) + 1)))}
    return (
        Metric(
            REQUESTS,
            "Completed prediction requests; model is empty if the request named an unknown model.",
            model_or_unknown | {"protocol": protocols, "status": statuses()},
        ),
        Metric(
            REQUEST_SECONDS,
            "Time from the body received to the response handed over.",
            model,
            "histogram",
            bounds=SECONDS,
        ),
        Metric(
            ROUTE_REQUESTS,
            "Completed requests of all routes, predictions included; the unknown route stands for all other paths.",
            route | {"status": STATUS_CLASSES},
        ),
        Metric(
            ROUTE_REQUEST_SECONDS,
            f"Duration of requests by route; of predictions, the observations of {REQUEST_SECONDS}.",
            route,
            "histogram",
            bounds=ROUTE_SECONDS,
        ),
        Metric(
            QUEUE_SECONDS,
            "Time from the input decoded to the start of the run that includes it.",
            model,
            "histogram",
            bounds=SECONDS,
        ),
        Metric(
            INFERENCE_SECONDS,
            "Duration of one run of the model over one batch.",
            model,
            "histogram",
            bounds=SECONDS,
        ),
        Metric(
            RUN_CPU_SECONDS,
            "CPU time of the model's runs on their own thread, measured for at most 20 runs per second and process.",
            model,
        ),
        Metric(BATCH_IMAGES, "Images in one run of the model.", model, "histogram", bounds=BATCH_SIZES),
        Metric(
            STAGE_SECONDS,
            "Time of successful requests by stage; a run counts in full for each request in it.",
            model | {"stage": STAGES},
        ),
        Metric(
            OUTCOME_SECONDS,
            f"The seconds of {REQUEST_SECONDS}, by outcome: success is status 200.",
            model | {"outcome": OUTCOMES},
        ),
        Metric(IMAGES, "Images classified.", model),
        Metric(PREDICTIONS, "Images classified, by digit.", model | {"digit": DIGITS}),
        Metric(
            REJECTED,
            "Images classified whose confidence is below the model's threshold: accepted is false.",
            model,
        ),
        Metric(
            ESCALATED,
            "Images classified by the teacher of a cascade, because its student was not sure; 0 for other models.",
            model,
        ),
        Metric(
            PROCESS_CPU_SECONDS,
            "CPU time, user and system, of the processes that answer requests (api) or run models for them (worker).",
            process,
        ),
        Metric(
            PROCESS_RESTARTS,
            "Processes that died, or were killed because they did not respond, and were replaced.",
            process,
        ),
        Metric(PROCESSES_RUNNING, "Processes that run.", process, "gauge"),
        Metric(
            PROCESS_MEMORY,
            "Resident memory of the processes; pages that they share count for each of them.",
            process,
            "gauge",
        ),
        Metric(PROCESS_DESCRIPTORS, "Open file descriptors of the processes.", process, "gauge"),
        Metric(
            PROCESS_MAX_DESCRIPTORS, "File descriptors that one process may open.", process, "gauge", "max"
        ),
        Metric(
            LOOP_LAG,
            "Time by which the event loop of an API process is late for a timer, ten times a second.",
            {},
            "histogram",
            bounds=LAG_SECONDS,
        ),
        Metric(
            CPU_PERIODS,
            "Periods of the CPU quota in which the service ran; 0 without quota.",
            {},
            total="max",
        ),
        Metric(
            CPU_THROTTLED_PERIODS,
            "Periods of the CPU quota in which processes were stopped until its end.",
            {},
            total="max",
        ),
        Metric(
            CPU_THROTTLED_SECONDS,
            "Time in which processes were stopped by the CPU quota, summed over the cores.",
            {},
            total="max",
        ),
        Metric(
            REJECTED_REQUESTS,
            "Prediction requests that ended without a prediction, by the code of the error.",
            {"reason": rejections()},
        ),
        Metric(
            TEACHER_COMPARISONS,
            "Images of live requests that the teacher classified as well, by whether the digits agree: one per second.",
            model | {"agrees": COMPARISONS},
        ),
        Metric(
            FEEDBACK,
            "Images of live requests whose true digit clients have sent, by whether the model's digit was correct.",
            model | {"correct": CORRECT},
        ),
        Metric(
            SHADOW_COMPARISONS,
            "Images of mirrored requests by whether the candidate's digit is that of the stable version.",
            model | {"agrees": COMPARISONS},
        ),
        Metric(
            SHADOW_REFERENCES,
            "Images of mirrored requests by the version with which the teacher agrees, by the candidate's version.",
            model | {"agrees_with": REFERENCES},
        ),
        Metric(SHADOW_DROPPED, "Requests that were not mirrored because the candidate was behind.", {}),
        Metric(
            RELEASE_DECISIONS,
            "Decisions on candidates.",
            {"decision": DECISIONS, "by": DECIDERS},
        ),
        Metric(
            RELEASE_DECISION_TIME,
            "Time of the last decision; 0 before the first.",
            {"decision": DECISIONS},
            "gauge",
            "max",
        ),
        Metric(
            RELEASE_EVIDENCE,
            "Decimal logarithm of the e-value that the candidate is worse than the stable version, or as good.",
            {"criterion": CRITERIA, "hypothesis": HYPOTHESES},
            "gauge",
        ),
        Metric(LOG_ROWS, "Rows written to the request log: images, and labels.", {"kind": LOG_KINDS}),
        Metric(
            LOG_DROPPED,
            "Rows that were not written to the request log: over its rate, its writer behind, its folder not writable.",
            {"reason": DROP_REASONS},
        ),
        Metric(LOG_WRITTEN_BYTES, "Bytes written to the request log.", {}),
        Metric(LOG_REMOVED_BYTES, "Bytes of old files removed from the request log.", {}),
        Metric(LOG_BYTES, "Size of the request log.", {}, "gauge", "max"),
        Metric(IN_FLIGHT, "Prediction requests in flight.", model, "gauge"),
        Metric(QUEUED, "Requests that wait for a run of the model.", model, "gauge"),
        Metric(
            LAST_PREDICTION,
            "Time of the last response with predictions; 0 before the first.",
            model,
            "gauge",
            "max",
        ),
        # Hundreds of series for `serving.engine.metrics.triton_statistics`; /metrics has histograms instead.
        Metric(RUNS, "Runs of the model by exact batch size.", model | exact_size, exposed=False),
        Metric(
            RUN_SECONDS,
            "Duration of a run's stages by exact batch size.",
            model | exact_size | {"stage": RUN_STAGES},
            exposed=False,
        ),
        # Of each process its own, for `serving.engine.metrics.exemplars`: their sum has no meaning.
        Metric(
            EXEMPLARS,
            "Parts of the exemplar of each bucket of the request durations.",
            model | {"bucket": tuple(map(str, range(len(SECONDS) + 1))), "part": EXEMPLAR_PARTS},
            exposed=False,
        ),
    )


class Values:
    """One number per series: a row of the shared memory, or the totals of all rows."""

    def __init__(self, table: Sequence[Metric], numbers: NDArray[np.float64]) -> None:
        """Divide `numbers` among the metrics of `table`, in its order."""
        self._numbers: dict[str, tuple[Metric, NDArray[np.float64]]] = {}
        for metric in table:
            size = prod(metric.shape)
            self._numbers[metric.name] = metric, numbers[:size].reshape(metric.shape)
            numbers = numbers[size:]

    def of(self, name: str, **labels: str) -> NDArray[np.float64]:
        """Return a view of a metric's numbers, with an axis for each label that is not given."""
        metric, numbers = self._numbers[name]
        index = [
            values.index(labels[label]) if label in labels else slice(None)
            for label, values in metric.labels.items()
        ]
        return numbers[*index, ...]

    def __iter__(self) -> Iterator[tuple[Metric, NDArray[np.float64]]]:
        return iter(self._numbers.values())


class Metrics:
    """The metrics of a service; its processes share one object, inherited or unpickled."""

    def __init__(self, table: Sequence[Metric], processes: int) -> None:
        """Allocate a row for each process. Raises `SharedMemoryError`."""
        self._table = table
        self.slots = min(len(metric.labels[SLOT]) for metric in table if SLOT in metric.labels)
        """Number of versions that can have metrics at a time."""
        self.processes = processes
        self._rows = SharedRows(processes, sum(prod(metric.shape) for metric in table))

    def row(self, process: int) -> Values:
        """Return the values of one process, which no other process alive may write to."""
        return Values(self._table, self._rows.array[process])

    def rows(self) -> Iterator[Values]:
        """Yield the values of each process."""
        for process in range(len(self._rows.array)):
            yield self.row(process)

    def process_died(self, kind: Literal["api", "worker"], process: int) -> None:
        """Count the death of a process, and set its gauges, such as its requests in flight, to 0."""
        row = self.row(process)
        restarts = row.of(PROCESS_RESTARTS, process=kind)
        restarts += 1
        for metric, numbers in row:
            if metric.kind == "gauge" and metric.total == "sum":
                numbers[...] = 0

    def clear(self, slot: int) -> None:
        """Set the series of a slot to 0, for the version that takes it over; its endpoints must be gone."""
        for row in self.rows():
            for metric, numbers in row:
                if SLOT in metric.labels:
                    numbers[slot] = 0

    def totals(self) -> Values:
        """Return the sums over all processes, including those that died."""
        rows = self._rows.array.copy()
        totals = Values(self._table, rows.sum(axis=0))
        for (metric, numbers), (_, largest) in zip(
            totals, Values(self._table, rows.max(axis=0)), strict=True
        ):
            if metric.total == "max":
                numbers[...] = largest
        return totals
