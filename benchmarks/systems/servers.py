"""Start and stop the servers to measure: our service and the peers."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

from benchmarks.errors import BenchmarkError
from benchmarks.systems.peer import Peer
from benchmarks.systems.processes import STOP_S, ServerProcess

Executor = Literal["inprocess", "workers"]
ROOT = Path(__file__).resolve().parents[2]
START_S = 60
PEER_START_S = 180  # Ray starts twelve processes


@contextlib.contextmanager
def running_service(models_dir: Path, *flags: str) -> Iterator[str]:
    """Run `python -m serving` over `models_dir` on a free port of the loopback interface; yield its URL.

    Stops it with SIGTERM. Raises `BenchmarkError` when it does not become ready, or ends with another status than 0.
    """
    with service_process(models_dir, *flags) as server:
        yield server.url


@contextlib.contextmanager
def service_process(models_dir: Path, *flags: str) -> Iterator[ServerProcess]:
    """Like `running_service`, but yield the processes."""
    port = free_port()
    place = ["--models-dir", str(models_dir.resolve()), "--port", str(port)]
    command = [sys.executable, "-m", "serving", *place, *flags]
    with _running(command, f"http://127.0.0.1:{port}", ready="/health/ready", timeout=START_S) as server:
        yield server
        server.resume()
        server.process.terminate()
        if status := server.process.wait(STOP_S):
            raise BenchmarkError(f"the service ended with status {status} after SIGTERM, expected 0")


@contextlib.contextmanager
def running_peer(peer: Peer, model_path: Path, python: Path, *, processes: int) -> Iterator[ServerProcess]:
    """Run a peer with this ONNX file in the environment of `python`; yield its processes.

    Raises `BenchmarkError` when it does not become ready.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as scratch:
        values = {
            "port": str(port),
            "model": str(model_path.resolve()),
            "processes": str(processes),
            "scratch": scratch,
        }
        values |= {name: str(free_port()) for name in peer.placeholders if name.endswith("_port")}
        environment = peer.filled_environment(values)
        environment["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        url = f"http://127.0.0.1:{port}"
        with _running(
            peer.filled_command(values),
            url,
            ready=peer.ready,
            timeout=PEER_START_S,
            cwd=peer.folder,
            environment=environment,
        ) as server:
            yield server


@contextlib.contextmanager
def _running(
    command: Sequence[str],
    url: str,
    *,
    ready: str,
    timeout: float,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISTILLERY_")}
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**inherited, **(environment or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise BenchmarkError(
                f"cannot start {' '.join(command)}: there is no program {command[0]}"
            ) from None
        server = ServerProcess(process, url)
        try:
            _wait_until_ready(f"{url}{ready}", process, log, timeout)
            server.seconds_to_start = time.monotonic() - started
            yield server
        finally:
            server.stop()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310
            if response.status == 200:
                return
        time.sleep(0.05)
    log.seek(0)
    output = log.read()[-2000:].decode(errors="replace").strip()
    raise BenchmarkError(f"no server became ready at {url} within {timeout} s; its output:\n{output}")


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
