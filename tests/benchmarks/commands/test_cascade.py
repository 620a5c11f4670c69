"""`distillery-bench cascade`: real sessions and a real service of a cascade, its student and its teacher."""

from pathlib import Path

import pytest

import distillery
from benchmarks.__main__ import COMMANDS
from benchmarks.errors import BenchmarkError
from benchmarks.results.files import read_result
from benchmarks.results.models import select_models
from serving.model.repository import load_repository
from tests.support.training.samples import samples_as_mnist


def bench(*flags: str) -> int:
    return distillery.main("distillery-bench", COMMANDS, arguments=["cascade", *flags])


def test_student_cascade_and_teacher_are_measured_over_the_same_digits(
    cascade_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--models-dir={cascade_repository}", f"--results-dir={tmp_path}"]
    load = ["--rounds=2", "--seconds=0.1", "--connections=2", "--batches=1,8", "--tool=python"]
    with samples_as_mnist(tmp_path / "mnist"):
        assert bench(*flags, *load, "--body=json") == 0
    output = capsys.readouterr().out
    (path,) = tmp_path.glob("cascade-*.json")
    data = read_result(path)["data"]
    entries = load_repository(cascade_repository)
    rule = entries["cascade"].manifest.cascade
    assert rule
    roles = ["student", "cascade", "teacher"]
    assert [(row["model"], row["errors"]) for row in data["rows"]] == [
        (role, entries[role].manifest.test_errors) for role in roles
    ]
    cascade = data["rows"][1]
    assert (cascade["worse"], cascade["better"]) == (rule.test_worse, rule.test_better)
    assert cascade["escalated"] == rule.test_escalated
    assert [(row["model"], row["batch"]) for row in data["sessions"]] == [
        (role, batch) for batch in (1, 8) for role in roles
    ]
    assert {row["runs"] for row in data["sessions"] if row["batch"] == 1} == {200}  # each digit once
    assert sorted(row["model"] for row in data["http"]) == sorted(roles)
    for row in (*data["sessions"], *data["http"]):
        assert row["cpu_us"] > 0
        assert (row["share"]["median"] == 1) == (row["model"] == "teacher")
    assert "cost of a million" in output


def test_only_a_cascade_is_measured(
    cascade_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (f"--models-dir={cascade_repository}", f"--results-dir={tmp_path}")
    assert bench(*flags, "--cascade=student") == 1
    assert "--cascade student is a model with a graph" in capsys.readouterr().err
    assert bench(*flags, "--cascade=waterfall") == 1
    assert "there is no model 'waterfall'; known: cascade, student, teacher" in capsys.readouterr().err


def test_other_benchmarks_leave_cascades_out(cascade_repository: Path) -> None:
    assert list(select_models(cascade_repository)) == ["student", "teacher"]
    with pytest.raises(
        BenchmarkError, match="cascade is a cascade, which `distillery-bench cascade` measures"
    ):
        select_models(cascade_repository, ["cascade"])
