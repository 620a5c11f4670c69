"""`distillery-bench scenarios`, and its section of the documentation."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.report.markdown import Source, fill
from benchmarks.results.files import read_result
from distillery import main


@pytest.mark.slow
@pytest.mark.timeout(400)  # Server searches in runs of at least 662 queries
def test_every_scenario_runs_in_a_session_and_over_http(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlperf_loadgen")
    flags = ["--models-dir", str(model_repository), "--models", "teacher,student", "--executor", "inprocess"]
    # a bound that a busy machine keeps too
    short = [
        "--seconds",
        "0.2",
        "--rounds",
        "1",
        "--samples",
        "640",
        "--connections",
        "8",
        "--bound-ms",
        "200",
    ]
    arguments = ["scenarios", *flags, *short, "--results-dir", str(tmp_path)]
    assert main("distillery-bench", COMMANDS, arguments=arguments) == 0
    printed = capsys.readouterr().out
    path = Path(json.loads(printed.splitlines()[-1])["result"])
    source = Source(read_result(path), path.name)
    rows = source.data["rows"]
    assert [(row["scenario"], row["system"], row["model"]) for row in rows] == [
        (scenario, system, model)
        for system in ("session", "inprocess")
        for scenario in ("SingleStream", "MultiStream", "Server", "Offline")
        for model in ("teacher", "student")
    ]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        if row["figure"] is None:  # pauses of the machine exceeded the bound at every rate
            assert row["scenario"] == "Server"
        else:
            assert row["figure"] > 0
    section = fill("scenarios", {"scenarios": source})
    assert "| MultiStream | 99th percentile latency | inprocess |" in section
    assert all(limitation in section for limitation in source.data["limitations"])
    assert "\n MultiStream " in printed


def row(model: str, ratio: Any, **changes: Any) -> dict[str, Any]:
    found = {"system": "session", "model": model, "scenario": "Server", "metric": "rate", "unit": "queries/s"}
    return found | {"figure": 1234.5, "ratio": ratio, "limited_by": "system"} | changes


def test_the_section_marks_undecided_ratios_and_rates_limited_by_the_generator() -> None:
    undecided = {"median": 1.1, "low": 0.9, "high": 1.2, "rounds": 5, "decided": False}
    rows = [
        row("teacher", None, figure=None),
        row("student", undecided),
        row("student-int8", undecided | {"low": 1.05}, limited_by="generator"),
        row("of an older result", 12.34),
    ]
    rules = {"bound_ms": 10, "threads": 2, "single": "json", "several": "binary"}
    document = {
        "kind": "scenarios",
        "machine": {"cpu": "x", "cores": 2, "memory_gib": 1, "os": "y", "load_average": 0},
        "versions": {"python": "3"},
        "commit": "abc",
        "uncommitted_changes": False,
        "date": "2026-01-01",
        "data": {"rows": rows, "rules": rules, "rounds": 5, "limitations": []},
    }
    lines = fill("scenarios", {"scenarios": Source(document, "link")}).splitlines()
    assert (
        lines[2]
        == "| Server | rate | session | none | 1,234, ≈ 1.10× (0.90–1.20) | ≥ 1,234, 1.10× (1.05–1.20) | 1,234, 12.3× |"
    )
