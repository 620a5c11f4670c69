"""`distillery-bench profile`: CPU time of a request by stage, from socket to socket."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.load.interleave import interleave
from benchmarks.load.workloads import BodyKind, check_answers, service_workload
from benchmarks.results.models import model_facts
from benchmarks.systems.profiling import STAGES, median_profile, profile
from benchmarks.systems.servers import service_process

CASES = (("one connection", 1, ()), ("batched", 16, ()), ("one image a run", 16, ("--max-batch", "1")))
"""Name, connections, flags of the service."""


class Profile(Bench, RepositorySettings):
    """Measure the CPU time of a request by stage, with and without batching.

    Prints a table and, last, one line of JSON; keeps the result in a file under --results-dir.
    """

    limitations = (
        "stages are measured on the wall clock, the total in CPU time: an interrupted stage reduces the rest",
        "at one connection the rest is mostly what the kernel takes to wake a sleeping process",
    )
    examples = ("distillery-bench profile --models teacher,student --body json",)

    models: list[str] = Field(["student", "student-int8"], description="models to measure")
    body: list[BodyKind] = Field(["json", "binary"], description="request bodies: one image")
    seconds: PositiveFloat = Field(2.0, description="seconds per case and round; whole seconds with wrk")
    rounds: PositiveInt = Field(5, description="rounds; each measures every model and body once")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        rows: list[dict[str, Any]] = []
        for case, connections, flags in CASES:
            with service_process(self.models_dir, "--api-servers", "1", *flags) as server:
                workloads = [
                    service_workload(server.url, model, body) for model in entries for body in self.body
                ]
                for workload in workloads:
                    check_answers(workload, entries[workload.model].path)
                measured: list[list[dict[str, Any]]] = [[] for _ in workloads]
                for index in interleave(len(workloads), self.rounds):
                    measured[index].append(profile(server, workloads[index], connections, self.seconds))
            for workload, rounds in zip(workloads, measured, strict=True):
                row = {
                    "case": case,
                    "model": workload.model,
                    "body": workload.body,
                    "connections": connections,
                }
                rows.append(row | median_profile(rounds) | {"rounds": rounds})
        return {"models": model_facts(entries), "stages": STAGES, "rows": rows}

    def tables(self, data: dict[str, Any]) -> Iterator[Table]:
        kinds = dict.fromkeys((row["model"], row["body"]) for row in data["rows"])
        for model, body in kinds:
            columns = [row for row in data["rows"] if (row["model"], row["body"]) == (model, body)]
            table = Table(
                title=f"{model}, {body}: CPU µs per request, medians of {len(columns[0]['rounds'])} rounds",
                box=SIMPLE_HEAD,
                title_justify="left",
                pad_edge=False,
            )
            table.add_column("stage", no_wrap=True)
            for row in columns:
                table.add_column(row["case"], justify="right", no_wrap=True)
            for stage in STAGES:
                table.add_row(stage, *(f"{row['stages_us'][stage]:.1f}" for row in columns))
            table.add_row("total", *(f"{row['cpu_us']:.1f}" for row in columns))
            table.add_row("images per run", *(f"{row['images_per_run']:.1f}" for row in columns))
            table.add_row("requests/s", *(f"{row['requests_per_s']:,.0f}" for row in columns))
            yield table
