"""What a person sees of a sweep: a bar for the trials and one for the trial at work, a line for each that is done."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from training.loop.trainer import Job, Record
from training.sweep.search import Result


class SweepProgress:
    """The observer of `training.sweep.search`, as a context manager."""

    def __init__(self, trials: int, *, done: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars = Progress(
            TextColumn("{task.description:<6}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._trials = self._bars.add_task("trials", total=trials, completed=done, figures="")
        self._epochs = self._bars.add_task("epochs", total=None, figures="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job, *, epochs_done: int) -> None:
        """Start the bar of epochs anew."""
        self._bars.reset(self._epochs, total=job.model.epochs, completed=epochs_done)
        if epochs_done:
            self.console.print(f"{job.name}: going on after epoch {epochs_done}")

    def advanced(self, job: Job, *, progress: float, figures: Record) -> None:  # noqa: ARG002
        """Show how fast it goes; a bar that counts moves by whole epochs."""
        self._bars.update(self._epochs, figures=f"{figures['images_per_second']:,.0f} images/s")

    def finished_epoch(self, job: Job, record: Record) -> None:  # noqa: ARG002
        """Move the bar of epochs."""
        self._bars.update(self._epochs, completed=record["epoch"])

    def reused(self, job: Job, card: dict[str, Any]) -> None:
        """Nothing to show: a trial that needs no training is told like any other."""

    def finished(self, job: Job, card: dict[str, Any]) -> None:
        """Nothing to show: its result follows."""

    def tried(self, result: Result, *, done: int) -> None:
        """Say what came out."""
        self._bars.update(self._trials, completed=done)
        settings = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())
        self.console.print(
            f"trial {result.number:>3}  {result.errors:>4} errors  {result.multiply_adds:>9,} multiply-adds  "
            f"{settings}",
            soft_wrap=True,
        )
