"""What a request costs the API process that answers it, stage by stage, by the service's own clocks.

The service notes how long it decodes, joins, runs, splits and encodes (`GET /v2/models/{model}/stats`). With one
API process and one load generator on two cores nobody interrupts it much, so these seconds are nearly CPU time;
what is left of the process' CPU time are the sockets, the event loop, recognising and admitting a request,
counting it, and writing the answer.

A sampling profiler shows what to look at (`py-spy top --pid …` on an API process does), but not the prices: with
two cores it gets its turn when the load generator has none, and sees the model far too often.
"""

import json
import time
import urllib.request
from typing import Any

import psutil

from benchmarks.load.run import run_load
from benchmarks.load.workloads import Workload
from benchmarks.systems.processes import ServerProcess

PUBLISHED_S = 0.3
"""After so long everything that was counted is published."""
STAGES = {
    "body to pixels": "JSON or binary tensors, validated",
    "join and split": "the images of the requests into one array, and its answers apart",
    "model": "onnxruntime",
    "answer": "JSON or binary tensors, Server-Timing",
    "the rest": "sockets, event loop, recognising and admitting a request, counting, the write",
}


def api_processes(server: ServerProcess) -> list[psutil.Process]:
    """The API processes of our service: its children, but for Python's own and for model workers."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if not any("multiprocessing" in part for part in child.cmdline())]


def profile(server: ServerProcess, workload: Workload, connections: int, seconds: float) -> dict[str, Any]:
    """Load a service that has one API process, and say what a request costs it.

    Returns `requests`, `requests_per_s`, `p50_ms`, `p90_ms`, `p99_ms`, `cpu_us` (CPU time of the process, a
    request), `images_per_run`, and `stages_us` by stage.
    """
    (process,) = api_processes(server)
    run_load(workload, connections, 1)
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
    """Answered requests, images, runs, and nanoseconds of decoding, joining, running, splitting and encoding."""
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
