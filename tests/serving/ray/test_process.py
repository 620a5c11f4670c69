"""The service as a child of an actor; no Ray is needed."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from serving.processes.sockets import ServiceError
from serving.ray.process import ServiceProcess
from serving.ray.settings import NodeSettings
from tests.support.service import ROOT, eventually, free_port

PATIENCE_S = 60
ACTOR = """
import sys
from pathlib import Path
from serving.ray.process import ServiceProcess
from serving.ray.settings import NodeSettings

models_dir, port = Path(sys.argv[1]), int(sys.argv[2])
settings = NodeSettings(models_dir=models_dir, port=port, host="127.0.0.1", shutdown_delay=0, api_servers=1)
service = ServiceProcess(settings)
print("ready", flush=True)
sys.stdin.read()
"""


def node_settings(models_dir: Path, port: int) -> NodeSettings:
    return NodeSettings(models_dir=models_dir, port=port, host="127.0.0.1", shutdown_delay=0, api_servers=1)


def test_the_service_runs_until_it_is_stopped(one_model: Path) -> None:
    port = free_port()
    service = ServiceProcess(node_settings(one_model, port))
    try:
        service.check()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/models") as response:
            assert json.load(response)["default"] == "student"
        child = psutil.Process(service._process.pid)
        children = child.children()
        assert children
    finally:
        service.stop()
    assert not any(process.is_running() for process in (child, *children))


def test_a_service_that_died_fails_its_check_and_its_place_is_free(one_model: Path) -> None:
    port = free_port()
    service = ServiceProcess(node_settings(one_model, port))
    try:
        child = psutil.Process(service._process.pid)
        child.kill()
        child.wait()
        with pytest.raises(ServiceError, match="the service ended with status"):
            service.check()
    finally:
        service.stop()
    service = ServiceProcess(node_settings(one_model, port))
    service.stop()


def test_a_missing_model_repository_is_named(tmp_path: Path) -> None:
    before = psutil.Process().children()  # of other tests
    with pytest.raises(ServiceError, match=r"there is no model repository at .*missing"):
        ServiceProcess(node_settings(tmp_path / "missing", free_port()))
    assert psutil.Process().children() == before


def test_the_service_ends_with_its_actor_even_if_that_is_killed(one_model: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", ACTOR, str(one_model), str(port)]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as actor:
        try:
            assert actor.stdout
            assert b"ready\n" in iter(actor.stdout.readline, b"")
            [service] = psutil.Process(actor.pid).children()
            processes = [service, *service.children()]
            actor.send_signal(signal.SIGKILL)
            eventually(lambda: not any(process.is_running() for process in processes), PATIENCE_S)
        finally:
            actor.kill()
