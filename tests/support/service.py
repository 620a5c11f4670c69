"""Run the service as its operator does: a process, the line it prints when ready, its children."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import httpx

from tests.support.forkserver import Forked, ForkServer

ROOT = Path(__file__).parents[2]
MODULE = ("-m", "serving")
IMPORTS = (
    "grpc_health.v1.health_pb2",
    "grpc_reflection.v1alpha.reflection_pb2",
    "pydantic.v1",
    "rich.progress",
    "serving.__main__",
    "serving.codecs.open_inference.open_inference_pb2",
    "serving.service",
    "uvicorn.lifespan.on",
    "uvloop",
)
"""What a service imports, except gRPC, which is imported after the fork."""
PATIENCE_S = 30
API_KEY = "correct horse"
"""Of the service that the fixture `strict_service` runs."""


@cache
def fork_server() -> ForkServer:
    """Return the process that services are forked from; it ends with this one."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(ForkServer.start(*IMPORTS))


class Service:
    """`distillery-serve` on a free port; its output and its errors are in `folder`.

    It is forked from a process that has imported what it needs, unless it has a `program`, Python's arguments (`MODULE`
    is the service), or a `prefix`, a command that runs the program.
    `environment` is added to the current one, which loses its DISTILLERY_ variables; None removes a variable. Without
    `models_dir` or `port` (None), the settings come from elsewhere.
    """

    url: str
    grpc: str
    """Address of gRPC; set by `wait_until_ready`, as `url` is, where `--grpc-port` is given."""

    def __init__(
        self,
        folder: Path,
        models_dir: Path | None,
        *flags: str,
        port: int | None = 0,
        program: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
        cwd: Path = ROOT,
        prefix: Sequence[str] = (),
    ) -> None:
        place = [] if models_dir is None else ["--models-dir", str(models_dir.resolve())]
        place += [] if port is None else ["--port", str(port)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISTILLERY_")}
        variables = inherited | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
        env = {name: value for name, value in variables.items() if value is not None}
        output, errors = folder / "output", folder / "errors"
        self.output, self.errors = _open_pipe(output), _open_pipe(errors)
        self.process: Forked | subprocess.Popen[bytes]
        if not (program or prefix):
            self.process = fork_server().run(
                "distillery-serve", *place, *flags, output=output, errors=errors, environment=env, cwd=cwd
            )
            return
        command = [*prefix, sys.executable, *(program or MODULE), *place, *flags]
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=env, stdout=stdout, stderr=stderr, start_new_session=True
            )

    def wait_until_ready(self) -> str:
        """Return the URL that the ready line names."""
        line = self.read_line()
        assert "ready at" in line, line + self.wait()[1]
        self.url = line.split()[3]
        if (grpc := line.split(" · ")[1]).startswith("gRPC at "):
            self.grpc = grpc.removeprefix("gRPC at ")
        return self.url

    def read_line(self) -> str:
        """Return the next line of its output."""
        return self.output.readline()

    def end(self, number: int = signal.SIGTERM) -> tuple[str, str]:
        """Send a signal and return the rest of its output and its errors."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[str, str]:
        """Wait until it ends and return the rest of its output and its errors."""
        self.process.wait(timeout=PATIENCE_S)
        return self.output.read() if not self.output.closed else "", self.errors.read()

    def children(self) -> list[int]:
        """Return the ids of workers and API processes, oldest first; Python's own helpers are not among them."""
        command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)]  # -ww: whole lines
        listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return [
            int(line.split()[0])
            for line in listing.splitlines()
            if "multiprocessing.resource_tracker" not in line and "multiprocessing.forkserver" not in line
        ]


@contextmanager
def starting_service(models_dir: Path | None, *flags: str, **options: Any) -> Iterator[Service]:
    """Start a service and yield it at once; whatever is left of it at the end is killed."""
    with TemporaryDirectory() as folder:
        service = Service(Path(folder), models_dir, *flags, **options)
        with service.output, service.errors:
            try:
                yield service
            finally:
                if service.process.poll() is None:
                    os.killpg(service.process.pid, signal.SIGKILL)
                    service.process.wait()


@contextmanager
def running_service(models_dir: Path | None, *flags: str, **options: Any) -> Iterator[Service]:
    """Start a service, yield it when it is ready, and check that SIGTERM ends it with status 0."""
    with starting_service(models_dir, *flags, **options) as service:
        service.wait_until_ready()
        yield service
        errors = service.end()[1]
        assert service.process.returncode == 0, errors


def failed_start(models_dir: Path | None, *flags: str, status: int = 1, **options: Any) -> str:
    """Return the one line that a service prints which cannot start; with status 2 a line on --help follows."""
    with starting_service(models_dir, *flags, **options) as service:
        output, errors = service.wait()
        assert (service.process.returncode, output) == (status, "")
        assert errors.count("\n") == status, errors
        return errors


def _open_pipe(path: Path) -> TextIO:
    """Make a named pipe and open it for reading."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    return os.fdopen(reader)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def let_it_read(url: str) -> None:
    """Return when the API process, if there is one only, has read what other connections sent before.

    Every turn of its event loop reads whatever has arrived; the second response takes another turn.
    """
    with httpx.Client(base_url=url) as client:
        for _ in range(2):
            client.get("/health/live")
