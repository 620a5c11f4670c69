"""Base class of the benchmark commands: measure, keep the result in a file, print it; and settings they share."""

import json
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.load.run import Tool
from benchmarks.report.markdown import Source, fill
from benchmarks.results.files import RESULTS, read_result, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models, speed_models
from benchmarks.systems.servers import Executor, running_service
from distillery import Command
from distillery.files import require_writable
from serving.model.repository import ModelEntry

WIDTH = 140
"""Columns of the tables, at least: a narrower terminal wraps lines, which loses nothing."""


class Bench(Command):
    """A benchmark: a derived class measures, and a template in `benchmarks/report` lays out the result.

    Prints the section that the documents show and, last, one line of JSON.
    """

    group = "result"
    limitations: ClassVar[Sequence[str]] = ()
    """What the figures do not show; kept with them."""

    results_dir: Path = Field(RESULTS, description="folder of the result files")

    @property
    def kind(self) -> str:
        """The kind of the result file."""
        return type(self).__name__.lower()

    @property
    def template(self) -> str:
        """The template in `benchmarks/report/templates` that shows the result."""
        return self.kind.replace("_", "-")

    @abstractmethod
    def measure(self) -> dict[str, Any]:
        """Return what was measured, as JSON; `rows` if it has some. Raises `BenchmarkError`."""

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return what the last line of output has of the result: the rows without raw rounds and histograms."""
        raw = {"rounds", "histogram", "search"}
        return {"rows": [{key: row[key] for key in row if key not in raw} for row in data["rows"]]}

    def run(self) -> None:
        """Measure, keep, print the section that the documents show, and last one line of JSON."""
        require_writable(self.results_dir)
        warn_if_busy()
        data = self.measure()
        if self.limitations:
            data["limitations"] = list(self.limitations)
        self.publish(data)

    def publish(self, data: dict[str, Any]) -> str:
        """Write the result file, print the section and the line of JSON; return the section."""
        path = write_result(self.kind, data, folder=self.results_dir)
        text = fill(self.template, {self.kind: Source(read_result(path), str(path))})
        console = Console()
        console.width = max(console.width, WIDTH)
        with console.capture() as capture:
            console.print(Markdown(text))
        print(*(line.rstrip() for line in capture.get().splitlines()), sep="\n")
        print(json.dumps({"result": str(path), **self.summary(data)}))
        return text


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
            executor: stack.enter_context(
                running_service(self.models_dir, "--executor", executor, *flags)
            ).url
            for executor in self.executor
        }


class LoadSettings(Command):
    """The load over HTTP."""

    group = "load"

    connections: list[PositiveInt] = Field([1, 16], description="concurrent requests")
    seconds: PositiveFloat = Field(1.0, description="seconds per case and round; whole seconds with wrk")
    rounds: PositiveInt = Field(5, description="rounds; each measures every case once")
    tool: Tool = Field("auto", description="load generator; auto is wrk where it is installed, else python")
