"""Progress of training and evaluation: a bar in a terminal, plain lines in a log file.

In a terminal of 80 columns:

    teacher       48 validation errors at epoch 14, 0:00:58
    student-alone 12/20 ━━━━━━━━━━━━━━━       loss 0.0123 acc 99.6% 58.1k img/s eta 00:23

Anywhere else a line per epoch, at most one every two seconds, and the last epoch of every model:

    student-alone epoch 12/20  loss 0.0123  74 validation errors  58.1k img/s  0:00:34
"""

import time
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from training.loop.trainer import Job, Observer, Record

LINE_INTERVAL_S = 2.0
NAME_WIDTH = 13
"""`student-alone`."""


class TrainingProgress(Observer):
    """Show the training of one model after the other; a context manager.

    Without an interactive terminal it prints lines, `line_interval` seconds apart or more.
    """

    def __init__(self, console: Console | None = None, *, line_interval: float = LINE_INTERVAL_S) -> None:
        self.console = console or Console()
        self.line_interval = line_interval
        fixed = Column(no_wrap=True)
        self._bars = Progress(
            TextColumn(f"{{task.description:<{NAME_WIDTH}}}", table_column=fixed),
            TextColumn("{task.fields[count]}", table_column=fixed),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[figures]}", table_column=fixed),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True, table_column=fixed),
            console=self.console,
            expand=True,
            disable=not self.console.is_interactive,
        )
        self._tasks: dict[str, TaskID] = {}
        self._model: str | None = None
        self._began = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, soft_wrap=True, highlight=False)

    def started(self, job: Job, *, epochs_done: int) -> None:
        """Replace the bar of the model before by that of `job`."""
        self._remove_model()
        self._model, self._began = job.name, time.monotonic()
        self._show(job.name, epochs_done, job.model.epochs)
        if epochs_done:
            self.print(f"{job.name}: resumed after epoch {epochs_done}")

    def advanced(self, job: Job, *, progress: float, figures: Record) -> None:
        """Move the bar."""
        text = (
            f"loss {figures['loss']:.4f} acc {figures['accuracy']:.1%} {_rate(figures['images_per_second'])}"
        )
        self._show(job.name, progress, job.model.epochs, figures=text)

    def finished_epoch(self, job: Job, record: Record) -> None:
        """Print a line where there is no bar."""
        last = record["epoch"] == job.model.epochs
        if not self._line_is_due(last=last):
            return
        self.print(
            f"{job.name:<{NAME_WIDTH}} epoch {record['epoch']:.0f}/{job.model.epochs}  loss {record['loss']:.4f}  "
            f"{record['validation_errors']:.0f} validation errors  {_rate(record['images_per_second'])}  "
            f"{_elapsed(time.monotonic() - self._began)}"
        )

    def reused(self, job: Job, metadata: dict[str, Any]) -> None:
        """Print the result of an earlier training."""
        self.print(f"{job.name}: trained before, {_result(metadata)}")

    def finished(self, job: Job, metadata: dict[str, Any]) -> None:
        """Replace the bar by the result."""
        self._remove_model()
        self.print(f"{job.name:<{NAME_WIDTH}} {_result(metadata)}, {_elapsed(metadata['seconds'])}")

    def counted(self, task: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of `task` are done, whatever these are."""
        self._show(task, done, total)
        if self._line_is_due(last=done == total):
            self.print(f"{task} {done}/{total}")

    def _show(self, task: str, done: float, total: int, *, figures: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, count="", figures="")
        step = min(total, int(done) + 1) if figures else int(done)  # figures are those of a running epoch
        self._bars.update(self._tasks[task], completed=done, count=f"{step}/{total}", figures=figures)

    def _remove_model(self) -> None:
        if self._model in self._tasks:
            self._bars.remove_task(self._tasks.pop(self._model))

    def _line_is_due(self, *, last: bool) -> bool:
        now = time.monotonic()
        if self.console.is_interactive or (now - self._printed < self.line_interval and not last):
            return False
        self._printed = now
        return True


class SweepProgress(TrainingProgress):
    """Show trials, and the training of the current one; the results of trials are printed by the command."""

    def finished_epoch(self, job: Job, record: Record) -> None:
        """Print nothing: a trial has a line of its own."""

    def reused(self, job: Job, metadata: dict[str, Any]) -> None:
        """Print nothing, as for every trial."""

    def finished(self, job: Job, metadata: dict[str, Any]) -> None:  # noqa: ARG002
        """Remove the bar."""
        self._remove_model()


def _rate(images_per_second: float) -> str:
    if images_per_second < 1000:
        return f"{images_per_second:.0f} img/s"
    return f"{images_per_second / 1000:.3g}k img/s"


def _elapsed(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def _result(metadata: dict[str, Any]) -> str:
    result = f"{metadata['validation_errors']} validation errors at epoch {metadata['epoch']}"
    log = metadata.get("request_log", {})
    if "errors" in log:
        errors = f"{log['errors']} (teacher: {log['errors_of_teacher']})"
        result += f", {errors} errors on {log['validation']} held-out images of the log"
    if log and not log["teacher_unlabelled"]:
        result += (
            f"; unlabelled ones not used: the teacher is wrong on {log['teacher_errors']} of {log['teacher_checked']} "
            "labelled ones"
        )
    return result
