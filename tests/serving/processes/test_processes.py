"""Start, supervision and shutdown of the service's processes, with real signals."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from tests.support.service import ROOT, eventually, failed_start, free_port, is_alive, starting_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.tolist()
ONE = {"image": DIGITS[0]}


@pytest.mark.parametrize(
    ("executor", "number"),
    [("inprocess", signal.SIGTERM), ("inprocess", signal.SIGINT), ("workers", signal.SIGINT)],
)
def test_a_signal_ends_the_service_after_the_requests_in_flight(
    one_model: Path, executor: str, number: int
) -> None:
    flags = ("--executor", executor, "--api-servers", "2")
    with starting_service(one_model, *flags, forked=number != signal.SIGTERM) as running:
        url = running.wait_until_ready()
        children = running.children()
        assert len(children) == (2 if executor == "inprocess" else 3)
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        assert (
            httpx.post(f"{url}/predict", content=b"--y", headers=form).status_code == 400
        )  # and is not logged
        ended = threading.Event()

        def body() -> Iterator[bytes]:
            content = json.dumps(ONE).encode()
            yield content[:100]
            time.sleep(0.2)  # a process closes connections on which it has read nothing yet
            os.killpg(
                running.process.pid, number
            ) if number == signal.SIGINT else running.process.send_signal(number)
            eventually(lambda: is_refused(httpx.URL(url)))  # a client may then try another instance
            ended.set()  # the rest arrives during the shutdown
            yield content[100:]

        answer = httpx.post(f"{url}/predict", content=body(), headers={"Content-Type": "application/json"})
        assert ended.is_set()
        assert answer.status_code == 200
        output, errors = running.wait()
        assert (running.process.returncode, output, errors) == (0, "", "")
        eventually(lambda: not any(map(is_alive, children)))


def is_refused(url: httpx.URL) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((url.host, url.port)) == errno.ECONNREFUSED


@pytest.mark.parametrize("executor", ["inprocess", "workers"])
@pytest.mark.slow
def test_children_do_not_outlive_a_killed_parent(one_model: Path, executor: str) -> None:
    with starting_service(one_model, "--executor", executor, "--api-servers", "2", forked=False) as running:
        running.wait_until_ready()
        children = running.children()
        running.end(signal.SIGKILL)
        eventually(lambda: not any(map(is_alive, children)))


@pytest.mark.slow
def test_a_hanging_worker_causes_only_timeouts(one_model: Path) -> None:
    flags = ("--executor", "workers", "--api-servers", "1", "--request-timeout", "0.5")
    with starting_service(one_model, *flags) as running:
        url = running.wait_until_ready()
        worker = running.children()[0]
        os.kill(worker, signal.SIGSTOP)
        answer = httpx.post(f"{url}/predict/student", json=ONE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timed_out")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/predict/student", json=ONE, timeout=0.1)
        gone = '{model="student",protocol="rest",status="499",version="1"} 1.0'
        eventually(lambda: gone in httpx.get(f"{url}/metrics").text)
        os.kill(worker, signal.SIGCONT)
        eventually(lambda: httpx.post(f"{url}/predict/student", json=ONE).status_code == 200)
        assert running.end() == ("", "")


@pytest.mark.slow
def test_a_port_in_use_is_a_one_line_error(one_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in failed_start(
            one_model, port=port
        )
    port = free_port()
    with starting_service(one_model, port=port) as first:
        first.wait_until_ready()
        assert "Address already in use" in failed_start(one_model, port=port)


@pytest.mark.slow
def test_invalid_repositories_and_settings_are_one_line_errors(one_model: Path, tmp_path: Path) -> None:
    assert "there is no model repository at" in failed_start(tmp_path / "nowhere")
    assert "--default-model: there is no model 'nobody'; known: student" in failed_start(
        one_model, "--default-model", "nobody"
    )
    assert "--host '256.0.0.1' is not an address" in failed_start(one_model, "--host", "256.0.0.1")
    assert "--device cuda: this onnxruntime has no CUDAExecutionProvider; use --device cpu" in failed_start(
        one_model, "--device", "cuda"
    )
    broken = copytree(one_model, tmp_path / "models")
    (broken / "student/1/model.onnx").write_bytes(b"no graph")
    assert "export the model again" in failed_start(broken)


@pytest.mark.slow
def test_a_forked_service_does_not_outlive_killed_tests(one_model: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.support.service import running_service
with running_service(Path(sys.argv[1]), "--api-servers", "1") as service:
    print(service.process.pid, *service.children(), flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(one_model)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout
        started = [int(pid) for pid in tests.stdout.readline().split()]
        assert len(started) == 2
        assert all(map(is_alive, started))
        tests.kill()
    eventually(lambda: not any(map(is_alive, started)))
