"""`distillery-bench http`: the service over HTTP, compared by executor, model, body, and with other systems."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.commands.bench import Bench, ServiceSettings, progress_bar
from benchmarks.errors import BenchmarkError
from benchmarks.load.http import cases_of, measure_http
from benchmarks.load.run import Tool, choose_tool, describe_tool
from benchmarks.load.service_cpu import ServiceCpu
from benchmarks.load.workloads import BodyKind, Workload, check_answers, service_workload
from benchmarks.results.models import model_facts
from benchmarks.results.ratio import LEGEND, Ratio
from benchmarks.systems.peer import load_peer, peer_names
from benchmarks.systems.peer_environments import peer_environment
from benchmarks.systems.servers import running_peer
from distillery import Metavar, unknown
from distillery.machine import usable_cores
from serving.model.repository import ModelEntry

LIMITATIONS = (
    "the load generator runs on the same machine and shares its cores with the server",
    "closed loop: a slow response delays the next request, so latencies at 16 connections are those of saturation",
    "loopback interface: no network between client and server",
)


class Http(Bench, ServiceSettings):
    """Measure the service over HTTP: models, bodies and connections, interleaved.

    Before anything is timed, the response to every request is compared with an onnxruntime session. Prints tables and,
    last, one line of JSON; keeps the result in a file under --results-dir.
    """

    limitations = LIMITATIONS
    examples = (
        "distillery-bench http --executor inprocess --against litserve-first-example",
        "distillery-bench http --url http://127.0.0.1:8000 --body json --connections 1",
    )

    body: list[BodyKind] = Field(
        ["json", "png", "binary-64"], description="request bodies: one image, one image, 64 images"
    )
    connections: list[PositiveInt] = Field([1, 16], description="concurrent requests")
    against: Annotated[list[str], Metavar("PEER,...")] = Field(
        [], description=f"other systems to measure in the same rounds: {', '.join(peer_names())}"
    )
    against_model: str = Field("student", description="model that the other systems serve")
    seconds: PositiveFloat = Field(1.0, description="seconds per case and round; whole seconds with wrk")
    rounds: PositiveInt = Field(5, description="rounds; each measures every case once")
    tool: Tool = Field("auto", description="load generator; auto is wrk where it is installed, else python")

    def measure(self) -> dict[str, Any]:
        tool = choose_tool(self.tool)
        entries = self.entries()
        if self.against and self.against_model not in entries:
            raise BenchmarkError(f"--against-model: {unknown('model', self.against_model, entries)}")
        with ExitStack() as stack:
            services = self.start_services(stack)
            workloads = [
                service_workload(url, model, body, server=server)
                for server, url in services.items()
                for model in self.measured(entries)
                for body in self.body
            ]
            workloads += self._start_peers(stack, entries)
            for workload in workloads:
                check_answers(workload, entries[workload.model].path)
            cases = cases_of(workloads, self.connections)
            progress = stack.enter_context(progress_bar())
            task = progress.add_task("measuring", total=len(cases) * self.rounds)
            rows = measure_http(
                cases,
                rounds=self.rounds,
                seconds=self.seconds,
                tool=tool,
                cpu={server: ServiceCpu(url) for server, url in services.items()},
                progress=lambda case: progress.update(task, advance=1, description=case.workload.model),
            )
        return {
            "models": model_facts(entries),
            "generator": describe_tool(tool),
            "rounds": self.rounds,
            "rows": rows,
        }

    def _start_peers(self, stack: ExitStack, entries: dict[str, ModelEntry]) -> Iterator[Workload]:
        for peer in map(load_peer, self.against):
            server = running_peer(
                peer,
                entries[self.against_model].path,
                peer_environment(peer),
                processes=self.api_servers or usable_cores(),
            )
            yield peer.workload(stack.enter_context(server).url, self.against_model)

    def tables(self, data: dict[str, Any]) -> Iterator[Table | str]:
        yield f"over HTTP, load by {data['generator']}, medians of {data['rounds']} interleaved rounds"
        kinds = groupby(data["rows"], key=lambda row: (row["body"], row["connections"]))
        for (body, connections), group in kinds:
            yield _table(body, connections, list(group))
        yield LEGEND


def _table(body: str, connections: int, rows: list[dict[str, Any]]) -> Table:
    images = rows[0]["images_per_request"]
    rate = "requests_per_s" if images == 1 else "images_per_s"
    table = Table(
        title=f"{body}: images per request {images}, connections {connections}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in (
        "server",
        "model",
        "req/s" if images == 1 else "images/s",
        "p50 ms",
        "p99 ms",
        "CPU µs",
        "× teacher",
    ):
        table.add_column(name, justify="left" if name in {"server", "model"} else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["server"],
            row["model"],
            f"{row[rate]:,.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            "" if row["cpu_us"] is None else f"{row['cpu_us']:.0f}",
            str(Ratio.from_json(row["speedup"]) or ""),
        )
    return table
