"""The README's table and picture, rendered from results."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.__main__ import COMMANDS
from benchmarks.commands.accuracy import _summary, accuracy_kind
from benchmarks.commands.render import SECTIONS
from benchmarks.errors import BenchmarkError
from benchmarks.report.comparison import compare_models
from benchmarks.results.files import write_result
from distillery import main

(BEGIN, END), (ACCURACY_BEGIN, ACCURACY_END), *_ = (section.markers for section in SECTIONS)
FACTS = {"version": "1", "precision": "fp32", "test_accuracy": 0.99}
MODELS = {
    "student": {**FACTS, "sha256": "b" * 64, "architecture": "784-800-800-10", "parameters": 1_000_000}
    | {"size_bytes": 2_000_000, "test_errors": 100},
    "teacher": {**FACTS, "sha256": "a" * 64, "architecture": "784-1200-1200-10", "parameters": 2_000_000}
    | {"size_bytes": 8_000_000, "test_errors": 90},
}
SPEED = {"student": 4.0, "teacher": 1.0}


def session_data() -> dict[str, Any]:
    rows = [
        {
            "model": model,
            "threads": 1,
            "batch": batch,
            "p50_us": 400 * batch / speed,
            "p99_us": 500 * batch / speed,
        }
        | {"images_per_s": 2500 * speed}
        for model, speed in SPEED.items()
        for batch in (1, 64)
    ]
    return {"models": MODELS, "rounds": 5, "rows": rows}


def http_data() -> dict[str, Any]:
    rows = [
        {"server": server, "model": model, "body": body, "connections": connections, "tool": "wrk"}
        | {"p50_ms": connections / speed, "p99_ms": 2 * connections / speed}
        | {"requests_per_s": 1000 * speed, "images_per_s": (64_000 if body == "binary-64" else 1000) * speed}
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
    path = tmp_path / "README.md"
    path.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n", encoding="utf-8")
    return path


def render(readme: Path, *flags: str) -> int:
    folder = readme.parent
    places = ["--documents", str(readme), "--pictures", str(folder / "docs")]
    return main(
        "distillery-bench",
        COMMANDS,
        arguments=["render", *places, "--results-dir", str(folder / "results"), *flags],
    )


def measured(readme: Path) -> None:
    write_result("session", session_data(), folder=readme.parent / "results")
    write_result("http", http_data(), folder=readme.parent / "results")


def test_ratios_say_how_many_times_better_than_the_teacher() -> None:
    teacher, student = compare_models(session_data(), http_data())
    assert (teacher["model"], student["model"]) == ("teacher", "student")  # the slowest first
    assert student["ratios"] == {
        "parameters": 2.0,
        "size_bytes": 4.0,
        "session_p50_us": 4.0,
        "session_p99_us": 4.0,
        "http_p50_ms": 4.0,
        "http_p99_ms": 4.0,
        "requests_per_s": 4.0,
        "images_per_s": 4.0,
    }
    assert set(teacher["ratios"].values()) == {1.0}
    assert (student["session_p50_us"], student["http_p50_ms"], student["images_per_s"]) == (
        100,
        0.25,
        256_000,
    )


def test_results_of_different_models_are_not_compared() -> None:
    other = deepcopy(session_data())
    other["models"]["student"]["sha256"] = "c" * 64
    with pytest.raises(BenchmarkError, match=r"student cccccccc.*student bbbbbbbb.*measure both again"):
        compare_models(other, http_data())


def test_a_figure_that_was_not_measured_is_asked_for() -> None:
    http = http_data()
    http["rows"] = [row for row in http["rows"] if row["connections"] == 16]
    with pytest.raises(BenchmarkError, match="no figure for student, one connection"):
        compare_models(session_data(), http)


def test_the_section_is_replaced_and_the_rest_kept(readme: Path) -> None:
    measured(readme)
    assert render(readme) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# Before\n\n{BEGIN}\n| model | parameters ")
    assert text.endswith(f"it is made up.\n{END}\n\nAfter\n")
    assert "old" not in text
    student = next(line for line in text.splitlines() if line.startswith("| `student` 784-800-800-10 fp32 |"))
    assert student.split(" | ")[1:] == [
        "1.00 M (×2.0)",
        "2.00 MB (×4.0)",
        "100 (99.00%)",
        "100 / 125 µs (×4.0)",
        "0.25 / 0.50 ms (×4.0)",
        "4,000 (×4.0)",
        "256,000 (×4.0) |",
    ]
    assert "| litserve-first-example |  | 831 (0.25 / 0.50 ms) |" in text
    assert text.index("| inprocess |") < text.index("| litserve-first-example |") < text.index("| workers |")
    assert "(results/http-" in text
    assert "; medians of 5 rounds; load by wrk 4.1.0; " in text
    assert "(docs/latency.png)" in text


def test_the_picture_is_drawn_and_says_from_what(readme: Path) -> None:
    measured(readme)
    assert render(readme) == 0
    with Image.open(readme.parent / "docs/latency.png") as picture:
        assert min(picture.size) > 200
        assert len(set(picture.convert("L").tobytes())) > 50
        assert picture.info["Source"].split()[0].startswith("session-")


def test_check_fails_until_the_newest_results_are_shown(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(readme)
    assert render(readme, "--check") == 1
    said = capsys.readouterr().err
    assert "latency.png (not of session-" in said
    assert "README.md; run distillery-bench render" in said
    assert "old" in readme.read_text(encoding="utf-8")  # nothing was changed
    assert render(readme) == 0
    assert render(readme, "--check") == 0
    readme.write_text(readme.read_text(encoding="utf-8").replace("831", "138"), encoding="utf-8")
    assert render(readme, "--check") == 1
    assert render(readme) == 0
    (readme.parent / "docs/latency.png").unlink()
    assert render(readme, "--check") == 1


@pytest.mark.parametrize("kind", ["session", "http"])
def test_missing_results_name_the_command_that_makes_them(
    readme: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(readme)
    for path in (readme.parent / "results").glob(f"{kind}-*"):
        path.unlink()
    assert render(readme) == 1
    assert f"run distillery-bench {kind}" in capsys.readouterr().err


def test_a_readme_without_markers_is_left_alone(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(readme)
    readme.write_text("# Mine\n", encoding="utf-8")
    assert render(readme) == 1
    assert BEGIN in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == "# Mine\n"


def test_the_accuracy_of_each_recipe_is_shown_where_the_markers_are(tmp_path: Path) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    write_result("session", session_data(), folder=results)
    write_result("http", http_data(), folder=results)
    errors = {name: _summary([n, n + 2, n + 4]) for n, name in ((80, "teacher"), (140, "student-alone"))}
    errors |= {name: _summary([n, n, n + 3]) for n, name in ((90, "student"), (91, "student-int8"))}
    data = {"recipe": "quick", "seeds": [{"seed": n} for n in range(3)], "test_errors": errors}
    write_result(
        accuracy_kind("quick"), data | {"saved_by_distillation": _summary([50, 52, 51])}, folder=results
    )
    readme.write_text(f"{BEGIN}{END}\n{ACCURACY_BEGIN}{ACCURACY_END}\n")
    arguments = [
        "render",
        f"--documents={readme}",
        f"--pictures={tmp_path}",
        f"--results-dir={results}",
    ]
    assert main("distillery-bench", COMMANDS, arguments=arguments) == 0
    text = readme.read_text()
    assert "| 0, 1, 2 | 82.0 ± 5.0 (80, 82, 84) | 142.0 ± 5.0 (140, 142, 144) |" in text
    assert "| 51.0 ± 2.5 (50, 52, 51) |" in text
