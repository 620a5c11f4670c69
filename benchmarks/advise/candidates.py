"""What may be configured: models, and settings of the service; and what a model costs at least."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from benchmarks.results.models import model_facts
from benchmarks.systems.servers import Executor
from serving.model.repository import ModelEntry
from serving.model.session import open_session

SESSION_S = 0.1
"""CPU time of a model alone: seconds per batch size."""
WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Shape:
    """Settings of a service that decide its capacity."""

    executor: Executor
    threads: int
    api_servers: int
    max_batch: int

    def settings(self) -> dict[str, Any]:
        """Return them as settings of `distillery-serve`."""
        return asdict(self)

    def flags(self) -> list[str]:
        """Return them as options of `distillery-serve`."""
        return [f"--{name.replace('_', '-')}={value}" for name, value in self.settings().items()]

    def __str__(self) -> str:
        batch = f"batch {self.max_batch}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        processes = f"{self.api_servers} process{'es' * (self.api_servers > 1)}"
        return ", ".join([processes, threads, batch, *(["workers"] if self.executor == "workers" else [])])


@dataclass(frozen=True)
class Candidate:
    """A model behind a service."""

    shape: Shape
    model: str

    def __str__(self) -> str:
        return f"{self.model}: {self.shape}"


def shapes(
    executors: Sequence[Executor],
    threads: Sequence[int],
    api_servers: Sequence[int],
    batches: Sequence[int],
    cores: int,
) -> list[Shape]:
    """Return all combinations that do not run more threads than there are cores, the simplest first.

    More processes are tried before smaller batches, which restrict the default, and both before more threads.
    Raises `BenchmarkError` for none.
    """
    combinations = product(
        executors, sorted(set(threads)), sorted(set(batches), reverse=True), sorted(set(api_servers))
    )
    found = [
        Shape(executor, thread, servers, batch)
        for executor, thread, batch, servers in combinations
        if servers * thread <= cores
    ]
    if not found:
        raise BenchmarkError(
            f"--api-servers {min(api_servers)} × --threads {min(threads)}: more threads than the {cores} usable cores; "
            "allow fewer"
        )
    return found


def powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4 and so on, and `largest`."""
    return sorted({*(1 << power for power in range(largest.bit_length())), largest})


def choose_models(
    entries: Mapping[str, ModelEntry], *, max_errors: int | None, min_accuracy: float | None
) -> tuple[list[str], dict[str, str]]:
    """Return the models to measure, and the reason for each of the others.

    Those that are accurate enough; of one architecture and precision, which have one speed, the most accurate one.
    Raises `BenchmarkError` when none is accurate enough.
    """
    left_out = {}
    best: dict[tuple[str, str], str] = {}
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].manifest.test_errors, item[0])):
        manifest = entry.manifest
        if max_errors is not None and manifest.test_errors > max_errors:
            left_out[name] = f"{manifest.test_errors} test errors"
        elif min_accuracy is not None and manifest.test_accuracy < min_accuracy:
            left_out[name] = f"test accuracy {manifest.test_accuracy:.4f}"
        elif same := best.get((manifest.architecture, manifest.precision)):
            left_out[name] = f"the speed of {same}, which is as accurate or more"
        else:
            best[manifest.architecture, manifest.precision] = name
    if not best:
        limit = f"--max-errors {max_errors}" if max_errors is not None else f"--min-accuracy {min_accuracy}"
        errors = {name: facts["test_errors"] for name, facts in model_facts(entries).items()}
        most = min(errors, key=lambda name: errors[name])
        raise BenchmarkError(
            f"{limit}: no model is as accurate; the most accurate one is {most} with {errors[most]} test errors "
            f"(accuracy {entries[most].manifest.test_accuracy:.4f}): allow as many, or export a better model"
        )
    return list(best.values()), left_out


class SessionCosts:
    """CPU time per image of a model alone, the least over batch sizes; measured once per model, threads and batch.

    It is a lower bound: the service adds what it takes to receive and answer a request. A cascade has its student's,
    and its teacher's for the share of digits that were escalated when its threshold was chosen.
    """

    def __init__(self, entries: Mapping[str, ModelEntry]) -> None:
        self._entries = entries
        self._seconds: dict[tuple[str, int, int], float] = {}

    def seconds(self, candidate: Candidate, images: float) -> float:
        """Return the CPU seconds per request of `images`."""
        shape = candidate.shape
        batches = {max(1, round(images)), max(round(images), shape.max_batch)}
        return images * min(self._per_image(candidate.model, shape.threads, batch) for batch in batches)

    def _per_image(self, model: str, threads: int, batch: int) -> float:
        if cascade := self._entries[model].manifest.cascade:
            student, teacher = (
                self._measured(member.name, threads, batch) if member.name in self._entries else 0.0
                for member in (cascade.student, cascade.teacher)
            )
            return student + cascade.guarantee.escalated_share * teacher
        return self._measured(model, threads, batch)

    def _measured(self, model: str, threads: int, batch: int) -> float:
        key = (model, threads, batch)
        if key not in self._seconds:
            session = open_session(self._entries[model].path, threads=threads)
            feed = {"image": np.resize(load_digits(), (batch, 28, 28))}
            for _ in range(WARM_UP_RUNS):
                session.run(["probabilities"], feed)
            self._seconds[key] = min(_cpu_of_runs(lambda: session.run(["probabilities"], feed))) / batch
        return self._seconds[key]


def _cpu_of_runs(run: Any) -> Iterator[float]:
    end = time.monotonic() + SESSION_S
    while True:
        before = time.process_time()
        run()
        yield time.process_time() - before
        if time.monotonic() >= end:
            return
