"""`distillery-bench perf-analyzer`: measure the service with Triton's own load generator, over its protocol.

distillery-bench perf-analyzer --models teacher,student-int8 --batch 1,64 --concurrency 1,16

It was not written for this service, so it shows that any client of the Open Inference Protocol can use it; and
it sets what it sees from outside beside what the service says of the same time at /v2/models/…/stats.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field, PositiveInt
from rich.console import Console

from benchmarks.load.workloads import check_answers, service_workload
from benchmarks.report.perf_analyzer import perf_analyzer_tables
from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models
from benchmarks.systems.perf_analyzer import PACKAGES, WINDOWS, Report, install, measure
from benchmarks.systems.servers import running_service
from distillery import Command

LIMITATIONS = (
    "the load generator runs on the same machine and shares its cores with the server",
    "closed loop: a slow answer delays the next request",
    "the pixels sent are random: right answers are checked before, with digits",
    "the server's counts are up to 0.1 s older than the client's",
)


class PerfAnalyzerBench(Command):
    """Measure the service with Triton's perf_analyzer: binary tensors over HTTP, client's and server's view.

    Installs the program under .cache (50 MB, once) and starts the service itself, unless --url names one that
    runs. Prints a table and, last, one line of JSON; keeps everything in a file under --results-dir.
    """

    models_dir: Path = Field(Path("models"), description="the model repository that is served")
    models: list[str] = Field(["teacher", "student", "student-int8"], description="models to measure")
    url: str | None = Field(
        None,
        pattern=r"^http://[^/@\s]+/?$",
        description="a service that runs already, such as http://127.0.0.1:8000",
    )
    batch: list[PositiveInt] = Field([1, 64], description="images a request")
    concurrency: list[PositiveInt] = Field([1, 16], description="requests under way at any moment")
    window_ms: PositiveInt = Field(500, le=10_000, description=f"a turn is {WINDOWS} windows of this length")
    rounds: PositiveInt = Field(3, description="how often each case has its turn")
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        install()
        entries = select_models(self.models_dir, self.models)
        cases = list(product(self.batch, self.concurrency, entries))
        reports: dict[tuple[int, int, str], list[Report]] = {case: [] for case in cases}
        with nullcontext(self.url) if self.url else running_service(self.models_dir) as url:
            for model, entry in entries.items():
                check_answers(service_workload(url, model, "binary-64"), entry.path)
            for number in range(self.rounds):
                for batch, concurrency, model in cases if number % 2 == 0 else cases[::-1]:
                    report = measure(
                        url, model, batch=batch, concurrency=concurrency, window_ms=self.window_ms
                    )
                    reports[batch, concurrency, model].append(report)
        data: dict[str, Any] = {
            "models": model_facts(entries),
            "generator": PACKAGES[0],
            "rounds": self.rounds,
            "windows": WINDOWS,
            "window_ms": self.window_ms,
            "limitations": LIMITATIONS,
            "rows": [_row(*case, reports[case]) for case in cases],
        }
        path = write_result("perf_analyzer", data, folder=self.results_dir)
        Console().print(
            f"load by perf_analyzer, medians of {self.rounds} rounds in turns",
            *perf_analyzer_tables(data["rows"]),
        )
        for limitation in LIMITATIONS:
            print(f"- {limitation}")
        rows = [{name: row[name] for name in row if name != "rounds"} for row in data["rows"]]
        print(json.dumps({"result": str(path), "rows": rows}))


def _row(batch: int, concurrency: int, model: str, reports: list[Report]) -> dict[str, Any]:
    """One case: medians of its rounds, and the rounds themselves."""
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
