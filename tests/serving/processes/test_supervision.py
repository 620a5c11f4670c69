"""Processes that die or hang are replaced while the others serve; only the requests inside them fail."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from serving.processes.supervisor import HANG_SECONDS, PAUSES
from tests.support.service import ROOT, Service, eventually, is_alive, running_service, starting_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.tolist()
ONE = {"image": DIGITS[0]}
MANY = {"images": DIGITS[:64]}
WORKERS = ("--executor", "workers")
DIED_S = 2.0
"""Within which a process that died is replaced."""
HUNG_S = 10.0
"""Within which a process that hangs is replaced."""

ENDLESS = f"""
import time
from serving.model.session import Session
run = Session.run
marked = {DIGITS[1]!r}
def endless(self, images):
    if images[0].tolist() == marked:
        time.sleep(3600)
    return run(self, images)
Session.run = endless
"""
"""The service, with a model that never finishes a run whose first image is the second digit."""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Separate the temporary folders of services that other tests run at the same time."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


class Clients:
    """Clients that each send one request after the other, on a new connection each, until the end."""

    def __init__(self, url: str, count: int = 4) -> None:
        self.statuses: list[int] = []
        self.failed: list[str] = []
        self.longest = 0.0
        self._url = url
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(count)
        self._running = [self._threads.submit(self._send) for _ in range(count)]

    def _send(self) -> None:
        while not self._ended.is_set():
            started = time.monotonic()
            try:
                self.statuses.append(httpx.post(f"{self._url}/predict", json=ONE, timeout=20).status_code)
            except (httpx.ReadError, httpx.RemoteProtocolError) as error:
                self.failed.append(repr(error))
            self.longest = max(self.longest, time.monotonic() - started)
            time.sleep(0.01)

    def end(self) -> None:
        """Wait for the responses still expected."""
        self._ended.set()
        for sent in self._running:
            sent.result()
        self._threads.shutdown()


def replaced(service: Service, pid: int, within: float) -> None:
    """Wait until the process is gone and its replacement is there, and check the time it took."""
    started, count = time.monotonic(), len(service.children())
    eventually(lambda: pid not in service.children() and len(service.children()) >= count, within + 5)
    assert time.monotonic() - started < within


def test_an_api_process_that_dies_is_replaced(one_model: Path, tmp_path: Path) -> None:
    """By one that serves the same models, whatever has happened to their files since the start."""
    models = Path(copytree(one_model, tmp_path / "models"))
    with starting_service(models, "--api-servers", "2") as service:
        url = service.wait_until_ready()
        (models / "student/1/model.onnx").write_bytes(b"half of an export")
        first, second = service.children()
        clients = Clients(url)
        os.kill(first, signal.SIGKILL)
        replaced(service, first, DIED_S)
        assert "API process 0 ended with SIGKILL; restarting it" in service.read_line()
        time.sleep(0.3)
        clients.end()
        assert set(clients.statuses) == {200}
        assert len(clients.failed) <= 4  # what was inside the process: its socket queued the others
        idle = 'distillery_requests_in_flight{model="student",version="1"} 0.0'  # those of the dead process are gone
        eventually(lambda: idle in httpx.get(f"{url}/metrics").text)
        assert second in service.children()
        assert len(service.children()) == 2
        assert service.end()[1] == ""
        assert service.process.returncode == 0


@pytest.mark.slow
def test_an_api_process_that_is_stopped_is_replaced_while_the_other_serves(one_model: Path) -> None:
    with running_service(one_model, "--api-servers", "2") as service:
        first = service.children()[0]
        clients = Clients(service.url)
        os.kill(first, signal.SIGSTOP)
        replaced(service, first, HUNG_S)
        assert f"has not responded for {HANG_SECONDS:g} s; killing it" in service.read_line()
        assert "ended with SIGKILL; restarting it" in service.read_line()
        time.sleep(0.3)
        clients.end()
        assert set(clients.statuses) == {200}
        assert len(clients.failed) <= 4
        assert clients.longest < HUNG_S
        assert len(service.children()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [{"image": DIGITS[1]}, {"images": DIGITS[1:201]}], ids=["inline", "thread"]
)
def test_an_endless_run_ends_its_process(one_model: Path, document: object) -> None:
    with starting_service(one_model, "--api-servers", "2", setup=ENDLESS) as service:
        url = service.wait_until_ready()
        before = service.children()
        statuses: list[int] = []
        with suppress(httpx.ReadError, httpx.RemoteProtocolError):
            statuses.append(httpx.post(f"{url}/predict", json=document, timeout=20).status_code)
        assert statuses in ([], [504])  # never a wait without an end
        eventually(lambda: len(set(service.children()) - set(before)) == 1, HUNG_S)
        for _ in range(10):
            assert httpx.post(f"{url}/predict", json=ONE, timeout=10).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP], ids=lambda one: one.name)
def test_a_worker_that_ends_or_hangs_is_replaced(two_models: Path, number: signal.Signals) -> None:
    with running_service(two_models, *WORKERS, "--api-servers", "2") as service:
        student, teacher = service.children()[:2]
        names = sorted(
            json.loads(httpx.get(f"{service.url}/models").text)["models"], key=lambda one: one["name"]
        )
        assert [one["name"] for one in names] == ["student", "teacher"]
        clients = Clients(service.url)
        os.kill(student, number)
        if number != signal.SIGSTOP:
            eventually(lambda: httpx.get(f"{service.url}/health/ready").status_code == 503, 5)
            assert httpx.get(f"{service.url}/v2/health/ready").status_code == 503
            assert httpx.get(f"{service.url}/health/live").status_code == 200
        assert httpx.post(f"{service.url}/predict/teacher", json=ONE, timeout=5).status_code == 200
        replaced(service, student, HUNG_S if number == signal.SIGSTOP else DIED_S)
        eventually(lambda: httpx.get(f"{service.url}/health/ready").status_code == 200, 20)
        clients.end()
        assert not clients.failed  # a worker has no connection to a client
        assert set(clients.statuses) <= {200, 503, 504}
        assert clients.statuses[-1] == 200
        assert teacher in service.children()


@pytest.mark.slow
def test_an_api_process_of_a_service_with_workers_is_replaced(one_model: Path) -> None:
    with running_service(one_model, *WORKERS, "--api-servers", "2") as service:
        api = service.children()[-1]
        os.kill(api, signal.SIGKILL)
        replaced(service, api, DIED_S)
        for _ in range(20):
            assert httpx.post(f"{service.url}/predict", json=MANY, timeout=10).status_code == 200


@pytest.mark.slow
def test_a_process_that_dies_again_and_again_ends_the_service(one_model: Path) -> None:
    with starting_service(one_model, "--api-servers", "1") as service:
        service.wait_until_ready()
        killed: set[int] = set()
        while service.process.poll() is None:
            for pid in set(service.children()) - killed:
                killed.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        output, errors = service.wait()
        assert service.process.returncode == 1
        assert len(killed) == len(PAUSES) + 1
        assert [line.rsplit("; ", 1)[1] for line in output.splitlines()] == [
            "restarting it", *(f"restarting it in {pause:g} s" for pause in PAUSES[1:])
        ]  # fmt: skip
        assert errors == (
            f"distillery-serve: API process 0 has ended {len(PAUSES) + 1} times, each within 10 s of its start, "
            "the last time with SIGKILL: the service ends too\n"
        )


def test_a_shutdown_is_announced_and_clients_are_asked_to_close(one_model: Path) -> None:
    with starting_service(one_model, "--api-servers", "1", "--shutdown-delay", "4") as service:
        url = service.wait_until_ready()
        with httpx.Client(base_url=url) as client:
            for _ in range(3):  # the last ones on the fast path
                assert "connection" not in client.post("/predict", json=ONE).headers
            assert client.get("/health/ready").status_code == 200
            started = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            eventually(lambda: httpx.get(f"{url}/health/ready").status_code == 503, 3)
            answer = httpx.get(f"{url}/health/ready")
            assert answer.json()["error"]["code"] == "not_ready"
            assert httpx.get(f"{url}/health/live").status_code == 200
            served = client.post("/predict", json=ONE)
            assert (served.status_code, served.headers["connection"]) == (200, "close")
            time.sleep(1.1)  # the time after which uvicorn renews the headers of all responses
            for _ in range(2):  # on new connections
                served = client.post("/predict", json=ONE)
                assert (served.status_code, served.headers["connection"]) == (200, "close")
        output, errors = service.wait()
        assert (service.process.returncode, output, errors) == (0, "", "")
        assert 4 <= time.monotonic() - started < 14


def test_a_request_in_flight_at_the_shutdown_is_answered_and_its_connection_closed(one_model: Path) -> None:
    with starting_service(one_model, "--api-servers", "1") as service:
        service.wait_until_ready()
        content = json.dumps(ONE).encode()

        def body() -> Iterator[bytes]:
            yield content[:100]
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            yield content[100:]

        answer = httpx.post(
            f"{service.url}/predict", content=body(), headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert service.wait() == ("", "")
        assert service.process.returncode == 0


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0])
def test_sigterm_during_the_start_ends_the_service_with_status_0(one_model: Path, seconds: float) -> None:
    with starting_service(one_model, "--api-servers", "1", forked=False) as service:
        time.sleep(seconds)
        _, errors = service.end()
        assert (service.process.returncode, errors) in ((0, ""), (-signal.SIGTERM, ""))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 4.0], ids=["at once", "ready"])
def test_sigterm_ends_the_service_as_the_first_process_of_a_container(
    one_model: Path, seconds: float
) -> None:
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if subprocess.run((*unshare, "true"), check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no namespace of its own")
    command = (*unshare, sys.executable, "-m", "serving", "--models-dir", str(one_model), "--port", "0")
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        started = time.monotonic()
        eventually(lambda: catches_sigterm(process.pid))  # Python itself takes a moment to start
        assert time.monotonic() - started < 5
        time.sleep(seconds)
        [first] = children_of(process.pid)
        os.kill(first, signal.SIGTERM)
        assert process.wait(10) == 0
    assert not is_alive(first)


def children_of(pid: int) -> list[int]:
    command = ("ps", "-o", "pid=", "--ppid", str(pid))
    return [int(one) for one in subprocess.run(command, capture_output=True, check=False).stdout.split()]


def catches_sigterm(pid: int) -> bool:
    """Return whether the only child of a process has a handler for SIGTERM."""
    for child in children_of(pid):
        with suppress(FileNotFoundError):
            status = Path(f"/proc/{child}/status").read_text().split("SigCgt:")[1]
            return bool(int(status.split()[0], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def test_a_connection_opened_while_no_process_accepts_it_waits(one_model: Path) -> None:
    """Between the death of a process and its replacement, the kernel queues connections."""
    with running_service(one_model, "--api-servers", "1") as service:
        [only] = service.children()
        os.kill(only, signal.SIGKILL)
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DIED_S) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
