"""Progress at 80 columns: a bar in a terminal, plain lines in a log file."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.support.training.trainings import SMALL
from training.commands.progress import SweepProgress, TrainingProgress
from training.loop.trainer import Job, Record

JOB = Job("student-alone", SMALL.model_copy(update={"epochs": 100}), 0)
FIGURES: Record = {"loss": 0.01234, "accuracy": 0.9961, "learning_rate": 3e-3, "images_per_second": 158_100.0}
RECORD = FIGURES | {"epoch": 12, "validation_errors": 74, "seconds": 3.2}
RESULT = {"validation_errors": 74, "epoch": 12, "seconds": 83.4}


def console(file: io.StringIO, *, terminal: bool) -> Console:
    return Console(
        file=file, width=80, force_terminal=terminal, force_interactive=terminal, color_system=None
    )


def shown(output: str) -> list[str]:
    """The lines that a terminal was sent, without the codes that move the cursor."""
    return [line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)) if line]


def test_a_terminal_of_80_columns_shows_name_epoch_bar_loss_accuracy_rate_and_remaining_time() -> None:
    file = io.StringIO()
    with TrainingProgress(console(file, terminal=True)) as progress:
        progress.started(JOB, epochs_done=0)
        progress.advanced(JOB, progress=50.5, figures=FIGURES)
    line = shown(file.getvalue())[-1]
    assert re.fullmatch(
        r"student-alone 51/100 ━+[╸╺]? + loss 0\.0123 acc 99\.6% 158k img/s eta \S+", line.rstrip()
    )
    assert line.index("loss") - line.index("━") > 10
    assert cell_len(line) <= 80


def test_a_finished_model_leaves_its_result_instead_of_its_bar() -> None:
    file = io.StringIO()
    with TrainingProgress(console(file, terminal=True)) as progress:
        progress.started(JOB, epochs_done=3)
        progress.advanced(JOB, progress=100, figures=FIGURES)
        progress.finished_epoch(JOB, RECORD)
        progress.finished(JOB, RESULT)
        before = file.tell()
    lines = shown(file.getvalue())
    assert "student-alone: resumed after epoch 3" in [line.rstrip() for line in lines]
    assert "student-alone 74 validation errors at epoch 12, 0:01:23" in [line.rstrip() for line in lines]
    assert "━" not in file.getvalue()[before:]


def test_a_log_file_gets_plain_lines_that_fit_80_columns() -> None:
    file = io.StringIO()
    with TrainingProgress(console(file, terminal=False), line_interval=0) as progress:
        progress.started(JOB, epochs_done=0)
        progress.advanced(JOB, progress=11.5, figures=FIGURES)
        progress.finished_epoch(JOB, RECORD)
        progress.finished(JOB, RESULT)
    assert file.getvalue() == (
        "student-alone epoch 12/100  loss 0.0123  74 validation errors  158k img/s  0:00:00\n"
        "student-alone 74 validation errors at epoch 12, 0:01:23\n"
    )


def test_a_log_file_gets_few_lines_of_a_fast_training_but_always_its_last_epoch() -> None:
    file = io.StringIO()
    with TrainingProgress(console(file, terminal=False), line_interval=3600) as progress:
        progress.started(JOB, epochs_done=0)
        for epoch in range(1, 101):
            progress.finished_epoch(JOB, RECORD | {"epoch": epoch})
    assert [line.split()[:3] for line in file.getvalue().splitlines()] == [
        ["student-alone", "epoch", "100/100"]
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_counted_steps_are_shown_up_to_the_last(terminal: bool) -> None:
    file = io.StringIO()
    with TrainingProgress(console(file, terminal=terminal), line_interval=3600) as progress:
        for done in range(4):
            progress.counted("student: corrupted digits", done, 3)
    lines = shown(file.getvalue())
    assert lines[-1].startswith("student: corrupted digits 3/3")
    assert all(cell_len(line) <= 80 for line in lines)


def test_a_trial_prints_nothing_but_what_its_sweep_prints() -> None:
    file = io.StringIO()
    with SweepProgress(console(file, terminal=False), line_interval=0) as progress:
        progress.started(JOB, epochs_done=0)
        progress.finished_epoch(JOB, RECORD)
        progress.finished(JOB, RESULT)
        progress.reused(JOB, RESULT)
        progress.print("trial   0")
    assert file.getvalue() == "trial   0\n"
