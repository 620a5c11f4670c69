"""`distillery-bench perf-analyzer`: the service under Triton's own load generator.

perf_analyzer was not written for this service, so it shows that any client of the Open Inference Protocol can use it.
It reports what the client measured and, for the same time, what the service reports at /v2/models/…/stats.
"""

from contextlib import ExitStack
from itertools import product
from statistics import median
from typing import Any

from pydantic import Field, PositiveInt

from benchmarks.commands.bench import Bench, RepositorySettings, UrlSettings
from benchmarks.load.interleave import interleave
from benchmarks.load.sessions import REFERENCE
from benchmarks.load.workloads import check_answers, service_workload
from benchmarks.results.models import model_facts
from benchmarks.results.ratio import Ratio
from benchmarks.systems.perf_analyzer import PACKAGES, WINDOWS, Report, install, measure
from benchmarks.systems.servers import running_service

Case = tuple[int, int, str]
"""Images per request, concurrent requests, model."""


class PerfAnalyzer(Bench, UrlSettings, RepositorySettings):
    """Measure the service with Triton's perf_analyzer: binary tensors over HTTP.

    Installs the program under .cache (50 MB, once) and starts the service unless --url is given.
    """

    limitations = (
        "the load generator runs on the same machine and shares its cores with the server",
        "closed loop: a slow response delays the next request",
        "perf_analyzer sends random pixels; the responses are checked before, with digits",
        "the server's counts are up to 0.1 s older than the client's",
    )
    examples = ("distillery-bench perf-analyzer --models teacher --concurrency 1,16",)

    models: list[str] = Field(["teacher", "student", "student-int8"], description="models to measure")
    batch: list[PositiveInt] = Field([1, 64], description="images per request")
    concurrency: list[PositiveInt] = Field([1, 16], description="concurrent requests")
    window_ms: PositiveInt = Field(
        500, le=10_000, description=f"milliseconds per window; a case takes {WINDOWS} windows per round"
    )
    rounds: PositiveInt = Field(5, description="rounds; each measures every case once")

    @property
    def kind(self) -> str:
        return "perf_analyzer"

    def measure(self) -> dict[str, Any]:
        install()
        entries = self.entries()
        cases: list[Case] = list(product(self.batch, self.concurrency, entries))
        with ExitStack() as stack:
            url = self.url or stack.enter_context(running_service(self.models_dir)).url
            for model, entry in entries.items():
                check_answers(service_workload(url, model, "binary-64"), entry.path)

            def report(case: Case) -> Report:
                batch, concurrency, model = case
                return measure(url, model, batch=batch, concurrency=concurrency, window_ms=self.window_ms)

            reports = dict(zip(cases, interleave(cases, self.rounds, report), strict=True))
        return {
            "models": model_facts(entries),
            "generator": PACKAGES[0],
            "rounds": self.rounds,
            "windows": WINDOWS,
            "window_ms": self.window_ms,
            "rows": [_row(case, reports) for case in cases],
        }


def _row(case: Case, reports: dict[Case, list[Report]]) -> dict[str, Any]:
    """Return the medians of a case's rounds, and the rounds themselves."""
    batch, concurrency, model = case
    rounds = reports[case]
    medians = {name: round(median(one[name] for one in rounds), 1) for name in rounds[0]}
    reference = reports.get((batch, concurrency, REFERENCE)) if model != REFERENCE else None
    speedup = None
    if reference:
        ours, theirs = ([one["images_per_s"] for one in each] for each in (rounds, reference))
        speedup = Ratio.within_rounds(ours, theirs).as_json()
    return {
        "batch": batch,
        "concurrency": concurrency,
        "model": model,
        **medians,
        "requests_per_s": round(medians["images_per_s"] / batch, 1),
        "images_per_run": round(
            sum(one["inference_count"] for one in rounds) / sum(one["execution_count"] for one in rounds), 2
        ),
        "speedup": speedup,
        "rounds": rounds,
    }
