"""`distillery-bench scenarios`: MLPerf LoadGen's four scenarios, in a bare session and over HTTP."""

from contextlib import ExitStack
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.commands.bench import Bench, ServiceSettings
from benchmarks.load.workloads import BodyKind, service_workload
from benchmarks.loadgen.run import Scenario, System, load_loadgen
from benchmarks.loadgen.scenarios import METRICS, Row, Rules, run_scenario
from benchmarks.loadgen.served import BATCH, OFFLINE_CONNECTIONS, ServedSystem
from benchmarks.loadgen.session import SessionSystem
from benchmarks.results.models import model_facts
from benchmarks.systems.servers import running_service
from distillery.machine import usable_cores
from serving.model.repository import ModelEntry
from serving.model.session import open_session

CORES = usable_cores()
RULES = ("single", "several", "connections", "threads", "bound_ms", "seconds", "rounds", "samples", "seed")
"""Settings that decide what the figures mean; kept with them."""


class Scenarios(Bench, Rules, ServiceSettings):
    """Run MLPerf LoadGen's scenarios: SingleStream, MultiStream, Server and Offline.

    LoadGen issues and times every query, first to a bare onnxruntime session, then to the service. Before anything is
    timed, every answer is compared with onnxruntime's. Requires the extra `loadgen` (wheels for Linux on x86-64).
    """

    limitations = (
        "not MLPerf results: LoadGen's scenarios and rules, with runs of seconds instead of ten minutes",
        "the load generator runs on the same machine and shares its cores with the service",
        "loopback interface: no network between client and server",
        f"a session is called by threads of the generator's process, with batches of at most {BATCH}",
    )
    examples: ClassVar[tuple[str, ...]] = (
        "distillery-bench scenarios --models teacher,student,student-int8",
        "distillery-bench scenarios --scenarios Server --bound-ms 5",
    )

    models: list[str] = Field(["teacher", "student", "student-int8"], description="models to measure")
    scenarios: list[Scenario] = Field(list(METRICS), description="scenarios to run")
    session: bool = Field(True, description="also measure the models in bare sessions")
    single: Literal["json", "png", "binary"] = Field("json", description="request body for 1 image")
    several: Literal["json", "binary"] = Field("binary", description="request body for 8 and for 64 images")
    connections: PositiveInt = Field(64, description="connections in Server; queries queue for a free one")
    threads: PositiveInt = Field(CORES, description="threads of a bare session in Server and Offline")

    def measure(self) -> dict[str, Any]:
        load_loadgen()
        entries = self.entries()
        rows: list[Row] = []
        names = [*(["session"] if self.session else []), *(["service"] if self.url else self.executor)]
        # Drawn between the runs only: a thread that draws during a run would be measured too.
        columns = (
            TextColumn("{task.description:<40}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, transient=True, auto_refresh=False) as progress:
            task = progress.add_task("", total=len(names) * len(self.scenarios))
            for name in names:

                def show(step: str, name: str = name) -> None:
                    progress.update(task, description=f"{name}: {step}", refresh=True)

                with ExitStack() as stack:
                    systems = self._open(name, entries, stack)
                    show("accuracy")
                    for system in systems:
                        system.check()
                    for scenario in self.scenarios:
                        rows += run_scenario(scenario, systems, self, show)
                        progress.advance(task)
        return {
            "models": model_facts(entries),
            "rounds": self.rounds,
            "rules": self.model_dump(include=set(RULES))
            | {"offline_connections": OFFLINE_CONNECTIONS, "batch": BATCH},
            "rows": rows,
        }

    def _open(self, name: str, entries: dict[str, ModelEntry], stack: ExitStack) -> list[System]:
        """Return the system of this name, once per model; a service runs until `stack` is closed."""
        if name == "session":
            return [_session(model, entry, self.threads) for model, entry in entries.items()]
        flags = ["--api-servers", str(self.api_servers)] if self.api_servers else []
        url = (
            self.url or stack.enter_context(running_service(self.models_dir, "--executor", name, *flags)).url
        )
        bodies: dict[int, BodyKind] = {1: self.single, 8: f"{self.several}-8", 64: f"{self.several}-64"}  # type: ignore[dict-item]
        return [
            ServedSystem(
                {n: service_workload(url, model, body, server=name) for n, body in bodies.items()},
                path=entry.path,
                connections=self.connections,
            )
            for model, entry in entries.items()
        ]


def _session(model: str, entry: ModelEntry, threads: int) -> SessionSystem:
    session = open_session(entry.path)
    return SessionSystem(
        model, lambda images: session.run(["probabilities"], {"image": images})[0], threads=threads
    )
