"""One run of MLPerf LoadGen (github.com/mlcommons/inference, loadgen): queries in, LoadGen's own result out.

LoadGen draws schedule and samples, takes the times, applies early stopping and judges the run. Wheels of
`mlcommons-loadgen` exist for Linux on x86-64 only, so it is an optional extra.
"""

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

from benchmarks.errors import BenchmarkError

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
Query = tuple[int, int]
"""LoadGen's id of one sample of a query, and the sample's index in the library."""
Issue = Callable[[Sequence[Query]], None]

LIBRARY = 100
"""Samples in the library: the digits of `benchmarks/load/digits.png`."""


class System(Protocol):
    """One model in one system under test."""

    name: str
    model: str
    separate: bool
    """Whether the model runs outside of this process, whose CPU time is then the generator's."""

    def check(self) -> None:
        """Compare the answer to every sample with onnxruntime's. Raises `BenchmarkError` for a difference."""

    def open(self, scenario: Scenario, run: "Run") -> AbstractContextManager[Issue]:
        """Get ready for a run; the value issues the samples of a query and reports their end to `run`.

        SingleStream and MultiStream send the next query after the last has ended, so there `Issue` returns after
        the answer; in Server and Offline it returns at once.
        """


class Run:
    """Receives the ends of queries, from any thread, and passes them on to LoadGen.

    An exception must not unwind through LoadGen's frames, which are C++: the first one is kept in `error`.
    """

    def __init__(self) -> None:
        self.rejected = 0
        self.error: BaseException | None = None
        self._loadgen = load_loadgen()

    def complete(self, queries: Sequence[Query], *, rejected: bool = False) -> None:
        """Report the end of these samples."""
        self.rejected += len(queries) if rejected else 0
        response = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete([response(query, 0, 0) for query, _ in queries])

    def fail(self, queries: Sequence[Query], error: BaseException) -> None:
        """Report an error that ended these samples."""
        self.error = self.error or error
        self.complete(queries)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """LoadGen's report of a run. Latencies count from the scheduled time."""

    valid: bool
    """LoadGen's verdict, early stopping included; false when a sample was rejected."""
    seed: int
    """Of arrivals and samples."""
    queries: int
    rejected: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_per_s: float | None
    """Offline only."""
    cpu: float
    """CPU time of this process by the duration of the run."""


def run_loadgen(system: System, scenario: Scenario, settings: dict[str, Any], *, seed: int) -> Outcome:
    """Run one scenario with LoadGen's `settings` (fields of `TestSettings`), from the main thread.

    LoadGen crashes when runs of one process are started by threads that end in between.
    Raises `BenchmarkError` when LoadGen is not installed or a query ends with an error.
    """
    loadgen = load_loadgen()
    test = loadgen.TestSettings()
    test.scenario = getattr(loadgen.TestScenario, scenario)
    test.mode = loadgen.TestMode.PerformanceOnly
    seeds = {f"{name}_rng_seed": seed for name in ("qsl", "sample_index", "schedule")}
    for name, value in (seeds | settings).items():
        setattr(test, name, value)
    run = Run()
    with TemporaryDirectory(prefix="distillery-loadgen-") as folder, system.open(scenario, run) as issue:
        started, cpu = time.perf_counter(), time.process_time()
        with _garbage_collection_off(), _interrupt_as_error(run):
            _start(loadgen, test, _guarded(issue, run), folder)
        cpu = (time.process_time() - cpu) / (time.perf_counter() - started)
        if isinstance(run.error, KeyboardInterrupt):
            raise run.error
        if run.error:
            raise BenchmarkError(f"{system.name}, {system.model}, {scenario}: {run.error}") from run.error
        return _outcome(_read_log(Path(folder)), run, seed, cpu)


def load_loadgen() -> Any:
    """Import LoadGen's bindings. Raises `BenchmarkError` where they are not installed."""
    try:
        import mlperf_loadgen  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise BenchmarkError(
            "scenarios needs MLPerf LoadGen: pip install 'distillery[loadgen]' "
            "(its wheels are for Linux on x86-64; elsewhere build mlcommons-loadgen from source)"
        ) from None
    return mlperf_loadgen


def _guarded(issue: Issue, run: Run) -> Callable[[Any], None]:
    def issue_samples(samples: Any) -> None:
        queries = [(sample.id, sample.index) for sample in samples]
        if run.error:
            run.complete(queries)
            return
        try:
            issue(queries)
        except Exception as error:  # noqa: BLE001 - raised again when LoadGen has returned
            run.fail(queries, error)

    return issue_samples


def _start(loadgen: Any, test: Any, issue: Callable[[Any], None], folder: str) -> None:
    log = loadgen.LogSettings()
    log.enable_trace = False
    log.log_output = loadgen.LogOutputSettings()
    log.log_output.outdir = folder
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(LIBRARY, LIBRARY, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(system, library, test, log)
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)


def _read_log(folder: Path) -> dict[str, Any]:
    lines = (folder / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines()
    entries = (json.loads(line.removeprefix(":::MLLOG ")) for line in lines if line.startswith(":::MLLOG "))
    return {entry["key"]: entry["value"] for entry in entries}


def _outcome(log: dict[str, Any], run: Run, seed: int, cpu: float) -> Outcome:
    def milliseconds(percentile: int) -> float:
        return float(round(log[f"result_{percentile}.00_percentile_latency_ns"] / 1e6, 4))

    return Outcome(
        valid=log["result_validity"] == "VALID" and not run.rejected,
        seed=seed,
        queries=log["result_query_count"],
        rejected=run.rejected,
        p50_ms=milliseconds(50),
        p90_ms=milliseconds(90),
        p99_ms=milliseconds(99),
        samples_per_s=log.get("result_samples_per_second"),
        cpu=round(cpu, 3),
    )


@contextmanager
def _interrupt_as_error(run: Run) -> Iterator[None]:
    """Make Ctrl-C end the queries instead of raising an exception inside of LoadGen's callbacks."""

    def interrupt(*_: object) -> None:
        run.error = KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Avoid the pauses of 50 ms and more that a collection takes with many modules loaded."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
