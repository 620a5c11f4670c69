"""`distillery-bench top`: a running service in the terminal, straight from its metrics."""

import json
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, SecretStr
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from benchmarks.errors import BenchmarkError
from benchmarks.monitor.scrape import Growth, Scrape, Service
from benchmarks.monitor.screen import screen
from benchmarks.monitor.state import State, state_of
from distillery import Command, Metavar

HISTORY = 30
"""Intervals of the throughput over time."""
WIDTH = 150
"""Columns of the table where the output is no terminal."""


class Top(Command):
    """Show a running service in the terminal: each model against the teacher.

    Everything is from /metrics of the service, without Prometheus: rates, durations and speedups are those of the last
    interval, agreement with the teacher that since the service's start. CPU time per image is the model's runs, and for
    each request an equal part of all other CPU time. A dot stands where there was no traffic. Ctrl-C ends it.
    """

    group = "service"
    examples = (
        "distillery-bench top",
        "distillery-bench top --once",
        "distillery-bench top --as-json --interval 10 --url https://example.org",
    )

    url: str = Field(
        "http://127.0.0.1:8000",
        pattern=r"^https?://[^@\s]+$",
        description="service, also behind a path prefix",
    )
    interval: Annotated[PositiveFloat, Metavar("SECONDS")] = Field(
        2.0, le=3600, description="seconds between two looks"
    )
    once: bool = Field(False, description="print the state after one interval, and end")
    as_json: bool = Field(False, description="print one line of JSON after one interval, and end")
    api_key: SecretStr | None = Field(
        None, description="key of scope metrics, if the service needs one; better set DISTILLERY_API_KEY"
    )
    ca_file: Annotated[Path | None, Metavar("FILE")] = Field(
        None, description="certificates of the authority to trust, for https (PEM)"
    )

    def run(self) -> None:
        """Show the states until Ctrl-C, or print one."""
        key = self.api_key.get_secret_value() if self.api_key else None
        with closing(Service(self.url, ca_file=self.ca_file, api_key=key)) as service:
            if self.as_json:
                print(json.dumps(self._next(service, service.scrape())[1].as_json()))
            elif self.once:
                console = Console()
                console.width = max(console.width, WIDTH) if not console.is_terminal else console.width
                console.print(screen(self.url, self._next(service, service.scrape())[1], {}))
            else:
                with suppress(KeyboardInterrupt):
                    self._watch(service)

    def _next(self, service: Service, before: Scrape) -> tuple[Scrape, State]:
        """Wait for an interval; return the scrape at its end and what happened in it."""
        time.sleep(self.interval)
        after = service.scrape()
        return after, state_of(Growth(before, after))

    def _watch(self, service: Service) -> None:
        history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))
        before = service.scrape()
        shown = Group(Text(f"{self.url}: the first figures come after {self.interval:g} s"))
        with Live(shown, screen=True, auto_refresh=False) as live:
            for state in self._states(service, before, live):
                for name, model in state.models.items():
                    history[name].append(model.images_per_s)
                live.update(screen(self.url, state, history), refresh=True)

    def _states(self, service: Service, before: Scrape, live: Live) -> Iterator[State]:
        """Yield the state after each interval; an error is shown until the service responds again."""
        while True:
            try:
                before, state = self._next(service, before)
            except BenchmarkError as error:
                live.update(Text(f"{error}; trying again every {self.interval:g} s"), refresh=True)
            else:
                yield state
