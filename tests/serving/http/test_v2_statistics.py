"""/v2/models/…/stats: what requests took, added up over all processes, protocols and runs."""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from benchmarks.systems.servers import free_port, running_service
from serving.engine.metrics import FOLDER_VARIABLE, merged
from tests.support.processes import service as started
from tests.support.samples import sample_test

DIGITS = sample_test().images.numpy()
THREADS, ROUNDS = 4, 5
STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
Stats = dict[str, Any]


@pytest.fixture(scope="module", params=["inprocess", "workers"])
def service(request: pytest.FixtureRequest, two_models: Path) -> Iterator[str]:
    with running_service(two_models, "--api-servers", "2", "--executor", request.param) as url:
        yield url


def statistics(url: str, model: str) -> Stats:
    """Asked on a connection of its own, so any of the processes may answer."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
        connection.request("GET", f"/v2/models/{model}/stats")
        response = connection.getresponse()
        assert response.status == 200
        (stats,) = json.loads(response.read())["model_stats"]
        assert isinstance(stats, dict)
        return stats


def eventually(condition: Callable[[], bool], seconds: float = 1) -> None:
    """A process publishes what it counted every 0.1 s."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def answered(url: str, model: str) -> int:
    return int(statistics(url, model)["inference_stats"]["success"]["count"])


def failed(url: str, model: str) -> int:
    return int(statistics(url, model)["inference_stats"]["fail"]["count"])


def wait_until_counted(url: str, model: str, rounds: int) -> None:
    """Each round of `ask` is three good and three bad requests."""
    eventually(lambda: (answered(url, model), failed(url, model)) == (3 * rounds, 3 * rounds))
    time.sleep(0.15)  # what is published at once is not read at once


def ask(url: str, model: str) -> None:
    """Eight images in three good requests, and three bad ones, each round on connections of its own."""
    one = InferInput("image", [4, 28, 28], "UINT8")
    one.set_data_from_numpy(DIGITS[:4])
    for _ in range(ROUNDS):
        with httpx.Client(base_url=url) as client:
            statuses = [
                client.post(f"/predict/{model}", json={"image": DIGITS[0].tolist()}).status_code,
                client.post(f"/predict/{model}", json={"images": DIGITS[:3].tolist()}).status_code,
                client.post(f"/predict/{model}", json={"image": "nonsense"}).status_code,
                client.get(f"/predict/{model}").status_code,
                client.post(f"/v2/models/{model}/infer", content=b"nonsense").status_code,
                client.post("/predict/nobody", json={}).status_code,
            ]
        assert statuses == [200, 200, 422, 405, 400, 404]
        with contextlib.closing(InferenceServerClient(urlsplit(url).netloc)) as triton:
            triton.infer(model, [one])


def ask_from_many_connections(url: str, model: str) -> None:
    askers = [threading.Thread(target=ask, args=(url, model)) for _ in range(THREADS)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()


def test_counts_are_exact_and_times_add_up(service: str) -> None:
    before, rounds = time.time(), THREADS * ROUNDS
    untouched = statistics(service, "student")
    ask_from_many_connections(service, "teacher")
    wait_until_counted(service, "teacher", rounds)
    stats = statistics(service, "teacher")
    requests, runs = stats["inference_stats"], stats["batch_stats"]

    assert stats["inference_count"] == 8 * rounds
    assert 0 < stats["execution_count"] <= 3 * rounds
    assert {requests[stage]["count"] for stage in STAGES} == {3 * rounds}
    assert requests["cache_hit"] == requests["cache_miss"] == {"count": 0, "ns": 0}
    assert before - 1 < stats["last_inference"] / 1000 < time.time() + 1

    assert [run["batch_size"] for run in runs] == sorted({run["batch_size"] for run in runs})
    assert sum(run["compute_infer"]["count"] for run in runs) == stats["execution_count"]
    assert sum(run["batch_size"] * run["compute_infer"]["count"] for run in runs) == 8 * rounds
    for run in runs:
        assert (
            run["compute_input"]["count"] == run["compute_infer"]["count"] == run["compute_output"]["count"]
        )
        assert all(
            0 < run[stage]["ns"] < 60e9 for stage in ("compute_input", "compute_infer", "compute_output")
        )

    assert all(0 < requests[stage]["ns"] < 60e9 for stage in (*STAGES, "success", "fail"))
    assert requests["success"]["ns"] > sum(requests[stage]["ns"] for stage in STAGES)
    # each request counts its whole run, so a run with several requests in it is counted several times
    in_runs = sum(run["compute_infer"]["ns"] for run in runs)
    assert in_runs * 0.999 <= requests["compute_infer"]["ns"] <= 3 * rounds * in_runs

    assert statistics(service, "student") == untouched  # and no model gets another's, or those of none


def test_every_process_answers_the_same(service: str) -> None:
    def alike() -> bool:  # both processes are among twenty connections, but for one time in a million
        seen = [statistics(service, "student") for _ in range(20)]
        return all(stats == seen[0] for stats in seen)

    ask_from_many_connections(service, "student")
    eventually(lambda: answered(service, "student") >= 3 * THREADS * ROUNDS)
    eventually(alike)


def test_what_follows_is_added(service: str) -> None:
    first = answered(service, "student")
    ask(service, "student")
    eventually(lambda: answered(service, "student") == first + 3 * ROUNDS)


def test_tritons_own_client_reads_them(service: str) -> None:
    with contextlib.closing(InferenceServerClient(urlsplit(service).netloc)) as client:
        everything = client.get_inference_statistics()["model_stats"]
        assert [(stats["name"], stats["version"]) for stats in everything] == [
            ("student", "1"),
            ("teacher", "1"),
        ]
        for arguments in (("teacher",), ("teacher", "1")):
            assert client.get_inference_statistics(*arguments)["model_stats"] == [
                stats for stats in everything if stats["name"] == "teacher"
            ]


@pytest.mark.parametrize("path", ["nobody", "nobody/versions/1", "teacher/versions/2", "teacher/versions/x"])
def test_what_is_not_served_has_none(service: str, path: str) -> None:
    response = httpx.get(f"{service}/v2/models/{path}/stats")
    assert response.status_code == 404
    assert path.split("/", maxsplit=1)[0] in response.json()["error"]


def test_metrics_leave_the_exact_batch_sizes_to_the_statistics(service: str) -> None:
    text = httpx.get(f"{service}/metrics").text
    assert "distillery_request_stage_seconds_total{" in text
    assert "distillery_run" not in text


def test_a_file_that_a_starting_process_has_just_created_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "counter_1.db").touch()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert list(merged()) == []


def test_they_are_for_those_who_have_the_key(two_models: Path) -> None:
    with running_service(two_models, "--api-servers", "1", "--api-key", "secret") as url:
        for path in ("stats", "teacher/stats", "teacher/versions/1/stats"):
            response = httpx.get(f"{url}/v2/models/{path}")
            assert response.status_code == 401
            assert isinstance(response.json()["error"], str)
            assert httpx.get(f"{url}/v2/models/{path}", headers={"X-API-Key": "secret"}).status_code == 200


@pytest.mark.slow
def test_a_process_that_dies_leaves_its_counts(two_models: Path) -> None:
    with started(two_models, "--api-servers", "2") as running:
        url = running.wait_until_ready()
        ready = time.monotonic()
        ask_from_many_connections(url, "student")
        wait_until_counted(url, "student", THREADS * ROUNDS)
        before = statistics(url, "student")
        time.sleep(
            max(0.0, ready + 1.1 - time.monotonic())
        )  # a process that dies young would end the service
        dead, alive = running.children()
        os.kill(dead, signal.SIGKILL)
        eventually(lambda: len(running.children()) == 2 and dead not in running.children(), seconds=5)
        assert alive in running.children()
        assert statistics(url, "student") == before
        ask_from_many_connections(url, "student")
        wait_until_counted(url, "student", 2 * THREADS * ROUNDS)
        running.end()


def test_grpc_counts_with_the_others(two_models: Path) -> None:
    port = free_port()
    with running_service(two_models, "--api-servers", "1", "--grpc-port", str(port)) as url:
        images = triton_grpc.InferInput("image", [4, 28, 28], "UINT8")
        images.set_data_from_numpy(DIGITS[:4])
        wrong = triton_grpc.InferInput("picture", [4, 28, 28], "UINT8")
        wrong.set_data_from_numpy(DIGITS[:4])
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            client.infer("teacher", [images])
            with pytest.raises(InferenceServerException, match="picture"):
                client.infer("teacher", [wrong])
        eventually(lambda: (answered(url, "teacher"), failed(url, "teacher")) == (1, 1))
        eventually(lambda: statistics(url, "teacher")["inference_count"] == 4)
        eventually(lambda: statistics(url, "teacher")["batch_stats"][0]["batch_size"] == 4)
