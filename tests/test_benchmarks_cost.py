"""What a request costs and what the service takes at rest, measured on a real service."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.cost_markdown import footprint_section, profile_section
from benchmarks.profiling import STAGES, stage_of
from benchmarks.results import latest, read_result
from benchmarks.sections import Source
from distillery import main

LOOP = "run (uvicorn/server.py:86);run (asyncio/runners.py:118)"
DIRECT = f"{LOOP};DirectProtocol.data_received (serving/direct.py:150);Exchange.begin (serving/direct.py:99)"
FLUSH = f"{LOOP};LoopBatcher._flush (serving/batching.py:141);run_batch (serving/api.py:128)"
ANSWER = f"{FLUSH};Exchange.set_result (serving/direct.py:118);Endpoint.encode (serving/endpoint.py:75)"


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        (LOOP, "sockets and event loop"),
        (DIRECT, "head, admission"),
        (f"{DIRECT};Endpoint.decode (serving/endpoint.py:56);loads (x.py:1)", "body to pixels"),
        (FLUSH, "batching"),
        (f"{FLUSH};Session.run (serving/session.py:60);run (onnxruntime/a.py:1)", "model"),
        (ANSWER, "answer"),
        (f"{ANSWER};RequestMetrics.predicted (serving/tallies.py:150)", "metrics"),
        (f"{FLUSH};DirectProtocol.send (serving/direct.py:190)", "write"),
        (f"{LOOP};Front.__call__ (serving/front.py:63)", "whole way"),
    ],
)
def test_a_stack_belongs_to_its_innermost_stage(stack: str, stage: str) -> None:
    assert stage_of(stack) == stage
    assert stage in STAGES


def measure(command: str, models: Path, results: Path, *flags: str) -> Source:
    arguments = [command, "--models-dir", str(models), "--results-dir", str(results), *flags]
    assert main("distillery-bench", COMMANDS, arguments=arguments) == 0
    path = latest(command, folder=results)
    assert path
    return Source(read_result(path), path.name)


@pytest.mark.slow
def test_a_profile_finds_every_stage_in_the_running_service(model_repository: Path, tmp_path: Path) -> None:
    source = measure("profile", model_repository, tmp_path, "--models", "student", "--seconds", "3")
    rows: list[dict[str, Any]] = source.data["rows"]
    assert [row["case"] for row in rows] == ["one connection", "batched", "one image a run"]
    for row in rows:
        stages = row["stages_us"]
        assert sum(stages.values()) == pytest.approx(row["cpu_us"], abs=1)
        for stage in ("model", "body to pixels", "answer", "write", "sockets and event loop"):
            assert stages[stage] > 0
        assert stages["whole way"] < 0.2 * row["cpu_us"]  # the first request of a connection only
    assert "| together |" in profile_section({"profile": source}, "")


@pytest.mark.slow
def test_a_footprint_is_of_all_processes(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = measure("footprint", model_repository, tmp_path, "--starts", "1", "--idle-seconds", "1")
    rows = {row["executor"]: row for row in source.data["rows"]}
    assert rows == {row["executor"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    for row in rows.values():
        assert 0 < row["start_to_ready_s"] < 60
        assert 10 < row["pss_per_api_process_mib"] < row["pss_of_everything_mib"]
        assert row["idle_cpu_of_a_core"] < 0.5
    workers, inprocess = (rows[executor]["pss_of_everything_mib"] for executor in ("workers", "inprocess"))
    assert workers > inprocess  # a process for every model
    assert "| inprocess |" in footprint_section({"footprint": source}, "")
