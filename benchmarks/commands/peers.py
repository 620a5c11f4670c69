"""`distillery-bench peers`: our service and the systems of `benchmarks/peers`, with the same model."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.commands.bench import Bench, LoadSettings
from benchmarks.commands.http import LIMITATIONS
from benchmarks.load.http import cases_of, measure_http
from benchmarks.load.run import choose_tool, describe_tool
from benchmarks.load.workloads import Workload, check_answers, service_workload
from benchmarks.results.models import model_facts, select_models
from benchmarks.results.ratio import Ratio
from benchmarks.systems.peer import Peer, load_peer, peer_names
from benchmarks.systems.peer_environments import ENVIRONMENTS, peer_environment, versions_in
from benchmarks.systems.servers import Executor, ServerProcess, running_peer, running_service
from distillery.machine import usable_cores
from serving.model.repository import ModelEntry

OURS = {"inprocess": "Distillery", "workers": "Distillery, --executor workers"}
"""Titles of our own service, by executor."""
SETTLE_S = 0.5
"""Time after a pause for heartbeats and overdue timers."""
IDLE_S = 3.0
"""Duration of the measurement of idle CPU time."""


class Peers(Bench, LoadSettings):
    """Compare the service with other systems: same model, one image as JSON.

    Each system runs in a virtual environment of its own, created on first use. Before anything is timed, its answers
    are compared with onnxruntime's. A system that cannot be installed, does not start or answers wrongly fails the
    command: leave it out with --peers.
    """

    limitations = (
        *LIMITATIONS,
        "one model that runs in a tenth of a millisecond; large models, GPUs and clusters, the frameworks' purpose, "
        "are not measured",
        "one image per request, as JSON, in the form that each system documents; bodies and answers differ in form",
        "other load on the machine favours systems with more processes; CPU time per request is hardly affected",
        "all systems but the one under load are stopped (SIGSTOP), since idle ones would use its cores",
    )
    examples: ClassVar[tuple[str, ...]] = (
        "distillery-bench peers",
        "distillery-bench peers --peers mosec,bare-asgi --connections 16",
    )

    models_dir: Path = Field(Path("models"), description="model repository")
    model: str = Field("student", description="model that all systems serve")
    peers: list[str] = Field(
        [], description=f"systems to measure: {', '.join(peer_names())}; all of them by default"
    )
    executor: list[Executor] = Field(
        ["inprocess", "workers"],
        description="executors to start our service with; ratios are those of the first",
    )
    processes: PositiveInt | None = Field(
        None, description="processes per system, where it has such a setting; one per core by default"
    )
    seconds: PositiveFloat = Field(2.0, description="seconds per system and round; whole seconds with wrk")
    environments_dir: Path = Field(ENVIRONMENTS, description="folder of the virtual environments")

    def measure(self) -> dict[str, Any]:
        tool = choose_tool(self.tool)
        model = select_models(self.models_dir, [self.model])[self.model]
        peers = [load_peer(name) for name in self.peers or peer_names()]
        pythons = [peer_environment(peer, self.environments_dir) for peer in peers]
        rows: list[dict[str, Any]] = []
        with ExitStack() as stack:
            entrants = [self._start_ours(stack, executor, model) for executor in self.executor]
            for peer, python in zip(peers, pythons, strict=True):
                entrants.append(self._start_peer(stack, peer, python, model))
            servers = {entrant.workload.server: entrant.server for entrant in entrants}
            # All rounds of one number of connections before the next: BentoML adapts its batches to the last
            # seconds, and one connection right after 16 would wait several times as long.
            for connections in self.connections:
                rows += measure_http(
                    cases_of([entrant.workload for entrant in entrants], [connections]),
                    rounds=self.rounds,
                    seconds=self.seconds,
                    tool=tool,
                    cpu={name: server.cpu_seconds for name, server in servers.items()},
                    during=lambda case: _resumed(servers[case.workload.server]),
                )
            facts = [entrant.facts() for entrant in entrants]
        return {
            "models": model_facts({self.model: model}),
            "generator": describe_tool(tool),
            "rounds": self.rounds,
            "processes": self._processes,
            "servers": facts,
            "rows": [row | {"ours": ours_by(row, rows).as_json()} for row in rows],
        }

    @property
    def _processes(self) -> int:
        return self.processes or usable_cores()

    def _start_ours(self, stack: ExitStack, executor: Executor, model: ModelEntry) -> "_Entrant":
        flags = ["--executor", executor, "--api-servers", str(self._processes)]
        server = stack.enter_context(running_service(self.models_dir, *flags))
        workload = service_workload(server.url, model.name, server=executor)
        return _entrant(OURS[executor], {}, server, workload, model.path)

    def _start_peer(self, stack: ExitStack, peer: Peer, python: Path, model: ModelEntry) -> "_Entrant":
        versions = versions_in(python, [*peer.packages, "onnxruntime"])
        server = stack.enter_context(running_peer(peer, model.path, python, processes=self._processes))
        workload = peer.workload(server.url, model.name)
        return _entrant(peer.title, versions, server, workload, model.path)


@dataclass(frozen=True)
class _Entrant:
    """A running system whose answers were checked; paused except under load."""

    title: str
    versions: dict[str, str]
    server: ServerProcess
    workload: Workload
    idle_cpu: float

    def facts(self) -> dict[str, Any]:
        """Return what a result keeps of a system in addition to its rows."""
        return {
            "server": self.workload.server,
            "title": self.title,
            "versions": self.versions,
            "processes": len(self.server.all()),
            "memory_mib": round(self.server.memory_mib(), 1),
            "start_s": round(self.server.seconds_to_start, 2),
            "idle_cpu_of_a_core": round(self.idle_cpu, 4),
        }


def _entrant(
    title: str, versions: dict[str, str], server: ServerProcess, workload: Workload, model_path: Path
) -> _Entrant:
    """Check the answers, measure the idle CPU time, and pause the system."""
    check_answers(workload, model_path)
    idle_cpu = server.cpu_of_a_core(IDLE_S)
    server.pause()
    return _Entrant(title, versions, server, workload, idle_cpu)


@contextmanager
def _resumed(server: ServerProcess) -> Iterator[None]:
    """Resume a paused system in the context.

    All systems run at once so that rounds can be interleaved. Most use less than a hundredth of a core when idle, but
    Ray an eighth to a fifth, which any system measured meanwhile would lose.
    """
    server.resume()
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        server.pause()


def ours_by(row: dict[str, Any], rows: list[dict[str, Any]]) -> Ratio:
    """Compare our requests/s, those of the first row's server, with the row's at as many connections."""
    ours = next(
        other
        for other in rows
        if other["server"] == rows[0]["server"] and other["connections"] == row["connections"]
    )
    return Ratio.within_rounds(ours["rounds"]["requests_per_s"], row["rounds"]["requests_per_s"])
