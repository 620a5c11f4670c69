"""LoadGen's scenarios in sessions and over HTTP, and what is made of them."""

import json
import time
from http.client import HTTPMessage
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import Images, load_digits
from benchmarks.load.v2_tensors import LENGTH, pack, unpack
from benchmarks.load.workloads import BodyKind, service_workload
from benchmarks.loadgen.open_loop import Bound
from benchmarks.loadgen.served_system import ServedSystem
from benchmarks.loadgen.server_search import Search, Settings
from benchmarks.loadgen.session_system import SessionSystem
from benchmarks.report.scenarios import scenarios_section
from benchmarks.report.sections import Source
from benchmarks.results.files import read_result
from benchmarks.results.models import select_models
from benchmarks.systems.servers import running_service
from distillery import main


@pytest.mark.slow
def test_the_search_finds_the_capacity_of_a_system_that_sleeps() -> None:
    def slow(images: Images) -> object:
        return time.sleep(0.002 * len(images))  # 500 samples a second, batched or not

    system = SessionSystem("student", slow, threads=1, limit_s=10)
    settings = Settings(bound_ms=50, seconds=1.0, least=500, longest_s=5.0, confirmations=1)
    outcome = Search(system.serve, settings, seed=0).run(100)
    assert outcome.rate is not None
    assert 250 < outcome.rate < 500
    assert outcome.limited_by == "system"


def test_a_session_takes_all_that_has_arrived_up_to_a_batch() -> None:
    sizes = []

    def ask(images: Images) -> object:
        sizes.append(len(images))
        return time.sleep(0.001)

    system = SessionSystem("student", ask, threads=2, limit_s=10)
    _, seen = system.offline(500, seed=0)
    served = [size for size in sizes if size > 1]
    assert sorted(served) == [500 % 64, *[64] * (500 // 64)]
    assert (seen.queries, seen.answered) == (500, 500)
    sizes.clear()
    seen = system.serve(200, 50, 0, Bound(ms=1000, allowed=0))
    assert seen.answered == 50
    assert seen.slow == 0
    assert seen.latencies.quantile(0) >= 1000  # µs
    assert sum(sizes) >= 50


def test_a_session_that_answers_a_batch_otherwise_than_one_sample_is_noticed() -> None:
    system = SessionSystem(
        "student", lambda images: np.full((len(images), 10), len(images) / 100), threads=1, limit_s=1
    )
    with pytest.raises(BenchmarkError, match=r"student: alone and in a batch, answers differ by 0\.99"):
        system.check()


SHORT = [
    *("--seconds", "0.2", "--rounds", "1", "--samples", "640", "--connections", "8", "--threads", "1"),
    *("--probe-seconds", "0.5", "--probe-queries", "500", "--confirmations", "1", "--bound-ms", "50"),
]
"""A bound that a busy machine keeps, too: what is tested is the way there."""


@pytest.mark.slow
def test_every_scenario_runs_in_a_session_and_over_http(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--models-dir", str(model_repository), "--models", "teacher,student", "--executor", "inprocess"]
    arguments = ["scenarios", *flags, *SHORT, "--results-dir", str(tmp_path)]
    assert main("distillery-bench", COMMANDS, arguments=arguments) == 0
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    path = Path(summary["result"])
    source = Source(read_result(path), path.name)
    rows = source.data["rows"]
    assert [(row["scenario"], row["system"], row["model"]) for row in rows] == [
        (scenario, system, model)
        for system in ("session", "inprocess")
        for scenario in ("SingleStream", "MultiStream", "Server", "Offline")
        for model in ("teacher", "student")
    ]
    for row in rows:
        if row["scenario"] == "Server":
            assert {line["verdict"] for line in row["search"]} <= {"pass", "system", "generator"}
            if row["figure"] is None:  # the machine had pauses above the bound at every rate
                continue
            assert [line["step"] for line in row["search"]][-1] == "confirm"
            assert row["p99_ms"] <= 50
        assert row["figure"] > 0
        assert row["queries"] == sum(row["histogram"]["counts"]) > 0
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        if row["model"] == "teacher":
            assert row["ratio"] == 1
    by_scenario = {(row["scenario"], row["system"]): row for row in rows if row["model"] == "student"}
    assert (
        by_scenario["SingleStream", "session"]["figure"] == by_scenario["SingleStream", "session"]["p90_ms"]
    )
    assert (
        by_scenario["MultiStream", "inprocess"]["figure"] == by_scenario["MultiStream", "inprocess"]["p99_ms"]
    )
    assert by_scenario["MultiStream", "inprocess"]["samples_per_query"] == 8
    assert by_scenario["Offline", "inprocess"]["samples_per_query"] == 64
    section = scenarios_section({"scenarios": source}, "")
    assert "| MultiStream | 99th percentile latency | inprocess |" in section
    assert all(limitation in section for limitation in source.data["limitations"])
    assert "Offline: samples per second" in printed


@pytest.mark.slow
def test_a_service_is_asked_for_one_eight_and_sixty_four_samples(
    model_repository: Path, tmp_path: Path
) -> None:
    path = select_models(model_repository)["student"].path
    with running_service(model_repository, "--api-servers", "1") as url:
        bodies: dict[int, BodyKind] = {1: "json", 8: "binary-8", 64: "binary-64"}
        workloads = {samples: service_workload(url, "student", body) for samples, body in bodies.items()}
        system = ServedSystem(workloads, tmp_path, path=path, connections=8, limit_s=5)
        system.check()
        assert system.stream(8, 0.2).total > 10
        seen = system.serve(300, 150, 0, Bound(ms=1000, allowed=0))
        assert (seen.answered, seen.refused) == (150, 0)
        assert seen.seconds == pytest.approx(0.5, rel=0.4)
        size, seen = system.offline(640, 0)
        assert (size, seen.queries, seen.answered, seen.refused) == (64, 10, 10, 0)


def test_binary_tensors_say_the_digits_and_are_read_from_the_answer() -> None:
    digits = load_digits()[:8]
    headers, body = pack(digits)
    length = int(headers[LENGTH])
    (tensor,) = json.loads(body[:length])["inputs"]
    assert (tensor["shape"], tensor["datatype"]) == ([8, 28, 28], "UINT8")
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.uint8).reshape(8, 28, 28), digits)
    probabilities = np.arange(20, dtype="<f4").reshape(2, 10)
    described = {"name": "probabilities", "datatype": "FP32", "shape": [2, 10]}
    document = json.dumps({"outputs": [described]}).encode()
    answer = HTTPMessage()
    answer[LENGTH.lower()] = str(len(document))
    np.testing.assert_array_equal(unpack(answer, document + probabilities.tobytes()), probabilities)
    with pytest.raises(BenchmarkError, match="no binary tensor"):
        unpack(HTTPMessage(), b'{"outputs": []}')
