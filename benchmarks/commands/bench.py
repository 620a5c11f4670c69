"""Base class of the benchmark commands: measure, keep the result in a file, print it."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveInt
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models, speed_models
from benchmarks.systems.servers import Executor, running_service
from distillery import Command
from serving.model.repository import ModelEntry


class Bench(Command):
    """A benchmark. A derived class measures and lays out its result; the rest is here."""

    group = "result"
    limitations: ClassVar[Sequence[str]] = ()
    """What the figures do not show; kept with them and printed."""

    results_dir: Path = Field(RESULTS, description="folder of the result files")

    @property
    def kind(self) -> str:
        """The kind of the result file."""
        return type(self).__name__.lower()

    @abstractmethod
    def measure(self) -> dict[str, Any]:
        """Return what was measured, as JSON; `rows` if it has some. Raises `BenchmarkError`."""

    @abstractmethod
    def tables(self, data: dict[str, Any]) -> Iterable[RenderableType]:
        """Lay out the result for the terminal."""

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return what the last line of output has of the result: the rows without raw rounds and histograms."""
        raw = {"rounds", "histogram"}
        return {"rows": [{key: row[key] for key in row if key not in raw} for row in data["rows"]]}

    def run(self) -> None:
        """Measure, keep, print tables and limitations, and last one line of JSON."""
        warn_if_busy()
        data = self.measure()
        if self.limitations:
            data["limitations"] = list(self.limitations)
        path = write_result(self.kind, data, folder=self.results_dir)
        Console().print(*self.tables(data), soft_wrap=True)
        for limitation in self.limitations:
            print(f"- {limitation}")
        print(json.dumps({"result": str(path), **self.summary(data)}))


class RepositorySettings(Command):
    """The models to measure."""

    group = "models"

    models_dir: Path = Field(Path("models"), description="model repository")
    models: list[str] = Field(
        [], description="models to measure; by default one of each architecture and precision"
    )

    def entries(self) -> dict[str, ModelEntry]:
        """Return the models by name, all of them by default. Raises `BenchmarkError` for an unknown name."""
        return select_models(self.models_dir, self.models)

    def measured(self, entries: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
        """Return the models to measure: those named, or one of each architecture and precision."""
        chosen = self.models or dict.fromkeys(speed_models(model_facts(entries)).values())
        return {name: entries[name] for name in chosen}


class UrlSettings(Command):
    """The service to measure."""

    group = "service"

    url: str | None = Field(
        None,
        pattern=r"^http://[^/@\s]+/?$",
        description="a running service, such as http://127.0.0.1:8000; started here by default",
    )


class ServiceSettings(UrlSettings, RepositorySettings):
    """The service to measure: one that is running, or one started here per executor."""

    group = "service"

    executor: list[Executor] = Field(
        ["inprocess", "workers"], description="executors to start the service with"
    )
    api_servers: PositiveInt | None = Field(None, description="API processes; one per core by default")

    def start_services(self, stack: ExitStack) -> dict[str, str]:
        """Start the service once per executor until `stack` is closed; return the URLs by name."""
        if self.url:
            return {"service": self.url}
        flags = ["--api-servers", str(self.api_servers)] if self.api_servers else []
        return {
            executor: stack.enter_context(running_service(self.models_dir, "--executor", executor, *flags))
            for executor in self.executor
        }


def progress_bar() -> Progress:
    """Return a progress bar with the current case, the cases done and the time left."""
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        transient=True,
    )
