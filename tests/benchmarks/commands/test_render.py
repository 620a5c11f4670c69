"""Tables and figures of the documents, rendered from given results."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.commands.accuracy import accuracy_kind
from benchmarks.commands.seeds import mean_of
from benchmarks.errors import BenchmarkError
from benchmarks.report.markdown import Source, fill
from benchmarks.report.rows import compare_models
from benchmarks.results.files import read_result
from benchmarks.results.ratio import LEGEND
from tests.support.documents.generated import MARKERS, document, keep, render

BEGIN, END = MARKERS["results"]
FACTS = {"version": "1", "precision": "fp32", "test_accuracy": 0.99}
STUDENT = {**FACTS, "architecture": "784-800-800-10", "parameters": 1_000_000, "size_bytes": 2_000_000}
MODELS = {
    "student": {**STUDENT, "sha256": "b" * 64, "test_errors": 100},
    "student-alone": {**STUDENT, "sha256": "c" * 64, "test_errors": 140},
    "student-int8": {**STUDENT, "sha256": "d" * 64, "test_errors": 100, "precision": "int8"},
    "teacher": {**FACTS, "sha256": "a" * 64, "architecture": "784-1200-1200-10", "parameters": 2_000_000}
    | {"size_bytes": 8_000_000, "test_errors": 90},
}
SPEED = {"student": 4.0, "student-alone": 4.1, "student-int8": 1.0, "teacher": 1.0}
ROUNDS = [1.0, 0.5, 0.9, 1.0, 0.8]
"""Background load, which slows all models of a round."""
NOISE = {"student-int8": [1.1, 0.9, 1.2, 0.9, 1.0]}
"""A model that is as fast as the teacher, and now and then appears faster or slower."""


def rounds_of(model: str, figure: float) -> list[float]:
    """A figure in five rounds whose median is the figure itself, as the rates of `model` vary."""
    return [figure * load * noise for load, noise in zip(ROUNDS, NOISE.get(model, [1.0] * 5), strict=True)]


def session_data() -> dict[str, Any]:
    rows = [
        {"model": model, "threads": 1, "batch": batch, "images_per_s": 2500 * speed}
        | {"p50_us": 400 * batch / speed, "p99_us": 500 * batch / speed}
        | {"rounds_p50_us": [1 / rate for rate in rounds_of(model, speed)]}
        for model, speed in SPEED.items()
        for batch in (1, 64)
    ]
    return {"models": MODELS, "rounds": 5, "rows": rows}


def http_data() -> dict[str, Any]:
    rows = [
        {"server": server, "model": model, "body": body, "connections": connections, "tool": "wrk"}
        | {"p50_ms": connections / speed, "p99_ms": 2 * connections / speed}
        | {"requests_per_s": 1000 * speed, "images_per_s": (64_000 if body == "binary-64" else 1000) * speed}
        | {
            "rounds": {
                "requests_per_s": rounds_of(model, speed),
                "p50_ms": [1 / rate for rate in rounds_of(model, speed)],
                "cpu_us": [90.0 / speed] * 5,
            }
        }
        | {"cpu_us": 90.0 / speed}
        for server in ("workers", "inprocess")
        for model, speed in SPEED.items()
        for body in ("json", "binary-64")
        for connections in (1, 16)
    ]
    peer = {**rows[0], "server": "litserve-first-example", "connections": 16, "requests_per_s": 831.0}
    return {
        "models": MODELS,
        "rounds": 5,
        "generator": "wrk 4.1.0",
        "limitations": ["it is made up"],
        "rows": [*rows, peer],
    }


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    return document(tmp_path, "results")


def measured(readme: Path) -> None:
    keep(readme, "session", session_data())
    keep(readme, "http", http_data())


def test_ratios_are_taken_within_a_round_and_sizes_are_exact() -> None:
    teacher, noisy, student, control = compare_models(session_data(), http_data())
    assert [row["model"] for row in (teacher, noisy, student, control)] == [
        "teacher",
        "student-int8",
        "student",
        "student-alone",
    ]
    assert (student["fewer_parameters"], student["smaller"]) == (2.0, 4.0)
    for figure in ("session_p50", "http_p50", "requests_per_s", "images_per_s"):
        assert teacher[figure] is None
        assert str(student[figure]) == "4.00× (4.00–4.00)"
        assert not noisy[figure].decided
    assert (student["session"]["p50_us"], student["calm"]["p50_ms"]) == (100, 0.25)
    assert student["large"]["images_per_s"] == 256_000


def test_a_network_trained_with_and_without_a_teacher_has_one_speed() -> None:
    rows = {row["model"]: row for row in compare_models(session_data(), http_data())}
    assert rows["student-alone"]["timed_as"] == "student"
    for figure in ("session", "calm", "busy", "requests_per_s"):
        assert rows["student-alone"][figure] == rows["student"][figure]


def test_results_of_different_models_are_not_compared() -> None:
    other = deepcopy(session_data())
    other["models"]["student"]["sha256"] = "e" * 64
    with pytest.raises(BenchmarkError, match=r"student eeeeeeee.*student bbbbbbbb.*measure both again"):
        compare_models(other, http_data())


def test_a_figure_that_was_not_measured_is_an_error() -> None:
    http = http_data()
    http["rows"] = [row for row in http["rows"] if row["connections"] == 16]
    with pytest.raises(BenchmarkError, match=r"no figure for .*, connections 1: measure again"):
        compare_models(session_data(), http)


def test_a_section_is_replaced_and_the_rest_of_the_document_is_kept(readme: Path) -> None:
    measured(readme)
    assert render(readme) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# Before\n\n{BEGIN}\n| model | parameters ")
    assert text.endswith(f"it is made up.\n{END}\n\nAfter\n")
    assert "old" not in text
    student = next(line for line in text.splitlines() if line.startswith("| `student` 784-800-800-10 fp32 |"))
    assert student.split(" | ")[1:] == [
        "1.00 M, 2.0×",
        "2.00 MB, 4.0×",
        "100 (99.00%)",
        "100 / 125 µs, 4.00× (4.00–4.00)",
        "0.25 / 0.50 ms, 4.00× (4.00–4.00)",
        "4,000, 4.00× (4.00–4.00)",
        "22 µs, 4.00× (4.00–4.00)",
        "256,000, 4.00× (4.00–4.00) |",
    ]
    control = next(line for line in text.splitlines() if line.startswith("| `student-alone` "))
    assert control.endswith(
        "| 140 (99.00%) | as `student` | as `student` | as `student` | as `student` | as `student` |"
    )
    assert "1,000, ≈ 1.00× (0.90–1.20)" in text  # the model that is as fast as the teacher
    assert LEGEND in text
    assert "| litserve-first-example |  |  | 831 (0.25 / 0.50 ms) |" in text
    assert text.index("| inprocess |") < text.index("| litserve-first-example |") < text.index("| workers |")
    assert "(benchmarks/results/http-" in text
    assert "; medians of 5 rounds; load by wrk 4.1.0; " in text
    assert "(docs/latency.png)" in text


def test_the_figure_is_drawn_and_names_its_sources(readme: Path) -> None:
    measured(readme)
    assert render(readme) == 0
    with Image.open(readme.parent / "docs/latency.png") as figure:
        assert min(figure.size) > 200
        assert len(set(figure.convert("L").tobytes())) > 50
        assert figure.info["Source"].split()[0].startswith("session-")


def test_check_fails_until_document_and_figure_show_the_newest_results(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(readme)
    assert render(readme, "--check") == 1
    error = capsys.readouterr().err
    assert "latency.png (not of session-" in error
    assert "README.md; run distillery-bench render" in error
    assert "old" in readme.read_text(encoding="utf-8")  # nothing was changed
    assert render(readme) == 0
    assert render(readme, "--check") == 0
    readme.write_text(readme.read_text(encoding="utf-8").replace("831", "138"), encoding="utf-8")
    assert render(readme, "--check") == 1
    assert render(readme) == 0
    (readme.parent / "docs/latency.png").unlink()
    assert render(readme, "--check") == 1


@pytest.mark.parametrize("kind", ["session", "http"])
def test_a_missing_result_is_an_error_with_the_command_that_measures_it(
    readme: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(readme)
    for path in (readme.parent / "benchmarks/results").glob(f"{kind}-*"):
        path.unlink()
    assert render(readme) == 1
    assert f"run distillery-bench {kind}" in capsys.readouterr().err


def test_a_document_without_markers_is_an_error_and_left_unchanged(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(readme)
    readme.write_text("# Mine\n", encoding="utf-8")
    assert render(readme) == 1
    assert BEGIN in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == "# Mine\n"


def test_the_rows_of_a_result_are_laid_out_for_the_command_that_measured_them(readme: Path) -> None:
    def section(template: str, kind: str, data: dict[str, Any]) -> str:
        return fill(template, {kind: Source(read_result(keep(readme, kind, data)), "the-link")})

    saved = {"saved": {"student": summary([50, 52, 51])}}
    errors = section("test-errors", accuracy_kind("quick"), accuracy_data() | saved)
    assert "| student | 90, 90, 93 | 91.0 ± 4.3 |" in errors
    assert "| student, saved by distillation | 50, 52, 51 | 51.0 ± 2.5 |" in errors
    assert "Test errors of 10,000, recipe quick, seeds 0, 1, 2." in errors
    http = http_data()
    http["rows"] = [row | {"speedup": 4.0 if row["model"] == "student" else None} for row in http["rows"]]
    lines = section("http", "http", http).splitlines()
    start = lines.index("**binary-64, connections: 16**")
    assert "| inprocess | student | 256,000 | 4.00 | 8.00 | 22 | 4.0× |" in lines[start:]
    assert "| inprocess | teacher | 64,000 | 16.00 | 32.00 | 90 |  |" in lines[start:]


def headline(folder: Path, accuracy: dict[str, Any]) -> list[str]:
    readme = document(folder, "headline")
    measured(readme)
    keep(readme, accuracy_kind("quick"), accuracy)
    assert render(readme) == 0
    return readme.read_text(encoding="utf-8").splitlines()[2:]


def test_the_headline_has_teacher_student_and_int8_in_four_rows(tmp_path: Path) -> None:
    lines = headline(tmp_path, accuracy_data())
    assert lines[1] == "|  | `teacher` | `student` | `student-int8` | gain |"
    errors, file, latency, throughput = (line.split(" | ", 1)[1] for line in lines[3:7])
    assert errors == "82.0 ± 5.0 | 91.0 ± 4.3 | 92.0 ± 4.3 | 51.0 ± 2.5 fewer than without teacher |"
    assert file == "8.00 MB | 2.00 MB | 2.00 MB | 4.0× smaller |"
    assert latency == "1.00 ms | 0.25 ms | 1.00 ms | ≈ 1.00× (0.90–1.20) |"
    assert throughput == "1,000/s | 4,000/s | 1,000/s | ≈ 1.00× (0.90–1.20) |"


def test_the_headline_shows_no_gain_in_errors_that_may_be_chance(tmp_path: Path) -> None:
    lines = headline(tmp_path, accuracy_data() | {"saved_by_distillation": summary([-3, 4, 5])})
    assert lines[3].endswith("| ≈ |")


def summary(values: list[int]) -> dict[str, Any]:
    return {"values": values, **mean_of(values)}


def accuracy_data() -> dict[str, Any]:
    errors = {name: summary([n, n + 2, n + 4]) for n, name in ((80, "teacher"), (140, "student-alone"))}
    errors |= {name: summary([n, n, n + 3]) for n, name in ((90, "student"), (91, "student-int8"))}
    return {
        "recipe": "quick",
        "seeds": [{"seed": n} for n in range(3)],
        "test_errors": errors,
        "saved_by_distillation": summary([50, 52, 51]),
    }


def test_the_accuracy_of_each_recipe_is_shown_between_the_markers(tmp_path: Path) -> None:
    readme = document(tmp_path, "results", "accuracy")
    measured(readme)
    keep(readme, accuracy_kind("quick"), accuracy_data())
    assert render(readme) == 0
    text = readme.read_text(encoding="utf-8")
    assert "| 0, 1, 2 | 82.0 ± 5.0 (80, 82, 84) | 142.0 ± 5.0 (140, 142, 144) |" in text
    assert "| 51.0 ± 2.5 (50, 52, 51) |" in text
