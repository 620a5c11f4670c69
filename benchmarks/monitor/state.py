"""What a service did between two scrapes, per model and in total: the quantities of the Grafana dashboards."""

import time
from dataclasses import dataclass
from typing import Any

from benchmarks.load.sessions import REFERENCE
from benchmarks.monitor.scrape import Growth


@dataclass(frozen=True)
class ModelState:
    """One model; None where there was no traffic, or the model has no such figure."""

    requests_per_s: float
    images_per_s: float
    errors: float | None
    """Share of responses with a status from 500."""
    p50_s: float | None
    p99_s: float | None
    queue_p99_s: float | None
    inference_s: float | None
    """Per image."""
    cpu_s: float | None
    """Per image: its part of the runs, and for each request an equal part of all other CPU time."""
    batch_images: float | None
    in_flight: float
    accuracy: float | None
    """On the test digits."""
    accepted: float | None
    """Share of the images."""
    agreement: float | None
    """With the teacher, since the start: share of the compared images."""

    def speedups(self, teacher: "ModelState | None") -> dict[str, float | None]:
        """Return how much less time it takes than the teacher, in runs, responses and CPU time."""
        return {
            name: _ratio(getattr(teacher, name), getattr(self, name)) if teacher else None
            for name in ("inference_s", "p50_s", "cpu_s")
        }


@dataclass(frozen=True)
class State:
    """The whole service."""

    build: dict[str, str]
    uptime_s: float
    seconds: float
    """Between the scrapes."""
    processes: dict[str, float]
    restarts: float
    """Since the start."""
    cpu_cores: float
    usable_cores: float
    memory_bytes: float
    descriptors: float
    max_descriptors: float
    lag_p99_s: float | None
    throttled: float | None
    """Share of the CPU quota's periods."""
    in_flight: float
    in_flight_limit: float
    statuses: dict[str, float]
    """Responses per second."""
    rejections: dict[str, float]
    """Requests per second that ended without a prediction, by reason."""
    models: dict[str, ModelState]

    @property
    def teacher(self) -> ModelState | None:
        """The model that others are compared with, if it is served."""
        return self.models.get(REFERENCE)

    def as_json(self) -> dict[str, Any]:
        """Return all figures, with the speedups of each model."""
        models = {
            name: vars(model) | {"speedup": model.speedups(self.teacher)}
            for name, model in self.models.items()
        }
        return vars(self) | {"models": models}


def state_of(growth: Growth) -> State:
    """Compute the state from two scrapes."""
    now = growth.after
    build = next(iter(now.each("build_info")), frozenset())
    started = now.total("start_time_seconds")
    other_cpu = growth.of("process_cpu_seconds_total") - growth.of("run_cpu_seconds_total")
    per_request = _ratio(max(0.0, other_cpu), growth.of("requests_total")) or 0.0
    return State(
        build=dict(build),
        uptime_s=time.time() - started if started else 0.0,
        seconds=growth.seconds,
        processes={
            kind: now.total("processes", process=kind) for kind in now.values_of("processes", "process")
        },
        restarts=now.total("process_restarts_total"),
        cpu_cores=growth.rate("process_cpu_seconds_total"),
        usable_cores=now.total("usable_cores"),
        memory_bytes=now.total("process_resident_memory_bytes"),
        descriptors=now.total("process_open_fds"),
        max_descriptors=max(now.each("process_max_fds").values(), default=0.0),
        lag_p99_s=growth.quantile("event_loop_lag_seconds", 0.99),
        throttled=_ratio(growth.of("cpu_throttled_periods_total"), growth.of("cpu_periods_total")),
        in_flight=now.total("requests_in_flight"),
        in_flight_limit=now.total("requests_in_flight_limit"),
        statuses=growth.by("requests_total", "status"),
        rejections=growth.by("rejected_requests_total", "reason"),
        models={
            model: _model_state(growth, model, per_request) for model in now.values_of("model_info", "model")
        },
    )


def _model_state(growth: Growth, model: str, cpu_per_request: float) -> ModelState:
    requests, images = growth.of("requests_total", model=model), growth.of("images_total", model=model)
    server_errors = sum(
        growth.of("requests_total", model=model, status=status)
        for status in growth.after.values_of("requests_total", "status")
        if status.startswith("5")
    )
    run_seconds = growth.of("inference_duration_seconds_sum", model=model)
    run_images = growth.of("batch_size_images_sum", model=model)
    rejected = _ratio(growth.of("rejected_predictions_total", model=model), images)
    has_rule = bool(growth.after.each("model_validation_accepted_ratio", model=model))
    compared = growth.after.total("teacher_comparisons_total", model=model)
    agree = growth.after.total("teacher_comparisons_total", model=model, agrees="true")
    return ModelState(
        requests_per_s=requests / growth.seconds,
        images_per_s=images / growth.seconds,
        errors=_ratio(server_errors, requests),
        p50_s=growth.quantile("request_duration_seconds", 0.5, model=model),
        p99_s=growth.quantile("request_duration_seconds", 0.99, model=model),
        queue_p99_s=growth.quantile("queue_wait_seconds", 0.99, model=model),
        inference_s=_ratio(run_seconds, run_images),
        cpu_s=_ratio(growth.of("run_cpu_seconds_total", model=model) + requests * cpu_per_request, images),
        batch_images=_ratio(run_images, growth.of("batch_size_images_count", model=model)),
        in_flight=growth.after.total("requests_in_flight", model=model),
        accuracy=next(iter(growth.after.each("model_test_accuracy_ratio", model=model).values()), None),
        accepted=1 - rejected if rejected is not None and has_rule else None,
        agreement=_ratio(agree, compared),
    )


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
