"""`distillery-bench soak`: a service under mixed traffic, bad input, kills and overload, for minutes or hours."""

import random
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt
from rich.progress import Progress

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.errors import BenchmarkError
from benchmarks.load.workloads import Workload, service_workload
from benchmarks.results.models import model_facts
from benchmarks.systems.servers import ServerProcess, running_service
from benchmarks.systems.soak import CorrectClient, Events, Responses, burst, kill_one, probe, send_hostile

DEADLINE_S = 2.0
SAMPLE_S = 1.0
MEMORY_GROWTH, MEMORY_MIB = 1.1, 10.0
"""Allowed growth of the memory from the first to the last third: this factor and as many MiB."""
DESCRIPTORS = 10
SLOWER = 1.5
"""Allowed ratio of the last third's latency to the first one's. Lower quartiles are compared, because other load on the
machine changes the upper ones."""


class Sample(NamedTuple):
    """The state of the service at one time."""

    seconds: float
    memory_mib: float
    descriptors: int
    series: int
    latency_ms: float | None


class Soak(Bench, RepositorySettings):
    """Run the service under mixed traffic, hostile input, kills and overload.

    Every response to a correct request is compared with an onnxruntime session. Requests may be lost only in a process
    that is killed, and rejected only during a burst or a kill. At the end memory, open descriptors, the number of
    series in /metrics and the latency must be those of the beginning. Exits with status 1 if anything else happened.
    """

    examples = ("distillery-bench soak --minutes 1", "distillery-bench soak --minutes 480 --kill-every 60")

    minutes: PositiveFloat = Field(10.0, description="minutes to run")
    clients: PositiveInt = Field(4, description="correct clients; there are half as many hostile ones")
    kill_every: PositiveFloat = Field(20.0, description="seconds between two kills of an API process")
    burst_every: PositiveFloat = Field(45.0, description="seconds between two bursts of overload")
    burst_connections: PositiveInt = Field(300, description="connections of a burst, which lasts 5 s")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        models = {name: entry.path for name, entry in self.measured(entries).items()}
        events = Events()
        flags = ("--api-servers", "2", "--request-timeout", f"{DEADLINE_S:g}")
        with running_service(self.models_dir, *flags) as server:
            samples = self._run(server, models, events)
        problems = [*events.failures, *compare(samples)]
        return {
            "models": model_facts(entries),
            "minutes": self.minutes,
            "counts": dict(sorted(events.counts.items())),
            "recovery_s": sorted(events.recoveries),
            "samples": [list(sample) for sample in samples[:: max(1, len(samples) // 200)]],
            "thirds": thirds(samples),
            "problems": problems,
            "rows": [],
        }

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        if data["problems"]:
            raise BenchmarkError(f"{len(data['problems'])} problems: {'; '.join(data['problems'][:5])}")
        return {"counts": data["counts"], "thirds": data["thirds"]}

    def _run(self, server: ServerProcess, models: dict[str, Path], events: Events) -> list[Sample]:
        workloads = [
            service_workload(server.url, model, body)
            for model in models
            for body in ("json", "png", "json-64", "binary", "binary-64")
        ]
        responses = Responses(workloads, models)
        valid = [prepared for _, prepared, _ in responses.requests]
        ended = threading.Event()
        threads = [
            threading.Thread(target=CorrectClient(responses, events, seed).run, args=(ended,))
            for seed in range(self.clients)
        ]
        threads += [
            threading.Thread(target=send_hostile, args=(workloads[0].url, valid, events, ended, seed))
            for seed in range((self.clients + 1) // 2)
        ]
        threads.append(threading.Thread(target=self._disturb, args=(server, workloads, events, ended)))
        for thread in threads:
            thread.start()
        try:
            return self._sample(server, workloads[0], events)
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _disturb(
        self, server: ServerProcess, workloads: Sequence[Workload], events: Events, ended: threading.Event
    ) -> None:
        choose = random.Random(0)  # noqa: S311 - no secret
        large = [workload for workload in workloads if workload.body == "json-64"]
        start = time.monotonic()
        kill, next_burst = start + self.kill_every, start + self.burst_every
        while not ended.wait(0.1):
            if time.monotonic() >= kill:
                kill_one(server, events, choose)
                kill = time.monotonic() + self.kill_every
            if time.monotonic() >= next_burst:
                burst(
                    choose.choice(large),
                    events,
                    connections=self.burst_connections,
                    seconds=5,
                    deadline=DEADLINE_S,
                )
                next_burst = time.monotonic() + self.burst_every

    def _sample(self, server: ServerProcess, workload: Workload, events: Events) -> list[Sample]:
        samples: list[Sample] = []
        start = time.monotonic()
        with Progress(transient=True) as progress:
            task = progress.add_task("soak", total=self.minutes * 60)
            while (seconds := time.monotonic() - start) < self.minutes * 60:
                latency = probe(workload, events)
                state = _state(server, events)
                if state:
                    milliseconds = None if latency is None else round(latency * 1e3, 3)
                    samples.append(Sample(round(seconds, 1), *state, milliseconds))
                progress.update(task, completed=seconds)
                time.sleep(SAMPLE_S)
        return samples


def _state(server: ServerProcess, events: Events) -> tuple[float, int, int] | None:
    """Return memory, descriptors and series; None while the service is disturbed."""
    started = time.monotonic()
    try:
        processes = server.all()
        descriptors = sum(process.num_fds() for process in processes)
        memory = round(server.memory_mib(), 1)
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:  # noqa: S310
            lines = response.read().decode().splitlines()
    except Exception:  # noqa: BLE001 - a process has just ended
        return None
    if events.disturbed(started - 2, time.monotonic()):
        return None
    return memory, descriptors, sum(not line.startswith("#") for line in lines)


def thirds(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Return the medians of the first and of the last third, of latencies the lower quartiles.

    Leaves out the first tenth, in which caches fill up. Raises `BenchmarkError` for too few samples.
    """
    used = samples[len(samples) // 10 :]
    third = len(used) // 3
    if not third:
        raise BenchmarkError(f"only {len(samples)} undisturbed samples; use more --minutes")
    parts = (used[:third], used[-third:])
    latencies = [[sample.latency_ms for sample in part if sample.latency_ms is not None] for part in parts]
    return {
        "memory_mib": [median(sample.memory_mib for sample in part) for part in parts],
        "descriptors": [median(sample.descriptors for sample in part) for part in parts],
        "series": [median(sample.series for sample in part) for part in parts],
        "latency_ms": [round(quantiles(part, n=4)[0], 3) if len(part) > 1 else 0.0 for part in latencies],
    }


def compare(samples: Sequence[Sample]) -> list[str]:
    """Return what the end of the run has more of than its beginning, beyond what is allowed."""
    found = thirds(samples)
    (memory, memory_last), (open_first, open_last) = found["memory_mib"], found["descriptors"]
    (series, series_last), (latency, latency_last) = found["series"], found["latency_ms"]
    problems = []
    if memory_last > memory * MEMORY_GROWTH + MEMORY_MIB:
        problems.append(f"memory grew from {memory:g} to {memory_last:g} MiB")
    if open_last > open_first + DESCRIPTORS:
        problems.append(f"open descriptors grew from {open_first:g} to {open_last:g}")
    if series != series_last:
        problems.append(f"the number of series changed from {series:g} to {series_last:g}")
    if latency_last > latency * SLOWER:
        problems.append(f"the latency grew from {latency:g} to {latency_last:g} ms")
    return problems
