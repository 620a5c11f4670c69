"""The service as its operator sees it: a process, its output, its children."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.systems.servers import ROOT


class Service:
    """A service as its operator sees it: a process, its output, its children."""

    def __init__(self, models_dir: Path, *flags: str, port: int = 0) -> None:
        command = [
            sys.executable,
            "-m",
            "serving",
            "--models-dir",
            str(models_dir),
            "--port",
            str(port),
            *flags,
        ]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_until_ready(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert "ready at" in line, line + self.end()[1]
        return line.split()[3]

    def end(self, number: int = signal.SIGTERM) -> tuple[str, str]:
        self.process.send_signal(number)
        return self.process.communicate(timeout=30)

    def children(self) -> list[int]:
        """The API processes, and spawned workers, but not Python's own resource tracker."""
        listing = subprocess.run(
            [
                "ps",
                "-ww",
                "-o",
                "pid=,args=",
                "--ppid",
                str(self.process.pid),
            ],  # whole lines, whatever COLUMNS
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        return [int(line.split()[0]) for line in listing.splitlines() if "resource_tracker" not in line]


@contextmanager
def service(models_dir: Path, *flags: str, port: int = 0) -> Iterator[Service]:
    running = Service(models_dir, *flags, port=port)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGKILL)  # a stopped worker too: it holds the pipes
            running.process.communicate(timeout=30)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def failing(models_dir: Path, *flags: str, port: int = 0) -> str:
    """The one line that a service that cannot start says."""
    with service(models_dir, *flags, port=port) as running:
        output, errors = running.process.communicate(timeout=30)
        assert (running.process.returncode, output) == (1, "")
        assert errors.count("\n") == 1, errors
        return errors
