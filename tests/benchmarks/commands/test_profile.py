"""CPU time of a request and footprint of the service, measured on a real service."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.commands.profile import STAGES
from benchmarks.report.markdown import Source
from benchmarks.results.files import latest, read_result
from distillery import main


def measure(command: str, models: Path, results: Path, *flags: str) -> Source:
    arguments = [command, "--models-dir", str(models), "--results-dir", str(results), *flags]
    assert main("distillery-bench", COMMANDS, arguments=arguments) == 0
    path = latest(command, folder=results)
    assert path
    return Source(read_result(path), path.name)


@pytest.mark.slow
def test_a_profile_has_every_stage_of_a_request(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = measure(
        "profile", model_repository, tmp_path, "--models", "student", "--seconds", "1", "--rounds", "2"
    )
    rows: list[dict[str, Any]] = source.data["rows"]
    cases = ("one connection", "batched", "one image a run")
    assert [(row["case"], row["body"]) for row in rows] == list(product(cases, ("json", "binary")))
    for row in rows:
        stages = row["stages_us"]
        for one in row["rounds"]:
            assert sum(one["stages_us"].values()) == pytest.approx(one["cpu_us"], abs=1)
        assert stages.keys() == STAGES.keys()
        assert all(us > 0 for stage, us in stages.items() if stage != "the rest")
        assert row["requests"] > 100
        assert (row["images_per_run"] > 1) == (row["case"] == "batched")
    printed = capsys.readouterr().out
    for body in ("json", "binary"):
        assert f" {body}: CPU µs per request " in printed


@pytest.mark.slow
def test_a_footprint_covers_all_processes(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = measure("footprint", model_repository, tmp_path, "--starts", "1", "--idle-seconds", "1")
    rows = {row["executor"]: row for row in source.data["rows"]}
    printed = capsys.readouterr().out
    assert rows == {row["executor"]: row for row in json.loads(printed.splitlines()[-1])["rows"]}
    for row in rows.values():
        assert 0 < row["start_to_ready_s"] < 60
        assert 10 < row["pss_per_api_process_mib"] < row["pss_of_everything_mib"]
        assert row["idle_cpu_of_a_core"] < 0.5
    workers, inprocess = (rows[executor]["pss_of_everything_mib"] for executor in ("workers", "inprocess"))
    assert workers > inprocess  # a process for every model
    assert "\n inprocess " in printed
