"""`distillery-bench peers`: our service and every system of `benchmarks/peers`, with the same model, in one run.

distillery-bench peers
distillery-bench peers --peers bare-asgi,tick-batching --rounds 3
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from rich.console import Console

from benchmarks.commands.bench import progress_bar
from benchmarks.commands.http import LIMITATIONS
from benchmarks.load.http import cases_of, measure_http
from benchmarks.load.run import Tool, choose_tool, describe_tool
from benchmarks.load.workloads import Workload, check_answers, service_workload
from benchmarks.report.peers_tables import compare_with_ours, peers_tables
from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models
from benchmarks.systems.peer import Peer, load_peer, peer_names
from benchmarks.systems.peer_environments import ENVIRONMENTS, peer_environment, versions_in
from benchmarks.systems.processes import ServerProcess
from benchmarks.systems.servers import Executor, running_peer, service_process
from distillery import Command
from distillery.machine import usable_cores
from serving.model.repository import ModelEntry

OURS = {"inprocess": "Distillery", "workers": "Distillery, --executor workers"}
"""Titles of our own service, by executor."""
SETTLE_S = 0.5
"""What a system wants to do after it was paused (heartbeats, timers that are due), it does in this time."""
IDLE_S = 3.0
"""So long is looked at what a system does when nobody asks it anything."""
PEER_LIMITATIONS = (
    *LIMITATIONS,
    "one model that answers in a tenth of a millisecond: what the frameworks are made for besides (large models, "
    "GPUs, clusters) is not measured",
    "one image a request, as JSON, in the form that each system documents; bodies and answers differ by that form",
    "all systems but the one having its turn are stopped (SIGSTOP), since idle ones would take its cores",
)


class PeersBench(Command):
    """Measure our service and other systems over HTTP: one image as JSON, the same model, in turns.

    Each system runs in a virtual environment of its own, made when it is first wanted. Before anything is timed
    its answers are compared with those of an onnxruntime session. A system that cannot be installed, does not
    start or answers wrongly fails the command: leave it out with --peers. Prints a table and, last, one line of
    JSON; keeps everything in a file under --results-dir.
    """

    models_dir: Path = Field(Path("models"), description="the model repository")
    model: str = Field("student", description="the model that all of them are given")
    peers: list[str] = Field(
        [], description=f"systems to measure, all of them by default: {', '.join(peer_names())}"
    )
    executor: list[Executor] = Field(
        ["inprocess", "workers"], description="executors to start our service with; the first is compared"
    )
    processes: PositiveInt | None = Field(
        None, description="processes of each system, where it has such a setting; as many as cores by default"
    )
    connections: list[PositiveInt] = Field([1, 16], description="requests under way at any moment")
    seconds: PositiveFloat = Field(2.0, description="length of a turn; whole seconds with wrk")
    rounds: PositiveInt = Field(5, description="how often each case has its turn")
    tool: Tool = Field("auto", description="load generator: wrk where it is installed, or our own in Python")
    environments_dir: Path = Field(ENVIRONMENTS, description="where the virtual environments are kept")
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        tool = choose_tool(self.tool)
        model = select_models(self.models_dir, [self.model])[self.model]
        peers = [load_peer(name) for name in self.peers or peer_names()]
        pythons = [peer_environment(peer, self.environments_dir) for peer in peers]
        with ExitStack() as stack:
            entrants = [self._start_ours(stack, executor, model) for executor in self.executor]
            entrants += [
                self._start_peer(stack, peer, python, model)
                for peer, python in zip(peers, pythons, strict=True)
            ]
            servers = {entrant.workload.server: entrant.server for entrant in entrants}
            rows = []
            with progress_bar() as progress:
                total = len(entrants) * len(self.connections) * self.rounds
                task = progress.add_task("measuring", total=total)
                # All rounds of one number of connections before the next: BentoML batches by what it saw in the
                # last seconds, and one connection right after 16 would wait several times as long.
                for connections in self.connections:
                    rows += measure_http(
                        cases_of([entrant.workload for entrant in entrants], [connections]),
                        rounds=self.rounds,
                        seconds=self.seconds,
                        tool=tool,
                        progress=lambda case: progress.update(
                            task, advance=1, description=case.workload.server
                        ),
                        during=lambda case: _turn_of(servers[case.workload.server]),
                    )
            facts = [entrant.facts() for entrant in entrants]
        data: dict[str, Any] = {
            "models": model_facts({self.model: model}),
            "generator": describe_tool(tool),
            "rounds": self.rounds,
            "processes": self._processes,
            "limitations": PEER_LIMITATIONS,
            "servers": facts,
            "rows": [row | compare_with_ours(row, rows) for row in rows],
        }
        path = write_result("peers", data, folder=self.results_dir)
        Console().print(
            f"the same model, load by {tool}, medians of {self.rounds} rounds in turns", *peers_tables(data)
        )
        for limitation in PEER_LIMITATIONS:
            print(f"- {limitation}")
        kept = [name for name in data["rows"][0] if name not in ("rounds", "histogram")]
        short = [{name: row[name] for name in kept} for row in data["rows"]]
        print(json.dumps({"result": str(path), "rows": short}))

    @property
    def _processes(self) -> int:
        return self.processes or usable_cores()

    def _start_ours(self, stack: ExitStack, executor: Executor, model: ModelEntry) -> "_Entrant":
        flags = ["--executor", executor, "--api-servers", str(self._processes)]
        server = stack.enter_context(service_process(self.models_dir, *flags))
        workload = service_workload(server.url, model.name, server=executor)
        return _entrant(OURS[executor], {}, server, workload, model.path)

    def _start_peer(self, stack: ExitStack, peer: Peer, python: Path, model: ModelEntry) -> "_Entrant":
        versions = versions_in(python, [*peer.packages, "onnxruntime"])
        server = stack.enter_context(running_peer(peer, model.path, python, processes=self._processes))
        workload = peer.workload(server.url, model.name)
        return _entrant(peer.title, versions, server, workload, model.path)


@dataclass(frozen=True)
class _Entrant:
    """A system that runs, answers rightly, and is paused until its turn."""

    title: str
    versions: dict[str, str]
    server: ServerProcess
    workload: Workload
    idle_cpu: float

    def facts(self) -> dict[str, Any]:
        """Return what a result file keeps of a system besides its rows."""
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
    """Check the answers, look at the system idle, and pause it."""
    check_answers(workload, model_path)
    idle_cpu = server.cpu_of_a_core(IDLE_S)
    server.pause()
    return _Entrant(title, versions, server, workload, idle_cpu)


@contextmanager
def _turn_of(server: ServerProcess) -> Iterator[None]:
    """Continue a paused system for as long as this lasts.

    All systems are up at once, so that they can take turns. Idle, most of them take less than a hundredth of a
    core, but Ray an eighth to a fifth: whatever would run beside it, would be measured on fewer cores.
    """
    server.resume()
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        server.pause()
