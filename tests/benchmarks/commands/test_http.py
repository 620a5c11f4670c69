"""`distillery-bench http`: the service under a short load, in processes of its own."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.errors import BenchmarkError
from benchmarks.load.http import Case, cases_of, measure_http, service_cpu
from benchmarks.load.interleave import interleave
from benchmarks.load.workloads import TOLERANCE, BodyKind, check_answers, service_workload
from benchmarks.results.models import select_models
from benchmarks.systems.servers import free_port, running_service
from distillery import main
from tests.support.service import Service


@pytest.fixture
def service(service: Service) -> str:
    """The URL of the service that the tests share."""
    return service.url


@pytest.mark.parametrize("body", ["json", "png", "json-64"])
def test_the_response_to_every_prepared_request_is_that_of_a_session(
    service: str, model_repository: Path, body: BodyKind
) -> None:
    for name, entry in select_models(model_repository).items():
        assert check_answers(service_workload(service, name, body), entry.path) <= TOLERANCE


def test_predictions_of_another_model_are_an_error(service: str, model_repository: Path) -> None:
    entries = select_models(model_repository)
    with pytest.raises(BenchmarkError, match=r"probabilities differ by .*--models-dir"):
        check_answers(service_workload(service, "student"), entries["teacher"].path)


def test_a_status_other_than_200_is_an_error(service: str, model_repository: Path) -> None:
    path = select_models(model_repository)["student"].path
    with pytest.raises(BenchmarkError, match=r"pupil, json: status 404: .*student-int8"):
        check_answers(service_workload(service, "pupil"), path)


@pytest.mark.slow
def test_cases_are_interleaved_and_compared_with_the_teacher_of_the_same_server(service: str) -> None:
    workloads = [service_workload(service, model) for model in ("student", "teacher")]
    cases = cases_of([*workloads, replace(workloads[0], server="another")], [2, 1])
    assert [(case.connections, case.workload.model, case.workload.server) for case in cases] == [
        (connections, model, server)
        for connections in (1, 2)
        for model, server in (("teacher", "service"), ("student", "service"), ("student", "another"))
    ]
    expected: list[Case] = []
    interleave(cases, 2, expected.append)
    measured: list[Case] = []

    def noted(case: Case) -> AbstractContextManager[None]:
        measured.append(case)
        return nullcontext()

    cpu = {"service": partial(service_cpu, service)}
    rows = measure_http(cases, rounds=2, seconds=0.05, tool="python", cpu=cpu, cpu_lag_s=0.2, during=noted)
    assert measured[3:] == expected  # after the warm-up of each workload
    for row in rows:
        assert row["requests"] == sum(row["histogram"]["counts"]) > 0
        assert [len(row["rounds"][figure]) for figure in ("requests_per_s", "p50_ms", "p99_ms")] == [2, 2, 2]
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert (row["speedup"] is not None) == (row["server"] == "service" and row["model"] == "student")
        assert (row["cpu_us"] is None) == (row["server"] == "another")
        assert row["cpu_us"] is None or row["cpu_us"] > 0


def test_a_service_without_a_cpu_counter_is_an_error(service: str) -> None:
    with pytest.raises(BenchmarkError, match=r"health/live/metrics: no response: .*404"):
        service_cpu(f"{service}/health/live")


def test_images_per_second_count_all_images_of_a_request(service: str) -> None:
    cases = cases_of([service_workload(service, "student-int8", "json-64")], [2])
    (row,) = measure_http(cases, rounds=1, seconds=0.1, tool="python")
    assert row["images_per_s"] == pytest.approx(64 * row["requests_per_s"], rel=1e-3)


@pytest.mark.slow
def test_the_command_measures_a_running_service(
    service: str, model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--url", service, "--models-dir", str(model_repository), "--models", "teacher,student"]
    flags += ["--body", "json,png", "--connections", "1,2", "--seconds", "0.05", "--rounds", "1"]
    flags += ["--tool", "python", "--results-dir", str(tmp_path)]
    assert main("distillery-bench", COMMANDS, arguments=["http", *flags]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(summary["rows"]) == 2 * 2 * 2
    kept = json.loads(Path(summary["result"]).read_text())["data"]
    assert kept["models"].keys() == {"teacher", "student"}
    assert {row["server"] for row in kept["rows"]} == {"service"}
    assert kept["limitations"]


def test_an_unreachable_service_is_an_error_in_one_line(
    model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(
        "distillery-bench", COMMANDS, arguments=["http", "--url", url, "--models-dir", str(model_repository)]
    )
    assert f"{url}/predict/student, student, json: no response: " in capsys.readouterr().err


def test_a_server_that_does_not_start_is_an_error_with_its_output(model_repository: Path) -> None:
    service = running_service(model_repository, "--no-such-flag", "1")
    with pytest.raises(BenchmarkError, match=r"(?s)no server became ready .*no-such-flag"), service:
        pass


@pytest.mark.slow
def test_both_executors_and_another_system_are_measured_in_one_run(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--models-dir", str(model_repository), "--models", "teacher,student", "--body", "json"]
    flags += ["--connections", "1,2", "--seconds", "0.2", "--rounds", "1", "--tool", "python"]
    flags += ["--against", "bare-asgi", "--results-dir", str(tmp_path)]
    assert main("distillery-bench", COMMANDS, arguments=["http", *flags]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert sorted((row["server"], row["model"]) for row in rows if row["connections"] == 1) == [
        ("bare-asgi", "student"),
        ("inprocess", "student"),
        ("inprocess", "teacher"),
        ("workers", "student"),
        ("workers", "teacher"),
    ]


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1", "http://ann:secret@127.0.0.1", "http://127.0.0.1/models", "x"]
)
def test_a_url_with_credentials_or_a_path_is_rejected(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("distillery-bench", COMMANDS, arguments=["http", "--url", url]) == 2
    assert "url: String should match pattern" in capsys.readouterr().err
