"""`--engine ray` on two hosts, of which one is lost: the other scores what it had not finished."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from benchmarks.cluster.hosts import Host, network
from serving.model.tensors import Images
from tests.support.scoring import Score, files
from tests.support.service import ROOT, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

OBJECT_STORE_BYTES = 80_000_000
"""The least that Ray accepts is 75 MiB."""
START_S = 120


@contextmanager
def started(host: Host, *command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module on a host; whatever is left of the host's processes at the end is killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        with host.entered():
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            host.kill_processes()
            process.wait()


def test_the_parts_of_a_host_that_is_lost_are_scored_by_another_one(
    digits: Images, score: Score, one_model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "digits.npy", np.tile(digits, (10, 1, 1)))
    arguments = [str(tmp_path / "digits.npy"), "--part-items", "20", "--models-dir", str(one_model)]
    node = ["ray.scripts.scripts", "start", "--block", "--num-cpus", "1", "--include-log-monitor", "false"]
    node += ["--object-store-memory", str(OBJECT_STORE_BYTES)]
    with TemporaryDirectory() as folder, network("head", "worker") as (head, worker):
        node += ["--temp-dir", folder]  # a short path: sockets are in it
        address = f"{head.address}:6379"
        first = ["--head", "--node-ip-address", head.address, "--include-dashboard", "false"]
        second = ["--address", address, "--node-ip-address", worker.address]
        with ExitStack() as nodes:
            for host, own in ((head, first), (worker, second)):
                log = tmp_path / f"{host.name}.log"
                process = nodes.enter_context(started(host, *node, *own, log=log))
                eventually(lambda: process.poll() or b"Ray runtime started" in log.read_bytes(), START_S)  # noqa: B023
                assert process.poll() is None, log.read_text()
            command = ["serving.scoring", *arguments, "--out", str(tmp_path / "ray-out"), "--engine", "ray"]
            command += ["--ray-address", address]
            with started(head, *command, log=tmp_path / "command.log") as process:
                eventually(lambda: processes_of(worker, "_ScorePart"), START_S)
                eventually(lambda: len(list((tmp_path / "ray-out/predictions").glob("*"))) >= 5, START_S)
                worker.kill_processes()
                assert process.poll() is None
                assert process.wait(START_S) == 0, (tmp_path / "command.log").read_text()
    assert score(*arguments, "--out", tmp_path / "local") == 0
    assert files(tmp_path / "ray-out") == files(tmp_path / "local")


def processes_of(host: Host, name: str) -> list[int]:
    """Return the processes of a host with a name in their command line."""
    return [process.pid for process in host.processes() if name in " ".join(process.cmdline())]
