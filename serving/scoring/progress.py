"""Progress of bulk scoring: a bar in a terminal, a line every ten seconds elsewhere.

━━━━━━━━━━━━━━━━━━━━━━━ 1,234,560 images · 12 set aside · 98.7k img/s · eta 0:01:23
"""

import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

LINE_INTERVAL_S = 10.0
"""Between lines where there is no terminal."""
_REDRAW_S = 0.1


class ScoringProgress:
    """A context manager. `total` are the bytes of all inputs."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.scored = self.rejected = 0
        self._began = self._shown = time.monotonic()
        fixed = Column(no_wrap=True)
        self._bar = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.description}", table_column=fixed),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True, table_column=fixed),
            console=self.console,
            expand=True,
            disable=not self.console.is_interactive,
        )
        self._task = self._bar.add_task("", total=max(total, 1))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.update(self._task, description=self.text)
        self._bar.stop()

    def advance(self, scored: int, rejected: int) -> None:
        """Count items of this run."""
        self.scored += scored
        self.rejected += rejected
        interval = _REDRAW_S if self.console.is_interactive else LINE_INTERVAL_S
        if (now := time.monotonic()) - self._shown >= interval:
            self._shown = now
            self._bar.update(self._task, description=self.text)
            if not self.console.is_interactive:
                self.console.print(self.text, soft_wrap=True, highlight=False)

    def finished(self, size: float) -> None:
        """Move the bar by the bytes of a part, scored now or before."""
        self._bar.advance(self._task, size)

    @property
    def text(self) -> str:
        """What this run has done so far."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = self.scored / seconds
        figures = f"{rate:.0f}" if rate < 1000 else f"{rate / 1000:.3g}k"
        aside = f" · {self.rejected:,} set aside" if self.rejected else ""
        return f"{self.scored:,} images{aside} · {figures} img/s · {timedelta(seconds=int(seconds))}"
