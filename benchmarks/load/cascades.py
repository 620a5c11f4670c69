"""A cascade in sessions, without the service: student and teacher run alone, and the teacher for what is escalated.

CPU time is that of the thread, with one thread per session: it is hardly affected by other load on the machine.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.interleave import interleave
from benchmarks.load.latency import Latencies
from serving.model.session import Session
from serving.model.tensors import Images, Scores

WARM_UP_RUNS = 5

Infer = Callable[[Images], Scores]
"""From `uint8 [N, 28, 28]` to probabilities `float32 [N, 10]`."""


class Members(NamedTuple):
    """The two sessions of a cascade and its rule."""

    student: Session
    teacher: Session
    threshold: float

    @classmethod
    def of(cls, threshold: float, student: bytes, teacher: bytes) -> "Members":
        """Open the two graphs."""
        return cls(Session(student), Session(teacher), threshold)

    def roles(self) -> dict[str, Infer]:
        """Return what computes the probabilities of student, cascade and teacher."""
        return {
            "student": lambda images: self.student.run(images).probabilities,
            "cascade": self.probabilities,
            "teacher": lambda images: self.teacher.run(images).probabilities,
        }

    def escalated(self, images: Images) -> NDArray[np.bool_]:
        """Return which of the images `uint8 [N, 28, 28]` the teacher predicts."""
        return np.array(self._escalated(self.student.run(images).probabilities))

    def probabilities(self, images: Images) -> Scores:
        """Return the cascade's probabilities `float32 [N, 10]`."""
        found = self.student.run(images).probabilities
        chosen = [index for index, escalated in enumerate(self._escalated(found)) if escalated]
        if chosen:
            found = found.copy()
            found[chosen] = self.teacher.run(images[chosen]).probabilities
        return found

    def _escalated(self, probabilities: Scores) -> list[bool]:
        return [share < self.threshold for share in probabilities.max(axis=1).tolist()]


class _Slice(NamedTuple):
    latencies: Latencies
    cpu_us: float
    """Per image."""


def measure_cascade(
    members: Members, digits: Images, *, batches: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Run all digits through student, cascade and teacher, a share of them in every round; return a row for each.

    A row has `model` (its role), `batch`, `runs`, `p50_us`, `p90_us`, `p99_us` of a run, `cpu_us` per image (median of
    the rounds), the `rounds` themselves and the histogram.
    """
    roles = members.roles()
    cases = [(batch, role) for batch in batches for role in roles]
    calls = dict.fromkeys(cases, 0)

    def measure(case: tuple[int, str]) -> _Slice:
        batch, role = case
        share = digits[calls[case] % rounds :: rounds]  # each digit once per case
        calls[case] += 1
        return _run(roles[role], share, batch)

    rows = []
    for (batch, role), parts in zip(cases, interleave(cases, rounds, measure), strict=True):
        pooled = Latencies.merge(part.latencies for part in parts)
        cpu_us = [round(part.cpu_us, 3) for part in parts]
        rows.append(
            {
                "model": role,
                "batch": batch,
                "runs": pooled.total,
                **pooled.quantiles("us"),
                "cpu_us": float(np.median(cpu_us)),
                "rounds": {"cpu_us": cpu_us},
                "histogram": pooled.compact(),
            }
        )
    return rows


def _run(run: Infer, digits: Images, batch: int) -> _Slice:
    inputs = [digits[start : start + batch] for start in range(0, len(digits) - batch + 1, batch)]
    for images in inputs[:WARM_UP_RUNS]:
        run(images)
    durations = []
    cpu = time.thread_time()
    for images in inputs:
        before = time.perf_counter_ns()
        run(images)
        durations.append(time.perf_counter_ns() - before)
    cpu = time.thread_time() - cpu
    return _Slice(Latencies.from_samples(np.array(durations) / 1e3), cpu * 1e6 / (len(inputs) * batch))
