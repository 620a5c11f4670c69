"""The demo's table and its limits, from given numbers; `.ci/run` runs the demo itself."""

import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.commands.demo import (
    CONTROL,
    MAX_ERRORS,
    MIN_SAVED,
    Demo,
    _in_background,
    check_errors,
    demo_table,
)
from benchmarks.errors import BenchmarkError
from benchmarks.results.models import model_facts, select_models
from benchmarks.systems.servers import running_service

SPEED = {"teacher": 1.0, "student": 1.04, "student-int8": 2.0, "fast-int8": 12.0}
LOAD = [1.0, 0.4, 0.9, 0.7, 1.0, 0.8, 0.3, 1.0]
NOISE = {"student": [1.0, 0.9, 1.1, 0.8, 1.2, 1.0, 1.1, 0.9]}


def facts(**errors: int) -> dict[str, dict[str, Any]]:
    counts = {"teacher": 80, "student": 85, "student-int8": 86, "fast-int8": 95, CONTROL: 135} | errors
    fp32 = {"parameters": 1_280_010, "size_bytes": 5_110_000}
    sizes = {
        "teacher": {"parameters": 2_400_010, "size_bytes": 9_600_000},
        "student-int8": fp32 | {"size_bytes": 1_300_000},
        "fast-int8": {"parameters": 235_914, "size_bytes": 241_700},
    }
    return {name: sizes.get(name, fp32) | {"test_errors": count} for name, count in counts.items()}


def rates_of(model: str) -> list[float]:
    noise = NOISE.get(model, [1.0] * 8)
    return [10_000 * SPEED[model] * load * factor for load, factor in zip(LOAD, noise, strict=True)]


def http_rows() -> list[dict[str, Any]]:
    return [
        {"model": model, "connections": connections, "p50_ms": 0.36, "requests_per_s": 12_345, "cpu_us": 97.3}
        | {
            "rounds": {
                "requests_per_s": rates_of(model),
                "p50_ms": [1 / rate for rate in rates_of(model)],
                "cpu_us": [100 / SPEED[model]] * 8,
            }
        }
        for model in SPEED
        for connections in (1, 16)
    ]


def table_lines(width: int = 80) -> list[str]:
    sessions = [
        {"model": model, "p50_us": 123.4, "rounds_p50_us": [1 / rate for rate in rates_of(model)]}
        for model in SPEED
    ]
    console = Console(width=width)
    with console.capture() as capture:
        console.print(demo_table(facts(), sessions, http_rows()))
    return [line.rstrip() for line in capture.get().splitlines()]


def rows_below(label: str, lines: list[str]) -> list[str]:
    """The rows with the ratios of a figure and their intervals."""
    number = next(number for number, line in enumerate(lines) if line.startswith(label))
    return lines[number + 1 : number + 3]


def test_the_table_fits_80_columns_without_cut_or_wrapped_cells() -> None:
    lines = table_lines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert table_lines(200) == lines


def test_a_difference_that_the_rounds_do_not_decide_is_marked() -> None:
    lines = table_lines()
    ratio, interval = rows_below("requests/s", lines)
    assert ratio.split() == ["×", "teacher", "≈", "1.04×", "2.00×", "12.0×"]
    assert interval.split() == ["interval", "0.94–1.14", "2.00–2.00", "12.0–12.0"]


def test_cpu_time_per_prediction_is_compared() -> None:
    lines = table_lines()
    ratio, interval = rows_below("CPU per prediction", lines)
    assert ratio.endswith("12.0×")
    assert interval.endswith("12.0–12.0")


def test_the_errors_are_shown_with_their_limits() -> None:
    assert check_errors(facts()) == (
        f"test errors: teacher 80 (limit {MAX_ERRORS['teacher']}), student 85 (limit {MAX_ERRORS['student']}); "
        f"saved by distillation: 50 (at least {MIN_SAVED})"
    )


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({"teacher": 111}, "teacher has 111 test errors, at most 110 are expected"),
        ({"student": 116}, "student has 116 test errors, at most 115 are expected"),
        (
            {CONTROL: 109},
            "distillation saved 24 test errors .109 without a teacher, 85 distilled.*at least 25",
        ),
    ],
)
def test_too_many_errors_are_an_error(errors: dict[str, int], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        check_errors(facts(**errors))


@pytest.mark.slow
def test_the_models_of_a_running_service_are_measured(demo_repository: Path) -> None:
    entries = select_models(demo_repository)
    with running_service(demo_repository, "--api-servers", "1") as service:
        sessions, http = Demo(seconds=0.05, rounds=2)._measure(service.url, entries)
    assert {row["model"] for row in http} == {row["model"] for row in sessions["rows"]} == set(SPEED)
    assert len(demo_table(model_facts(entries), sessions["rows"], http).rows) == len(table_lines()) - 3


def test_a_stage_in_the_background_runs_beside_the_block_and_prints_its_output_after_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with _in_background(Console(), ["platform", "--terse"]):
        print("first")
        time.sleep(0.1)
    output = capsys.readouterr().out
    assert output.startswith("first\npython -m platform --terse")
    assert len(output.splitlines()) == 3


def test_a_stage_that_fails_in_the_background_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(
            BenchmarkError, match="python -m no_such_stage failed with status 1; see its output above"
        ),
        _in_background(Console(), ["no_such_stage"]),
    ):
        pass
    assert "No module named no_such_stage" in capsys.readouterr().out
