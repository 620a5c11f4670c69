"""`distillery-bench profile`: where a request's microseconds go, from socket to socket.

distillery-bench profile --models student,student-int8
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.load.workloads import BodyKind, check_answers, service_workload
from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models
from benchmarks.systems.profiling import STAGES, profile
from benchmarks.systems.servers import service_process
from distillery import Command

LIMITATIONS = (
    "stages are measured on the wall clock, the whole in CPU time: an interrupted stage takes from the rest",
    "at one connection the rest is mostly what the kernel takes to wake a sleeping process",
)
CASES = (("one connection", 1, ()), ("batched", 16, ()), ("one image a run", 16, ("--max-batch", "1")))
"""Name, connections, flags of the service."""


class ProfileBench(Command):
    """Look into one API process under load: CPU time of a request by stage, with and without batching.

    Prints a table and, last, one line of JSON; keeps everything in a file under --results-dir.
    """

    models_dir: Path = Field(Path("models"), description="the model repository that is served")
    models: list[str] = Field(["student", "student-int8"], description="models to look at")
    body: list[BodyKind] = Field(["json", "binary"], description="what a request carries: one image")
    seconds: PositiveInt = Field(10, description="length of a look")
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        entries = select_models(self.models_dir, self.models)
        rows: list[dict[str, Any]] = []
        for case, connections, flags in CASES:
            with service_process(self.models_dir, "--api-servers", "1", *flags) as server:
                for model, entry in entries.items():
                    for body in self.body:
                        workload = service_workload(server.url, model, body)
                        check_answers(workload, entry.path)
                        row = {"case": case, "model": model, "body": body, "connections": connections}
                        rows.append(row | profile(server, workload, connections, self.seconds))
        data = {"models": model_facts(entries), "limitations": LIMITATIONS, "stages": STAGES, "rows": rows}
        path = write_result("profile", data, folder=self.results_dir)
        Console().print(*profile_tables(rows))
        for limitation in LIMITATIONS:
            print(f"- {limitation}")
        print(json.dumps({"result": str(path), "rows": rows}))


def profile_tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """Lay out the rows of the result: a table for each model and body, a column for each case."""
    kinds = dict.fromkeys((row["model"], row["body"]) for row in rows)
    for model, body in kinds:
        columns = [row for row in rows if (row["model"], row["body"]) == (model, body)]
        table = Table(
            title=f"{model}, {body}: CPU µs of a request",
            box=SIMPLE_HEAD,
            title_justify="left",
            pad_edge=False,
        )
        table.add_column("stage", no_wrap=True)
        for row in columns:
            table.add_column(row["case"], justify="right", no_wrap=True)
        for stage in STAGES:
            table.add_row(stage, *(f"{row['stages_us'][stage]:.1f}" for row in columns))
        table.add_row("together", *(f"{row['cpu_us']:.1f}" for row in columns))
        table.add_row("images a run", *(f"{row['images_per_run']:.1f}" for row in columns))
        table.add_row("requests/s", *(f"{row['requests_per_s']:,.0f}" for row in columns))
        yield table
