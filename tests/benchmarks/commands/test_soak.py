"""`distillery-bench soak`: what it notices, and a short run."""

import time
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.commands.soak import Sample, compare
from benchmarks.errors import BenchmarkError
from benchmarks.results.files import latest, read_result
from benchmarks.systems.soak import Events
from distillery import main


def samples(*changes: float) -> list[Sample]:
    """A run in which memory, descriptors, series and latency grow by these factors in the second half."""
    steady = (200.0, 80, 1000, 2.0)
    grown = tuple(
        type(value)(round(value * change, 6)) for value, change in zip(steady, changes, strict=True)
    )
    return [Sample(second, *(steady if second < 50 else grown)) for second in range(100)]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ((1, 1, 1, 1), None),
        ((1.05, 1.05, 1, 1.2), None),
        ((1.3, 1, 1, 1), "memory grew from 200 to 260 MiB"),
        ((1, 1.5, 1, 1), "open descriptors grew from 80 to 120"),
        ((1, 1, 1.001, 1), "the number of series changed from 1000 to 1001"),
        ((1, 1, 1, 2), "the latency grew from 2 to 4 ms"),
    ],
)
def test_growth_is_a_problem(changes: tuple[float, ...], problem: str | None) -> None:
    assert compare(samples(*changes)) == ([problem] if problem else [])


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(BenchmarkError, match="use more --minutes"):
        compare(samples(1, 1, 1, 1)[:2])


def test_failures_are_allowed_only_while_the_service_is_disturbed() -> None:
    events, start = Events(), time.monotonic()
    assert not events.disturbed(start, start)
    with events.disturbance():
        assert events.disturbed(time.monotonic(), time.monotonic())
    now = time.monotonic()
    assert events.disturbed(now + 0.5, now + 2)  # until a second later
    assert not events.disturbed(now + 1.5, now + 2)
    assert not events.disturbed(start - 2, start - 1)


@pytest.mark.slow
def test_a_service_survives_kills_and_bursts(model_repository: Path, tmp_path: Path) -> None:
    place = ("--models-dir", str(model_repository), "--models", "student", "--results-dir", str(tmp_path))
    flags = ("--minutes", "0.5", "--kill-every", "6", "--burst-every", "12", "--burst-connections", "100")
    main("distillery-bench", COMMANDS, arguments=["soak", *place, *flags])
    path = latest("soak", folder=tmp_path)
    assert path
    result = read_result(path)["data"]
    problems = [problem for problem in result["problems"] if "latency" not in problem]  # of a busy machine
    assert problems == []
    assert result["counts"]["correct"] > 100
    assert result["counts"]["hostile"] > 20
    assert len(result["recovery_s"]) >= 2
