"""`distillery-bench scenarios`: MLPerf LoadGen's four scenarios, in a bare session and over HTTP."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.commands.bench import Bench, ServiceSettings
from benchmarks.load.workloads import BodyKind, service_workload
from benchmarks.loadgen.run import Scenario, System, load_loadgen
from benchmarks.loadgen.scenarios import METRICS, Row, Rules, run_scenario
from benchmarks.loadgen.served import BATCH, OFFLINE_CONNECTIONS, ServedSystem
from benchmarks.loadgen.session import SessionSystem
from benchmarks.report.scenarios import figure_of
from benchmarks.results.models import model_facts
from benchmarks.results.ratio import LEGEND, Ratio
from benchmarks.systems.servers import running_service
from distillery.machine import usable_cores
from serving.model.repository import ModelEntry
from serving.model.session import open_session

CORES = usable_cores()
RULES = ("single", "several", "connections", "threads", "bound_ms", "seconds", "rounds", "samples", "seed")
"""Settings that decide what the figures mean; kept with them."""


class Scenarios(Bench, ServiceSettings):
    """Run MLPerf LoadGen's scenarios: SingleStream, MultiStream, Server and Offline.

    LoadGen issues and times every query, first to a bare onnxruntime session, then to the service. Before anything is
    timed, every answer is compared with onnxruntime's. Requires the extra `loadgen` (wheels for Linux on x86-64).
    Prints tables and, last, one line of JSON; keeps the result in a file under --results-dir.
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
    bound_ms: PositiveFloat = Field(10.0, description="maximum p99 latency in Server")
    seconds: PositiveFloat = Field(1.0, description="minimum seconds per run")
    rounds: PositiveInt = Field(5, description="rounds; each runs every scenario once per model")
    samples: PositiveInt = Field(24_576, description="minimum samples per Offline run")
    longest_seconds: PositiveFloat = Field(30.0, description="maximum seconds per run")
    seed: NonNegativeInt = Field(0, description="seed of arrivals and samples")

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
                        rows += run_scenario(scenario, systems, self._rules(), show)
                        progress.advance(task)
        return {
            "models": model_facts(entries),
            "rounds": self.rounds,
            "rules": self.model_dump(include=set(RULES))
            | {"offline_connections": OFFLINE_CONNECTIONS, "batch": BATCH},
            "rows": rows,
        }

    def _rules(self) -> Rules:
        return Rules(
            seconds=self.seconds,
            rounds=self.rounds,
            samples=self.samples,
            bound_ms=self.bound_ms,
            longest_s=self.longest_seconds,
            seed=self.seed,
        )

    def _open(self, name: str, entries: dict[str, ModelEntry], stack: ExitStack) -> list[System]:
        """Return the system of this name, once per model; a service runs until `stack` is closed."""
        if name == "session":
            return [_session(model, entry, self.threads) for model, entry in entries.items()]
        flags = ["--api-servers", str(self.api_servers)] if self.api_servers else []
        url = self.url or stack.enter_context(running_service(self.models_dir, "--executor", name, *flags))
        bodies: dict[int, BodyKind] = {1: self.single, 8: f"{self.several}-8", 64: f"{self.several}-64"}  # type: ignore[dict-item]
        return [
            ServedSystem(
                {n: service_workload(url, model, body, server=name) for n, body in bodies.items()},
                path=entry.path,
                connections=self.connections,
            )
            for model, entry in entries.items()
        ]

    def tables(self, data: dict[str, Any]) -> Iterator[Table | str]:
        for scenario in dict.fromkeys(row["scenario"] for row in data["rows"]):
            yield _table([row for row in data["rows"] if row["scenario"] == scenario])
        yield LEGEND

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        rows = super().summary(data)["rows"]
        return {"rows": [{key: row[key] for key in row if key != "search"} for row in rows]}


def _session(model: str, entry: ModelEntry, threads: int) -> SessionSystem:
    session = open_session(entry.path)
    return SessionSystem(
        model, lambda images: session.run(["probabilities"], {"image": images})[0], threads=threads
    )


def _table(rows: list[Row]) -> Table:
    table = Table(
        title=f"{rows[0]['scenario']}: {rows[0]['metric']}, {rows[0]['unit']}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    left = ("system", "model")
    for name in (*left, "figure", "p50 ms", "p99 ms", "× teacher"):
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(row[name] for name in left),
            figure_of(row),
            *(f"{row[name]:,.3f}" for name in ("p50_ms", "p99_ms")),
            str(Ratio.from_json(row["ratio"]) or ""),
        )
    return table
