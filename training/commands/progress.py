"""What a person sees while networks train: a bar for each in a terminal, a line for each epoch elsewhere."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from training.loop.trainer import Job, Record

LINES = 20


class TrainingProgress:
    """The observer of `training.runs.pipeline`, as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars = Progress(
            TextColumn("{task.description:<13}"),
            TextColumn("epoch {task.fields[epoch]:>3}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job, *, epochs_done: int) -> None:
        """Show a new bar."""
        epochs = job.model.epochs
        self._tasks[job.name] = self._bars.add_task(
            job.name, total=epochs, completed=epochs_done, epoch=epochs_done, epochs=epochs, figures=""
        )
        if epochs_done:
            self.console.print(f"{job.name}: going on after epoch {epochs_done}")

    def advanced(self, job: Job, *, progress: float, figures: Record) -> None:
        """Move the bar."""
        self._bars.update(
            self._tasks[job.name],
            completed=progress,
            epoch=-int(-progress // 1),
            figures=_figures(figures),
        )

    def finished_epoch(self, job: Job, record: Record) -> None:
        """Say how the epoch went, where no bar has shown it; of a long training not every epoch."""
        epochs = job.model.epochs
        worth_a_line = record["epoch"] % max(1, epochs // LINES) == 0 or record["epoch"] == epochs
        if not self.console.is_terminal and worth_a_line:
            self.console.print(
                f"{job.name:<13} epoch {record['epoch']:>3}/{epochs}  {_figures(record)}"
                f"  validation errors {record['validation_errors']}",
                soft_wrap=True,
            )

    def reused(self, job: Job, card: dict[str, Any]) -> None:
        """Say that nothing had to be done."""
        self.console.print(f"{job.name}: trained before, {_result(card)}", soft_wrap=True)

    def finished(self, job: Job, card: dict[str, Any]) -> None:
        """Say what came out."""
        self.console.print(f"{job.name}: {_result(card)}, {card['seconds']:.0f} s", soft_wrap=True)


def _figures(record: Record) -> str:
    return (
        f"loss {record['loss']:.4f}  accuracy {record['accuracy']:7.2%}  "
        f"lr {record['learning_rate']:.1e}  {record['images_per_second']:,.0f} images/s"
    )


def _result(card: dict[str, Any]) -> str:
    return f"{card['validation_errors']} validation errors at epoch {card['epoch']}"
