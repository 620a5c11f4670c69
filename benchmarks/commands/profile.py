"""`distillery-bench profile`: CPU time of a request by stage, from socket to socket.

The service records how long it decodes, joins, runs, splits and encodes (`GET /v2/models/{model}/stats`). With one API
process and one load generator on two cores hardly anything interrupts it, so these seconds are nearly CPU time; the
rest of the process's CPU time is spent on sockets, the event loop, parsing and admitting a request, counting it, and
writing the response.

A sampling profiler (`py-spy top --pid …` on an API process) shows hot spots but no costs: with two cores it is
scheduled when the load generator waits, and finds the process in the model far too often.
"""

import json
import time
import urllib.request
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import psutil
from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.load.interleave import interleave
from benchmarks.load.run import run_load
from benchmarks.load.workloads import BodyKind, Workload, check_answers, service_workload
from benchmarks.results.models import model_facts
from benchmarks.systems.servers import ServerProcess, api_processes, running_service

CASES = (("one connection", 1, ()), ("batched", 16, ()), ("one image a run", 16, ("--max-batch", "1")))
"""Name, connections, flags of the service."""
PUBLISHED_S = 0.3
"""The service has published its counts by then."""
WARM_UP_S = 0.3
STAGES = {
    "body to pixels": "JSON or binary tensors, validated",
    "join and split": "the images of several requests into one array, and its outputs apart",
    "model": "onnxruntime",
    "answer": "JSON or binary tensors, Server-Timing",
    "the rest": "sockets, event loop, parsing and admitting a request, counting, the write",
}


class Profile(Bench, RepositorySettings):
    """Measure the CPU time of a request by stage, with and without batching."""

    limitations = (
        "stages are measured on the wall clock, the total in CPU time: an interrupted stage reduces the rest",
        "at one connection the rest is mostly what the kernel takes to wake a sleeping process",
    )
    examples = ("distillery-bench profile --models teacher,student --body json",)

    models: list[str] = Field(["student", "student-int8"], description="models to measure")
    body: list[BodyKind] = Field(["json", "binary"], description="request bodies: one image")
    seconds: PositiveFloat = Field(2.0, description="seconds per case and round; whole seconds with wrk")
    rounds: PositiveInt = Field(5, description="rounds; each measures every model and body once")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        rows: list[dict[str, Any]] = []
        for case, connections, flags in CASES:
            with running_service(self.models_dir, "--api-servers", "1", *flags) as server:
                workloads = [
                    service_workload(server.url, model, body) for model in entries for body in self.body
                ]
                for workload in workloads:
                    check_answers(workload, entries[workload.model].path)
                measure = partial(profile, server, connections, self.seconds)
                measured = interleave(workloads, self.rounds, measure)
            for workload, rounds in zip(workloads, measured, strict=True):
                row = {
                    "case": case,
                    "model": workload.model,
                    "body": workload.body,
                    "connections": connections,
                }
                rows.append(row | median_profile(rounds) | {"rounds": rounds})
        return {"models": model_facts(entries), "stages": STAGES, "rows": rows}


def median_profile(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over the rounds that `profile` measured; `requests` is their sum."""
    figures = {name: median(one[name] for one in rounds) for name in rounds[0] if name != "stages_us"}
    stages = {stage: round(median(one["stages_us"][stage] for one in rounds), 1) for stage in STAGES}
    return figures | {"requests": sum(one["requests"] for one in rounds), "stages_us": stages}


def profile(server: ServerProcess, connections: int, seconds: float, workload: Workload) -> dict[str, Any]:
    """Load a service that has one API process for `seconds` and return the cost of a request.

    Returns `requests`, `requests_per_s`, `p50_ms`, `p90_ms`, `p99_ms`, `cpu_us` (CPU time of the process per request),
    `images_per_run`, and `stages_us` by stage.
    """
    (process,) = api_processes(server)
    run_load(workload, connections, WARM_UP_S, tool="python")
    time.sleep(PUBLISHED_S)
    before, cpu_before = _statistics(server, workload.model), _cpu_seconds(process)
    load = run_load(workload, connections, seconds)
    cpu = _cpu_seconds(process) - cpu_before
    time.sleep(PUBLISHED_S)
    after = _statistics(server, workload.model)
    requests, images, runs, decode, join, run, split, encode = (
        new - old for new, old in zip(after, before, strict=True)
    )
    cpu_us = cpu * 1e6 / requests
    stages = dict(zip(STAGES, (decode, join + split, run, encode), strict=False))
    stages_us = {stage: ns / 1000 / requests for stage, ns in stages.items()}
    stages_us["the rest"] = cpu_us - sum(stages_us.values())
    return {
        "requests": requests,
        "requests_per_s": round(load.requests_per_s, 1),
        **load.latencies.quantiles("ms"),
        "cpu_us": round(cpu_us, 1),
        "images_per_run": round(images / runs, 1),
        "stages_us": {stage: round(us, 1) for stage, us in stages_us.items()},
    }


def _statistics(server: ServerProcess, model: str) -> tuple[int, ...]:
    """Return requests, images, runs, and nanoseconds of decoding, joining, running, splitting and encoding."""
    with urllib.request.urlopen(f"{server.url}/v2/models/{model}/stats", timeout=10) as answer:  # noqa: S310
        (stats,) = json.load(answer)["model_stats"]
    requests, batches = stats["inference_stats"], stats["batch_stats"]
    return (
        requests["success"]["count"],
        stats["inference_count"],
        stats["execution_count"],
        requests["compute_input"]["ns"],
        *(
            sum(batch[stage]["ns"] for batch in batches)
            for stage in ("compute_input", "compute_infer", "compute_output")
        ),
        requests["compute_output"]["ns"],
    )


def _cpu_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])
