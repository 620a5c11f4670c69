"""/v2/models/…/stats: durations of requests, summed over all processes, protocols and runs."""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from serving.engine.metrics.series import RUN_SECONDS, RUNS
from tests.support.service import API_KEY, Service, eventually, starting_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
THREADS, ROUNDS = 4, 3
KEPT = ("name", "version", "batch_size", "last_inference")
STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
Stats = dict[str, Any]


@pytest.fixture(params=["service", "workers_service"])
def url(request: pytest.FixtureRequest) -> str:
    service: Service = request.getfixturevalue(request.param)
    return service.url


def statistics(url: str, model: str) -> Stats:
    """The statistics of a model, over a new connection, so that any process may respond."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
        connection.request("GET", f"/v2/models/{model}/stats")
        response = connection.getresponse()
        assert response.status == 200
        (stats,) = json.loads(response.read())["model_stats"]
        assert isinstance(stats, dict)
        return stats


def requests(stats: Stats) -> tuple[int, int]:
    """Counts of successful and failed requests."""
    counts = stats["inference_stats"]
    return counts["success"]["count"], counts["fail"]["count"]


def settled(url: str, model: str) -> Stats:
    """The statistics after every process has published, as each does every 0.1 s."""
    found, before = statistics(url, model), {}
    while found != before:
        time.sleep(0.25)
        found, before = statistics(url, model), found
    return found


def growth(now: Any, before: Any) -> Any:
    """The same document with `before` subtracted from every number; runs are matched by their batch size."""
    if isinstance(now, dict):
        return {
            key: one if key in KEPT else growth(one, before.get(key, 0) if before else 0)
            for key, one in now.items()
        }
    if isinstance(now, list):
        earlier = {run["batch_size"]: run for run in before or []}
        runs = [growth(run, earlier.get(run["batch_size"])) for run in now]
        return [run for run in runs if run["compute_infer"]["count"]]
    return now - before


def wait_until_counted(url: str, model: str, before: Stats, rounds: int) -> Stats:
    """Return the growth since `before`; each round of `ask` is three valid and three invalid requests."""
    answered, failed = requests(before)
    eventually(lambda: requests(statistics(url, model)) == (answered + 3 * rounds, failed + 3 * rounds))
    return growth(settled(url, model), before)


def ask(url: str, model: str) -> None:
    """Send eight images in three valid requests, and three invalid ones, with new connections in each round."""
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


def test_counts_are_exact_and_durations_add_up(url: str) -> None:
    started, rounds = time.time(), THREADS * ROUNDS
    before, untouched = settled(url, "teacher"), settled(url, "student")
    ask_from_many_connections(url, "teacher")
    stats = wait_until_counted(url, "teacher", before, rounds)
    stages, runs = stats["inference_stats"], stats["batch_stats"]

    assert stats["inference_count"] == 8 * rounds
    assert 0 < stats["execution_count"] <= 3 * rounds
    assert {stages[stage]["count"] for stage in STAGES} == {3 * rounds}
    assert stages["cache_hit"] == stages["cache_miss"] == {"count": 0, "ns": 0}
    assert started - 1 < stats["last_inference"] / 1000 < time.time() + 1

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

    assert all(0 < stages[stage]["ns"] < 60e9 for stage in (*STAGES, "success", "fail"))
    assert stages["success"]["ns"] > sum(stages[stage]["ns"] for stage in STAGES)
    # each request counts its run in full, so a run of several requests is counted several times
    in_runs = sum(run["compute_infer"]["ns"] for run in runs)
    assert in_runs * 0.999 <= stages["compute_infer"]["ns"] <= 3 * rounds * in_runs

    assert (
        statistics(url, "student") == untouched
    )  # requests of other models and of unknown ones are not included


def test_every_process_returns_the_same_statistics(url: str) -> None:
    def alike() -> bool:  # twenty connections reach both processes, except one time in a million
        seen = [statistics(url, "student") for _ in range(20)]
        return all(stats == seen[0] for stats in seen)

    before = settled(url, "student")
    ask(url, "student")
    wait_until_counted(url, "student", before, ROUNDS)
    eventually(alike)


def test_tritons_client_reads_the_statistics(url: str) -> None:
    settled(url, "teacher")
    with contextlib.closing(InferenceServerClient(urlsplit(url).netloc)) as client:
        everything = client.get_inference_statistics()["model_stats"]
        assert {(stats["name"], stats["version"]) for stats in everything} >= {
            ("student", "1"),
            ("teacher", "1"),
        }
        for arguments in (("teacher",), ("teacher", "1")):
            assert client.get_inference_statistics(*arguments)["model_stats"] == [
                stats for stats in everything if stats["name"] == "teacher"
            ]


@pytest.mark.parametrize("path", ["nobody", "nobody/versions/1", "teacher/versions/2", "teacher/versions/x"])
def test_unknown_models_and_versions_are_errors(url: str, path: str) -> None:
    response = httpx.get(f"{url}/v2/models/{path}/stats")
    assert response.status_code == 404
    assert path.split("/", maxsplit=1)[0] in response.json()["error"]


def test_metrics_omit_the_exact_batch_sizes(url: str) -> None:
    text = httpx.get(f"{url}/metrics").text
    assert "distillery_request_stage_seconds_total{" in text
    assert RUNS not in text
    assert RUN_SECONDS not in text


def test_statistics_need_the_key(strict_service: Service) -> None:
    with httpx.Client(base_url=strict_service.url) as client:
        for path in ("stats", "teacher/stats", "teacher/versions/1/stats"):
            response = client.get(f"/v2/models/{path}")
            assert response.status_code == 401
            assert isinstance(response.json()["error"], str)
            assert client.get(f"/v2/models/{path}", headers={"X-API-Key": API_KEY}).status_code == 200


@pytest.mark.slow
def test_the_counts_of_a_dead_process_remain(two_models: Path) -> None:
    with starting_service(two_models, "--api-servers", "2") as running:
        url = running.wait_until_ready()
        ready = time.monotonic()
        fresh = statistics(url, "student")
        ask_from_many_connections(url, "student")
        before = wait_until_counted(url, "student", fresh, THREADS * ROUNDS)
        time.sleep(
            max(0.0, ready + 1.1 - time.monotonic())
        )  # a process that dies young would end the service
        dead, alive = running.children()
        os.kill(dead, signal.SIGKILL)
        eventually(lambda: len(running.children()) == 2 and dead not in running.children(), seconds=5)
        assert alive in running.children()
        assert statistics(url, "student") == before
        ask_from_many_connections(url, "student")
        wait_until_counted(url, "student", before, THREADS * ROUNDS)
        running.end()


def test_grpc_requests_are_included(service: Service) -> None:
    before = settled(service.url, "teacher")
    images = triton_grpc.InferInput("image", [4, 28, 28], "UINT8")
    images.set_data_from_numpy(DIGITS[:4])
    wrong = triton_grpc.InferInput("picture", [4, 28, 28], "UINT8")
    wrong.set_data_from_numpy(DIGITS[:4])
    with triton_grpc.InferenceServerClient(service.grpc) as client:
        client.infer("teacher", [images])
        with pytest.raises(InferenceServerException, match="picture"):
            client.infer("teacher", [wrong])

    def added() -> Stats:
        stats: Stats = growth(statistics(service.url, "teacher"), before)
        return stats

    eventually(lambda: requests(added()) == (1, 1))
    eventually(lambda: added()["inference_count"] == 4)
    eventually(lambda: [run["batch_size"] for run in added()["batch_stats"]] == [4])
