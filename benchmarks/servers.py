"""Servers to measure, each in processes of its own: our service, and others for comparison."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

from benchmarks.errors import BenchmarkError

Executor = Literal["inprocess", "workers"]
ROOT = Path(__file__).resolve().parent.parent
FIRST_EXAMPLE = ROOT / "benchmarks/peers/litserve_first_example/server.py"
START_S = 60
STOP_S = 15


@contextlib.contextmanager
def running_service(models_dir: Path, *flags: str) -> Iterator[str]:
    """Run `python -m serving` over `models_dir` on a free port of the loopback interface; yield its URL.

    Ended with SIGTERM; raises `BenchmarkError` when it does not end cleanly.
    """
    command = ["-m", "serving", "--models-dir", str(models_dir.resolve()), "--port", "{port}", *flags]
    with _running(command, ready="/health/ready") as (url, process):
        yield url
        process.terminate()
        if status := process.wait(STOP_S):
            raise BenchmarkError(f"the service ended with status {status} after SIGTERM, expected 0")


@contextlib.contextmanager
def running_first_example(model_path: Path) -> Iterator[str]:
    """Run LitServe's documented first example with this ONNX file; yield its URL."""
    with _running([str(FIRST_EXAMPLE), str(model_path.resolve()), "{port}"], ready="/health") as (url, _):
        yield url


@contextlib.contextmanager
def _running(arguments: Sequence[str], *, ready: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    command = [sys.executable, *(argument.format(port=port) for argument in arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DISTILLERY_")}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}{ready}", process, log)
            yield f"http://127.0.0.1:{port}", process
        finally:
            _stop(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.05)
    log.seek(0)
    said = log.read()[-2000:].decode(errors="replace").strip()
    raise BenchmarkError(f"no server became ready at {url} within {START_S} s; it said:\n{said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server as Ctrl-C does, then whatever of its process group is left: LitServe's are not tidy."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
