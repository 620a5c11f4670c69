"""`distillery-bench scenarios`: SingleStream, MultiStream, Server and Offline, in a session and over HTTP.

distillery-bench scenarios --models teacher,student,student-int8
distillery-bench scenarios --url http://127.0.0.1:8000 --scenarios Server --bound-ms 5

What of LoadGen's rules is kept stands in `benchmarks/loadgen/scenarios.py`.
"""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.load.workloads import BodyKind, service_workload
from benchmarks.loadgen.scenarios import METRICS, Row, Rules, Scenario, run_scenario
from benchmarks.loadgen.served_system import OFFLINE_CONNECTIONS, ServedSystem
from benchmarks.loadgen.server_search import Settings
from benchmarks.loadgen.session_system import SessionSystem
from benchmarks.loadgen.systems import BATCH, System
from benchmarks.report.scenarios import scenarios_tables
from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models
from benchmarks.systems.servers import Executor, running_service
from distillery import Command
from distillery.machine import usable_cores
from serving.model.repository import ModelEntry
from serving.model.session import open_session

CORES = usable_cores()
LIMITATIONS = (
    "not MLPerf results: LoadGen's scenarios and method, with runs of seconds instead of ten minutes",
    "the load generator runs on the same machine and shares its cores with the service",
    "loopback interface: no network between client and server",
    "a session is asked by threads of this process; a batch is all that has arrived, up to 64",
)

RULES = {
    *("single", "several", "connections", "threads", "bound_ms", "seconds", "rounds", "samples"),
    *("probe_seconds", "probe_queries", "confirmations", "longest_seconds", "seed"),
}
"""Settings that decide what the figures mean; kept with them."""


class ScenariosBench(Command):
    """Run LoadGen's four scenarios over the models, in a bare session and over HTTP.

    Starts the service itself, once per executor, unless --url names one that runs. Accuracy first: every answer
    is compared with that of an onnxruntime session before anything is timed. Prints a table and, last, one line
    of JSON; keeps everything in a file under --results-dir.
    """

    models_dir: Path = Field(Path("models"), description="the model repository")
    models: list[str] = Field(["teacher", "student", "student-int8"], description="models to measure")
    scenarios: list[Scenario] = Field(list(METRICS), description="which of the four")
    session: bool = Field(True, description="measure bare sessions, too")
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
    single: Literal["json", "png", "binary"] = Field("json", description="what one image is sent as")
    several: Literal["json", "binary"] = Field("binary", description="what 8 and 64 images are sent as")
    connections: PositiveInt = Field(64, description="connections in Server; queries wait for one")
    threads: PositiveInt = Field(CORES, description="threads that run a bare session in Server and Offline")
    bound_ms: PositiveFloat = Field(10.0, description="Server: p99 may not be above it")
    seconds: PositiveFloat = Field(2.0, description="least duration of SingleStream, MultiStream and Offline")
    rounds: PositiveInt = Field(2, description="how often the models have their turn in these")
    samples: PositiveInt = Field(24_576, description="Offline: least number of samples")
    probe_seconds: PositiveFloat = Field(
        1.0, description="Server: length of a probe; confirmed by twice that"
    )
    probe_queries: PositiveInt = Field(2000, description="Server: least number of queries in a probe")
    confirmations: PositiveInt = Field(
        2, description="Server: runs that confirm the rate, each with its seed"
    )
    longest_seconds: PositiveFloat = Field(30.0, description="no run lasts longer")
    seed: NonNegativeInt = Field(0, description="of arrivals and samples")
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        entries = select_models(self.models_dir, self.models)
        rules = self._rules()
        rows: list[Row] = []
        with _progress() as progress:
            names = (["session"] if self.session else []) + self._services()
            task = progress.add_task("", total=len(names) * len(self.scenarios) * len(entries))
            for name in names:
                say = partial(_say, progress, task, name)
                with ExitStack() as stack:
                    systems = self._open(name, entries, stack)
                    say("accuracy")
                    for system in systems:
                        system.check()
                    for scenario in self.scenarios:
                        rows += run_scenario(scenario, systems, rules, say)
                        progress.advance(task, len(systems))
        data = {
            "models": model_facts(entries),
            "rounds": self.rounds,
            "rules": self.model_dump(include=RULES)
            | {"offline_connections": OFFLINE_CONNECTIONS, "batch": BATCH},
            "limitations": LIMITATIONS,
            "rows": rows,
        }
        path = write_result("scenarios", data, folder=self.results_dir)
        Console().print(*scenarios_tables(rows))
        for limitation in LIMITATIONS:
            print(f"- {limitation}")
        kept = (
            "system",
            "model",
            "scenario",
            "figure",
            "unit",
            "ratio",
            "p50_ms",
            "p90_ms",
            "p99_ms",
            "queries",
        )
        short = [{name: row.get(name) for name in kept} for row in rows]
        print(json.dumps({"result": str(path), "rows": short}))

    def _rules(self) -> Rules:
        return Rules(
            seconds=self.seconds,
            rounds=self.rounds,
            samples=self.samples,
            longest_s=self.longest_seconds,
            seed=self.seed,
            search=Settings(
                bound_ms=self.bound_ms,
                seconds=self.probe_seconds,
                least=self.probe_queries,
                longest_s=self.longest_seconds / 3,
                confirmations=self.confirmations,
            ),
        )

    def _services(self) -> list[str]:
        return ["service"] if self.url else list(self.executor)

    def _open(self, name: str, entries: dict[str, ModelEntry], stack: ExitStack) -> list[System]:
        """Open the system of this name, once for each model."""
        if name == "session":
            return [self._open_session(model, entry) for model, entry in entries.items()]
        flags = ["--api-servers", str(self.api_servers)] if self.api_servers else []
        url = self.url or stack.enter_context(running_service(self.models_dir, "--executor", name, *flags))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="distillery-scenarios-")))
        bodies: dict[int, BodyKind] = {1: self.single, 8: f"{self.several}-8", 64: f"{self.several}-64"}  # type: ignore[dict-item]
        return [
            ServedSystem(
                {
                    samples: service_workload(url, model, body, server=name)
                    for samples, body in bodies.items()
                },
                folder,
                path=entry.path,
                connections=self.connections,
                limit_s=self.longest_seconds,
            )
            for model, entry in entries.items()
        ]

    def _open_session(self, model: str, entry: ModelEntry) -> SessionSystem:
        session = open_session(entry.path)
        return SessionSystem(
            model,
            lambda images: session.run(["probabilities"], {"image": images})[0],
            threads=self.threads,
            limit_s=self.longest_seconds,
        )


def _progress() -> Progress:
    """A bar that is drawn between the runs only: a thread that draws during one would be measured, too."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, transient=True, auto_refresh=False)


def _say(progress: Progress, task: TaskID, name: str, what: str) -> None:
    progress.update(task, description=f"{name}: {what}", refresh=True)
