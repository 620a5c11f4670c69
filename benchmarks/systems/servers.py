"""Start and stop the servers to measure, our service and the peers; memory and CPU time of their processes."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal
from urllib.error import HTTPError

import psutil

from benchmarks.errors import BenchmarkError
from benchmarks.systems.peer import Peer

Executor = Literal["inprocess", "workers"]
ROOT = Path(__file__).resolve().parents[2]
START_S = 60
PEER_START_S = 180  # Ray starts twelve processes
STOP_S = 15
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
_CPU_CLOCK = 2
"""CPUCLOCK_SCHED of the kernel's posix-timers.h."""
MIB = 2**20


class ServerProcess:
    """A server started with `start_new_session=True`, and all processes it started.

    They are not always one process group: Ray's form groups of their own within the session, BentoML's form sessions of
    their own below their parent. Members of the session and descendants of the first process belong to the server.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self.seconds_to_start = 0.0

    def all(self) -> list[psutil.Process]:
        """Return the running processes, the first one included."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            found = {process.pid: process for process in (first, *first.children(recursive=True))}
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):  # gone, or of another user on macOS
                if os.getsid(process.pid) == self.process.pid:
                    found[process.pid] = process
        return list(found.values())

    def pause(self) -> None:
        """Stop all processes (SIGSTOP) until `resume`; return when they have stopped."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + STOP_S
        stopped = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        while any(process.status() not in stopped for process in self.all()) and time.monotonic() < deadline:
            time.sleep(0.01)

    def resume(self) -> None:
        """Continue all processes (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def memory_mib(self) -> float:
        """Return the memory of all processes, see `own_memory_mib`."""
        return sum(map(own_memory_mib, self.all()))

    def cpu_seconds(self) -> float:
        """Return the CPU time of all running processes since their start."""
        return sum(map(own_cpu_seconds, self.all()))

    def cpu_of_a_core(self, seconds: float) -> float:
        """Measure for `seconds`; return the CPU time of all processes as a fraction of one core."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / seconds

    def stop(self) -> None:
        """Interrupt the server, then kill all remaining processes: LitServe and Ray leave some."""
        before = self.all()
        self.resume()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        for process in {*before, *self.all()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in self.all():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def own_memory_mib(process: psutil.Process) -> float:
    """Return the proportional set size: a page shared by n processes counts as 1/n each.

    Where the operating system does not report it (macOS), the unique set size: shared pages do not count.
    """
    memory = process.memory_full_info()
    own: int = getattr(memory, "pss", memory.uss)
    return own / MIB


def own_cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process; 0 if it has ended.

    On Linux by its CPU clock (`clock_getcpuclockid(3)`: a process id is part of the clock's number), because the times
    in /proc are multiples of 10 ms.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                return time.clock_gettime(~process.pid << 3 | _CPU_CLOCK)
        return float(sum(process.cpu_times()[:2]))
    return 0.0


def api_processes(server: ServerProcess) -> list[psutil.Process]:
    """Return the API processes of our service: its children without model workers and Python's own."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if not any("multiprocessing" in part for part in child.cmdline())]


@contextlib.contextmanager
def running_service(models_dir: Path, *flags: str) -> Iterator[ServerProcess]:
    """Run `python -m serving` over `models_dir` on a free port of the loopback interface; yield its processes.

    Stops it with SIGTERM. Raises `BenchmarkError` when it does not become ready, or ends with another status than 0.
    """
    port = free_port()
    place = ["--models-dir", str(models_dir.resolve()), "--port", str(port)]
    command = [sys.executable, "-m", "serving", *place, *flags]
    with running(command, f"http://127.0.0.1:{port}", ready="/health/ready") as server:
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
        values = _Placeholders(
            port=str(port), model=str(model_path.resolve()), processes=str(processes), scratch=scratch
        )
        environment = {name: value.format_map(values) for name, value in peer.environment.items()}
        environment["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        with running(
            [argument.format_map(values) for argument in peer.command],
            f"http://127.0.0.1:{port}",
            ready=peer.ready,
            timeout=PEER_START_S,
            cwd=peer.folder,
            environment=environment,
        ) as server:
            yield server


class _Placeholders(dict[str, str]):
    """Values of a peer's placeholders: any unknown ..._port is another free port."""

    def __missing__(self, _: str) -> str:
        return str(free_port())


@contextlib.contextmanager
def running(
    command: Sequence[str],
    url: str,
    *,
    ready: str,
    timeout: float = START_S,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Run a server until the end of the block; yield its processes when `url` and `ready`, a path, respond with 200.

    Raises `BenchmarkError` when it does not become ready.
    """
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
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one call of the kernel
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


def _end_with_parent() -> None:
    """Let Linux end this process when its parent dies: a service must not outlive a benchmark that was killed."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310
                if response.status == 200:
                    return
        except HTTPError as error:  # it holds the connection
            error.close()
        except OSError:
            pass
        time.sleep(0.05)
    log.seek(0)
    output = log.read()[-2000:].decode(errors="replace").strip()
    raise BenchmarkError(f"no server became ready at {url} within {timeout} s; its output:\n{output}")


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
