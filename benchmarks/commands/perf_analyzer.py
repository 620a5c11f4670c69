"""`distillery-bench perf-analyzer`: the service under load of Triton's perf_analyzer, over the V2 protocol.

perf_analyzer was not written for this service: it shows that clients of the Open Inference Protocol can use it, and
compares what the client measures with what the service reports at /v2/models/…/stats.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import groupby, product
from statistics import median
from typing import Any, ClassVar

from pydantic import Field, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.load.interleave import interleave
from benchmarks.load.workloads import check_answers, service_workload
from benchmarks.report.perf_analyzer import STAGES
from benchmarks.results.models import model_facts
from benchmarks.systems.perf_analyzer import PACKAGES, WINDOWS, Report, install, measure
from benchmarks.systems.servers import running_service


class PerfAnalyzer(Bench, RepositorySettings):
    """Measure the service with Triton's perf_analyzer: binary tensors over HTTP.

    Installs the program under .cache (50 MB, once) and starts the service, unless --url names a running one. Prints
    tables and, last, one line of JSON; keeps the result in a file under --results-dir.
    """

    limitations = (
        "the load generator runs on the same machine and shares its cores with the server",
        "closed loop: a slow response delays the next request",
        "the pixels sent are random; responses are checked before, with digits",
        "the server's counts are up to 0.1 s older than the client's",
    )
    examples: ClassVar[tuple[str, ...]] = (
        "distillery-bench perf-analyzer --models teacher,student-int8 --batch 1,64 --concurrency 1,16",
    )

    models: list[str] = Field(["teacher", "student", "student-int8"], description="models to measure")
    url: str | None = Field(
        None,
        pattern=r"^http://[^/@\s]+/?$",
        description="a running service, such as http://127.0.0.1:8000; started here by default",
    )
    batch: list[PositiveInt] = Field([1, 64], description="images per request")
    concurrency: list[PositiveInt] = Field([1, 16], description="concurrent requests")
    window_ms: PositiveInt = Field(
        500, le=10_000, description=f"milliseconds per window; {WINDOWS} windows per case and round"
    )
    rounds: PositiveInt = Field(3, description="rounds; each measures every case once")

    @property
    def kind(self) -> str:
        return "perf_analyzer"

    def measure(self) -> dict[str, Any]:
        install()
        entries = self.entries()
        cases = list(product(self.batch, self.concurrency, entries))
        reports: list[list[Report]] = [[] for _ in cases]
        with nullcontext(self.url) if self.url else running_service(self.models_dir) as url:
            for model, entry in entries.items():
                check_answers(service_workload(url, model, "binary-64"), entry.path)
            for index in interleave(len(cases), self.rounds):
                batch, concurrency, model = cases[index]
                report = measure(url, model, batch=batch, concurrency=concurrency, window_ms=self.window_ms)
                reports[index].append(report)
        return {
            "models": model_facts(entries),
            "generator": PACKAGES[0],
            "rounds": self.rounds,
            "windows": WINDOWS,
            "window_ms": self.window_ms,
            "rows": [_row(*case, rounds) for case, rounds in zip(cases, reports, strict=True)],
        }

    def tables(self, data: dict[str, Any]) -> Iterator[Table | str]:
        yield f"load by perf_analyzer, medians of {data['rounds']} interleaved rounds"
        kinds = groupby(data["rows"], key=lambda row: (row["batch"], row["concurrency"]))
        for (batch, concurrency), rows in kinds:
            yield _table(batch, concurrency, list(rows))


def _row(batch: int, concurrency: int, model: str, reports: list[Report]) -> dict[str, Any]:
    """Return the medians of a case, and its rounds."""
    rounds = [asdict(report) for report in reports]
    medians = {name: round(median(one[name] for one in rounds), 1) for name in rounds[0]}
    runs = sum(report.execution_count for report in reports)
    return {
        "batch": batch,
        "concurrency": concurrency,
        "model": model,
        **medians,
        "requests_per_s": round(medians["images_per_s"] / batch, 1),
        "images_per_run": round(sum(report.inference_count for report in reports) / runs, 2),
        "rounds": rounds,
    }


def _table(batch: int, concurrency: int, rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title=f"images per request {batch}, concurrent requests {concurrency}; server's means in µs",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    for name in ("model", "images/s", "p50 ms", "p99 ms", "batch", *STAGES.values()):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['images_per_s']:,.0f}",
            *(f"{row[name] / 1000:.2f}" for name in ("p50_us", "p99_us")),
            f"{row['images_per_run']:.1f}",
            *(f"{row[stage]:,.0f}" for stage in STAGES),
        )
    return table
