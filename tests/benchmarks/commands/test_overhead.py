"""The cost of feedback, request log and shadow traffic, measured on real services."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.commands.overhead import CASES, MIRRORED, PLAIN, SHADOW
from distillery import main


@pytest.mark.slow
def test_every_case_is_compared_with_the_service_without_any(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["overhead", "--models-dir", str(model_repository), "--results-dir", str(tmp_path)]
    arguments += ["--rounds", "2", "--seconds", "1"]
    assert main("distillery-bench", COMMANDS, arguments=arguments) == 0
    printed = capsys.readouterr().out
    rows: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])["rows"]
    assert [row["case"] for row in rows] == list(CASES)
    for row in rows:
        assert 10 < row["cpu_us"] < 100_000
        assert row["requests_per_s"] > 10
        ratios = [row[f"{figure}_ratio"] for figure in ("cpu_us", "requests_per_s", "p99_ms")]
        assert all((ratio is None) == (row["case"] == PLAIN) for ratio in ratios)
    shares = {row["case"]: row["mirrored_share"] + row["left_out_share"] for row in rows}
    assert shares.pop(SHADOW) == pytest.approx(MIRRORED, rel=0.5)
    assert set(shares.values()) == {0}
    assert " nothing, again " in printed
    assert "repeated by a candidate" in printed
