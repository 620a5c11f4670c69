"""`distillery-bench http`: measure the service over HTTP, against itself and against others.

distillery-bench http --executor inprocess,workers --against litserve-first-example
distillery-bench http --url http://127.0.0.1:8000 --body json,png --connections 1
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.errors import BenchmarkError
from benchmarks.load.interleave import measure_in_turns, order
from benchmarks.load.run import Tool, choose_tool, describe_tool
from benchmarks.load.workloads import BodyKind, Workload, check_answers, service_workload
from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models
from benchmarks.systems.peer import load_peer, peer_names
from benchmarks.systems.peer_environments import peer_environment
from benchmarks.systems.servers import Executor, running_peer, running_service
from distillery import Command
from serving.model.repository import ModelEntry

LIMITATIONS = (
    "the load generator runs on the same machine and shares its cores with the server",
    "closed loop: a slow answer delays the next request, so latencies at 16 connections are those of saturation",
    "loopback interface: no network between client and server",
)


class HttpBench(Command):
    """Measure the service over HTTP: server by model by body by connections, in turns.

    Starts the service itself, once per executor, unless --url names one that runs. Before anything is timed,
    every request's answer is compared with that of an onnxruntime session. Prints a table and, last, one line
    of JSON; keeps everything in a file under --results-dir.
    """

    models_dir: Path = Field(Path("models"), description="the model repository that is served")
    models: list[str] = Field([], description="models to measure, all of them by default")
    url: str | None = Field(
        None,
        pattern=r"^http://[^/@\s]+/?$",
        description="a service that runs already, such as http://127.0.0.1:8000",
    )
    executor: list[Executor] = Field(
        ["inprocess", "workers"], description="executors to start the service with"
    )
    api_servers: PositiveInt | None = Field(
        None, description="API processes; the service's default is the cores"
    )
    body: list[BodyKind] = Field(
        ["json", "png", "binary-64"], description="one image, one image, 64 images a request"
    )
    connections: list[PositiveInt] = Field([1, 16], description="requests under way at any moment")
    against: list[str] = Field(
        [], description=f"other systems, measured in the same run: {', '.join(peer_names())}"
    )
    against_model: str = Field("student", description="the model that the other servers are given")
    seconds: PositiveFloat = Field(1.0, description="length of a turn; whole seconds with wrk")
    rounds: PositiveInt = Field(5, description="how often each case has its turn")
    tool: Tool = Field("auto", description="load generator: wrk where it is installed, or our own in Python")
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        tool = choose_tool(self.tool)
        entries = select_models(self.models_dir, self.models)
        if self.against and self.against_model not in entries:
            raise BenchmarkError(f"--against-model {self.against_model}: measured are {sorted(entries)}")
        with ExitStack() as servers:
            workloads = self._start(servers, entries)
            for workload in workloads:
                check_answers(workload, entries[workload.model].path)
            cases = order(workloads, self.connections)
            with progress_bar() as progress:
                task = progress.add_task("measuring", total=len(cases) * self.rounds)
                rows = measure_in_turns(
                    cases,
                    rounds=self.rounds,
                    seconds=self.seconds,
                    tool=tool,
                    progress=lambda case: progress.update(task, advance=1, description=case.workload.model),
                )
        data = {
            "models": model_facts(entries),
            "generator": describe_tool(tool),
            "rounds": self.rounds,
            "limitations": LIMITATIONS,
            "rows": rows,
        }
        path = write_result("http", data, folder=self.results_dir)
        Console().print(
            f"over HTTP, load by {tool}, medians of {self.rounds} rounds in turns", *http_tables(rows)
        )
        for limitation in LIMITATIONS:
            print(f"- {limitation}")
        kept = [name for name in rows[0] if name not in ("rounds", "histogram")]
        print(json.dumps({"result": str(path), "rows": [{name: row[name] for name in kept} for row in rows]}))

    def _start(self, servers: ExitStack, entries: dict[str, ModelEntry]) -> list[Workload]:
        """Start the servers and prepare what each is sent."""
        flags = ["--api-servers", str(self.api_servers)] if self.api_servers else []
        services = {"service": self.url} if self.url else {}
        for executor in [] if self.url else self.executor:
            service = running_service(self.models_dir, "--executor", executor, *flags)
            services[executor] = servers.enter_context(service)
        workloads = [
            service_workload(url, model, body, server=server)
            for server, url in services.items()
            for model in entries
            for body in self.body
        ]
        for peer in map(load_peer, self.against):
            other = running_peer(
                peer,
                entries[self.against_model].path,
                peer_environment(peer),
                processes=self.api_servers or len(os.sched_getaffinity(0)),
            )
            workloads.append(peer.workload(servers.enter_context(other).url, self.against_model))
        return workloads


def http_tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """Lay out the rows of `measure_in_turns`: a table for each kind of body and number of connections."""
    for (body, connections), group in groupby(rows, key=lambda row: (row["body"], row["connections"])):
        kind = list(group)
        images = kind[0]["images_per_request"]
        rate = "requests_per_s" if images == 1 else "images_per_s"
        title = f"{body}: {images} image(s) a request, {connections} connection(s)"
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        left = ("server", "model")
        for name in (*left, "req/s" if images == 1 else "images/s", "±", "p50", "p99", "speedup"):
            table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
        for row in kind:
            rates = row["rounds"]["requests_per_s"]
            table.add_row(
                *(row[name] for name in left),
                f"{row[rate]:,.0f}",
                f"{(max(rates) - min(rates)) / 2 / row['requests_per_s']:.0%}",
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['speedup']:.2f}" if row["speedup"] else "",
            )
        yield table


def progress_bar() -> Progress:
    """Return a bar that shows what is measured, how far it is and for how much longer."""
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        transient=True,
    )
