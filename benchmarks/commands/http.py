"""`distillery-bench http`: the service over HTTP, compared by executor, model, body, and with other systems."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from benchmarks.commands.bench import Bench, LoadSettings, ServiceSettings
from benchmarks.errors import BenchmarkError
from benchmarks.load.http import SERVICE_CPU_LAG_S, cases_of, measure_http, service_cpu
from benchmarks.load.run import choose_tool, describe_tool
from benchmarks.load.workloads import BodyKind, Workload, check_answers, service_workload
from benchmarks.results.models import model_facts
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


class Http(Bench, LoadSettings, ServiceSettings):
    """Measure the service over HTTP: models, bodies and connections, interleaved.

    Before anything is timed, the response to every request is compared with an onnxruntime session.
    """

    limitations = LIMITATIONS
    examples = (
        "distillery-bench http --executor inprocess --against litserve-first-example",
        "distillery-bench http --url http://127.0.0.1:8000 --body json --connections 1",
    )

    body: list[BodyKind] = Field(
        ["json", "png", "binary-64"], description="request bodies: one image, one image, 64 images"
    )
    against: Annotated[list[str], Metavar("PEER,...")] = Field(
        [], description=f"other systems to measure in the same rounds: {', '.join(peer_names())}"
    )
    against_model: str = Field("student", description="model that the other systems serve")

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
            rows = measure_http(
                cases_of(workloads, self.connections),
                rounds=self.rounds,
                seconds=self.seconds,
                tool=tool,
                cpu={server: partial(service_cpu, url) for server, url in services.items()},
                cpu_lag_s=SERVICE_CPU_LAG_S,
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
