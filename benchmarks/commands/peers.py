"""`distillery-bench peers`: our service and the systems of `benchmarks/peers`, with the same model."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.commands.bench import Bench, progress_bar
from benchmarks.commands.http import LIMITATIONS
from benchmarks.load.http import cases_of, measure_http
from benchmarks.load.run import Load, Tool, choose_tool, describe_tool
from benchmarks.load.workloads import Workload, check_answers, service_workload
from benchmarks.results.models import model_facts, select_models
from benchmarks.results.ratio import Ratio
from benchmarks.systems.peer import Peer, load_peer, peer_names
from benchmarks.systems.peer_environments import ENVIRONMENTS, peer_environment, versions_in
from benchmarks.systems.processes import ServerProcess
from benchmarks.systems.servers import Executor, running_peer, service_process
from distillery.machine import usable_cores
from serving.model.repository import ModelEntry

OURS = {"inprocess": "Distillery", "workers": "Distillery, --executor workers"}
"""Titles of our own service, by executor."""
SETTLE_S = 0.5
"""Time after a pause for heartbeats and overdue timers."""
IDLE_S = 3.0
"""Duration of the measurement of idle CPU time."""


class Peers(Bench):
    """Compare the service with other systems: same model, one image as JSON.

    Each system runs in a virtual environment of its own, created on first use. Before anything is timed, its answers
    are compared with onnxruntime's. A system that cannot be installed, does not start or answers wrongly fails the
    command: leave it out with --peers. Prints tables and, last, one line of JSON; keeps the result in a file under
    --results-dir.
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
    connections: list[PositiveInt] = Field([1, 16], description="concurrent requests")
    seconds: PositiveFloat = Field(2.0, description="seconds per system and round; whole seconds with wrk")
    rounds: PositiveInt = Field(5, description="rounds; each measures every system once")
    tool: Tool = Field("auto", description="load generator; auto is wrk where it is installed, else python")
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
            clocks = {name: _ProcessCpu(server) for name, server in servers.items()}
            progress = stack.enter_context(progress_bar())
            total = len(entrants) * len(self.connections) * self.rounds
            task = progress.add_task("measuring", total=total)
            # All rounds of one number of connections before the next: BentoML adapts its batches to the last
            # seconds, and one connection right after 16 would wait several times as long.
            for connections in self.connections:
                rows += measure_http(
                    cases_of([entrant.workload for entrant in entrants], [connections]),
                    rounds=self.rounds,
                    seconds=self.seconds,
                    tool=tool,
                    cpu=clocks,
                    progress=lambda case: progress.update(task, advance=1, description=case.workload.server),
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
        server = stack.enter_context(service_process(self.models_dir, *flags))
        workload = service_workload(server.url, model.name, server=executor)
        return _entrant(OURS[executor], {}, server, workload, model.path)

    def _start_peer(self, stack: ExitStack, peer: Peer, python: Path, model: ModelEntry) -> "_Entrant":
        versions = versions_in(python, [*peer.packages, "onnxruntime"])
        server = stack.enter_context(running_peer(peer, model.path, python, processes=self._processes))
        workload = peer.workload(server.url, model.name)
        return _entrant(peer.title, versions, server, workload, model.path)

    def tables(self, data: dict[str, Any]) -> Iterator[Table | str]:
        yield f"the same model, load by {data['generator']}, medians of {data['rounds']} interleaved rounds"
        facts = {fact["server"]: fact for fact in data["servers"]}
        for connections, rows in groupby(data["rows"], key=lambda row: row["connections"]):
            yield _table(connections, list(rows), facts)
        yield (
            "ours = our requests/s by the system's, taken within each round: median (90 % interval by the sign test); "
            "≈ = undecided; CPU = CPU time of all processes per request"
        )


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


@dataclass(frozen=True)
class _ProcessCpu:
    """CPU time by the operating system's count, with one image per request."""

    server: ServerProcess

    def per_prediction(self, _: str, load: Callable[[], Load]) -> tuple[Load, float]:
        before = self.server.cpu_seconds()
        result = load()
        return result, (self.server.cpu_seconds() - before) * 1e6 / result.latencies.total


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


def _table(connections: int, rows: list[dict[str, Any]], facts: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        title=f"connections: {connections}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in ("system", "req/s", "p50 ms", "p99 ms", "CPU µs", "MiB", "ours"):
        table.add_column(name, justify="left" if name == "system" else "right", no_wrap=True)
    for row in rows:
        fact = facts[row["server"]]
        table.add_row(
            row["server"],
            f"{row['requests_per_s']:,.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['cpu_us']:.0f}",
            f"{fact['memory_mib']:,.0f}",
            "" if row["server"] == rows[0]["server"] else str(Ratio.from_json(row["ours"])),
        )
    return table
