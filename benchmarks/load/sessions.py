"""Models in onnxruntime alone: latency by model, threads and batch.

    distillery-bench session --models-dir models --threads 1 --batches 1,64

Models are interleaved: a slice of time each, round after round, and ratios are taken within a round. The first runs of
every slice are not counted: they bring the weights back into the caches.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.load.digits import load_digits
from benchmarks.load.interleave import interleave
from benchmarks.load.latency import Latencies
from benchmarks.results.ratio import Ratio
from serving.model.session import open_session
from serving.model.tensors import Images

WARM_UP_RUNS = 5
MIN_RUNS = 10
REFERENCE = "teacher"
"""The model that the others are compared with, where it is among them."""


def measure_sessions(
    models: Mapping[str, Path],
    *,
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1, 64),
    rounds: int = 9,
    seconds: float = 10.0,
    images: Images | None = None,
) -> dict[str, Any]:
    """Time `session.run` of every model (name to ONNX file) for about `seconds` in total.

    Returns `{"threads", "batches", "rounds", "seconds", "rows"}`; a row has `model`, `threads`, `batch`, `runs`,
    `p50_us`, `p90_us`, `p99_us` over all runs, `images_per_s`, `rounds_p50_us`, the histogram, and `speedup`: the
    p50's improvement over the reference (`Ratio.as_json`), None for the reference and without one.
    """
    digits = load_digits() if images is None else images
    cases = list(product(threads, batches, models))
    sessions = {
        (t, name): open_session(path, threads=t) for t, (name, path) in product(threads, models.items())
    }
    slice_s = seconds / (rounds * len(cases))

    def measure(case: tuple[int, int, str]) -> Latencies:
        t, batch, name = case
        return _time_runs(sessions[t, name], _batches_of(digits, batch), slice_s)

    samples = dict(zip(cases, interleave(cases, rounds, measure), strict=True))
    rows = []
    for (t, batch, name), parts in samples.items():
        reference = samples.get((t, batch, REFERENCE)) if name != REFERENCE else None
        rows.append({"model": name, "threads": t, "batch": batch, **_summary(parts, batch, reference)})
    return {
        "threads": list(threads),
        "batches": list(batches),
        "rounds": rounds,
        "seconds": seconds,
        "rows": rows,
    }


def _batches_of(digits: Images, batch: int) -> list[Images]:
    """Return at least four different batches, repeating the digits where there are too few."""
    return list(np.resize(digits, (max(4, len(digits) // batch), batch, 28, 28)))


def _time_runs(session: ort.InferenceSession, batches: list[Images], seconds: float) -> Latencies:
    endless = cycle(batches)
    for _ in range(WARM_UP_RUNS):
        session.run(["probabilities"], {"image": next(endless)})
    durations: list[int] = []
    deadline = time.perf_counter_ns() + round(seconds * 1e9)
    before = time.perf_counter_ns()
    while before < deadline or len(durations) < MIN_RUNS:
        feed = {"image": next(endless)}
        before = time.perf_counter_ns()
        session.run(["probabilities"], feed)
        durations.append(time.perf_counter_ns() - before)
    return Latencies.from_samples(np.array(durations) / 1e3)


def _summary(parts: list[Latencies], batch: int, reference: list[Latencies] | None) -> dict[str, Any]:
    pooled = Latencies.merge(parts)
    medians = [part.quantile(0.5) for part in parts]
    speedup = None
    if reference:
        theirs = [part.quantile(0.5) for part in reference]
        speedup = Ratio.within_rounds(medians, theirs, lower_is_better=True).as_json()
    return {
        "runs": pooled.total,
        **pooled.quantiles("us"),
        "images_per_s": round(batch * 1e6 / pooled.mean),
        "rounds_p50_us": [round(value, 3) for value in medians],
        "speedup": speedup,
        "histogram": pooled.compact(),
    }
