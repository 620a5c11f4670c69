"""The service runs where the operating system lacks what it uses on Linux (macOS)."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from serving.engine.admission.api_keys import hash_of
from tests.support.certificates import Authority
from tests.support.service import eventually, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.tolist()
REMOVALS = {
    "affinity": "import os; del os.sched_getaffinity",
    "SO_REUSEPORT": "import socket; del socket.SO_REUSEPORT",
    "memfd": "import os; del os.memfd_create",
    "fork": "import multiprocessing.context; multiprocessing.get_all_start_methods = lambda: ['spawn']; "
    "del multiprocessing.context._concrete_contexts['fork']",
}


def without(*facilities: str) -> str:
    """The statements that remove these facilities."""
    return "\n".join(REMOVALS[facility] for facility in facilities)


@pytest.mark.parametrize(
    "facilities",
    [
        pytest.param(("SO_REUSEPORT",), id="no SO_REUSEPORT"),
        pytest.param(
            ("affinity", "SO_REUSEPORT", "memfd", "fork"),
            id="no affinity, SO_REUSEPORT, memfd, fork",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_predictions_come_from_all_processes(one_model: Path, facilities: tuple[str, ...]) -> None:
    flags = () if "affinity" in facilities else ("--api-servers", "2")
    started = {"setup": without(*facilities), "forked": "fork" not in facilities}
    with running_service(one_model, *flags, **started) as service:
        processes = service.children()
        assert len(processes) == (os.cpu_count() if "affinity" in facilities else 2)
        for number in range(20):  # each on a connection of its own
            answer = httpx.post(f"{service.url}/predict", json={"image": DIGITS[number]}, timeout=10)
            assert answer.status_code == 200
        counted = 'distillery_requests_total{model="student",protocol="rest",status="200",version="1"} 20.0'
        eventually(lambda: counted in httpx.get(f"{service.url}/metrics").text)


@pytest.mark.slow
def test_a_spawned_api_process_that_dies_is_replaced(one_model: Path, tmp_path: Path) -> None:
    """By one with the keys and the certificate that were valid last."""
    authority, keys = Authority(tmp_path), tmp_path / "keys.toml"
    authority.issue()
    keys.write_text(f'[[keys]]\nname = "one"\nhash = "{hash_of("secret")}"\n')
    flags = ("--api-servers", "2", *authority.flags, "--api-keys", str(keys))
    lacking = without("SO_REUSEPORT", "memfd", "fork")
    with (
        running_service(one_model, *flags, setup=lacking, forked=False) as service,
        httpx.Client(base_url=service.url, verify=authority.client(), timeout=10) as client,
    ):
        keys.write_text("[[keys]")
        authority.key.write_text("")
        time.sleep(1)
        first, second = service.children()
        os.kill(first, signal.SIGKILL)
        assert "restarting it" in service.read_line()
        eventually(lambda: len(service.children()) == 2 and first not in service.children())
        assert second in service.children()
        for number in range(20):
            headers = {"X-API-Key": "secret", "Connection": "close"}
            answer = client.post("/predict", json={"image": DIGITS[number]}, headers=headers)
            assert answer.status_code == 200


@pytest.mark.slow
def test_workers_and_grpc_run_without_fork(two_models: Path) -> None:
    flags = ("--api-servers", "2", "--executor", "workers", "--grpc-port", "0", "--api-key", "secret")
    with running_service(two_models, *flags, setup=without("fork"), forked=False) as service:
        document, headers = {"image": DIGITS[0]}, {"X-API-Key": "secret"}
        for model in ("student", "teacher"):
            answer = httpx.post(f"{service.url}/predict/{model}", json=document, headers=headers, timeout=10)
            assert answer.status_code == 200
        assert httpx.post(f"{service.url}/predict", json=document).status_code == 401
