"""Programs as processes that start within milliseconds: forked from one that has imported everything.

    with ForkServer.start("tests.support.faults.commands") as server:
        command = server.run("distillery-train", "--out", "runs")
        os.killpg(command.pid, signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL

Each process is the leader of a session. The server is `python -m tests.support.forkserver MODULE...`. It ends when its
standard input closes, also because pytest is killed, and kills what it has started.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from distillery import main
from tests.support.faults.crash import kill_at

ROOT = Path(__file__).parents[2]
PROGRAMS: dict[str, tuple[str, str | None]] = {
    "distillery-train": ("training.__main__", "train"),
    "distillery-export": ("export.__main__", "export"),
    "distillery-serve": ("serving.__main__", "serve"),
    "distillery-score": ("serving.scoring.__main__", "score"),
    "distillery-bench": ("benchmarks.__main__", None),
    "publish": ("tests.support.faults.publish", "publish"),
}
"""Module of each program, and its default command."""


class Forked:
    """A process that was started, with the attributes of `subprocess.Popen` that tests need."""

    def __init__(self, server: "ForkServer", pid: int, output: Path, errors: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server, self._output, self._errors = server, output, errors

    def poll(self) -> int | None:
        """Return its exit status when it has ended; minus the signal that ended it."""
        if self.returncode is None:
            self.returncode = self._server.request({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """Wait until it has ended and return its exit status. Raises `subprocess.TimeoutExpired`."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()


class ForkServer:
    """The process that programs are forked from."""

    def __init__(self, process: "subprocess.Popen[str]", outputs: Path, *, own_mounts: bool) -> None:
        self.process, self.outputs, self.own_mounts = process, outputs, own_mounts
        self._lock = threading.Lock()

    @classmethod
    @contextmanager
    def start(cls, *modules: str, prefix: Sequence[str] = (), **variables: str) -> Iterator["ForkServer"]:
        """Start a server that imports `modules`, with environment variables; `prefix` runs its program."""
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork has one thread only
        command = [*prefix, sys.executable, "-m", "tests.support.forkserver", *modules]
        with (
            tempfile.TemporaryDirectory() as outputs,
            subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | threads | variables,
                cwd=ROOT,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as process,
        ):
            try:
                yield cls(process, Path(outputs), own_mounts=bool(prefix))
            finally:
                assert process.stdin
                process.stdin.close()

    def request(self, request: Mapping[str, Any]) -> Any:
        """Send a request to the server and return its response."""
        assert self.process.stdin
        assert self.process.stdout
        with self._lock:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())

    def run(
        self,
        program: str,
        *arguments: str | Path,
        kill: tuple[int, Path] | None = None,
        output: Path | None = None,
        errors: Path | None = None,
        setup: str = "",
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> Forked:
        """Start a program, in the environment of the server by default.

        `kill`: see `tests.support.faults.crash.kill_at`. `setup` are Python statements that run before the program.
        """
        folder = Path(tempfile.mkdtemp(dir=self.outputs))
        output, errors = output or folder / "output", errors or folder / "errors"
        request = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "kill": [kill[0], str(kill[1])] if kill else None,
            "output": str(output),
            "errors": str(errors),
            "setup": setup,
            "environment": environment,
            "cwd": str(cwd),
        }
        return Forked(self, self.request(request), output, errors)

    def shell(self, script: str, *arguments: str | Path) -> None:
        """Run a shell script where the programs run; raises `AssertionError` where it fails."""
        assert self.request({"shell": [script, "sh", *map(str, arguments)]}) == 0


def _main(modules: Sequence[str]) -> None:
    for name in modules:
        import_module(name)
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1, threads
    gc.collect()
    gc.freeze()  # what is never collected is never copied by a fork
    running = set[int]()
    for line in sys.stdin:
        print(json.dumps(_respond(json.loads(line), running)), flush=True)
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _respond(request: dict[str, Any], running: set[int]) -> int | None:
    if "shell" in request:
        command = ["sh", "-ec", *request["shell"]]
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if "poll" in request:
        pid, status = os.waitpid(request["poll"], os.WNOHANG)
        running.discard(pid)
        return os.waitstatus_to_exitcode(status) if pid else None
    files = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(request["output"], os.O_WRONLY | os.O_CREAT),
        os.open(request["errors"], os.O_WRONLY | os.O_CREAT),
    )
    if not (pid := os.fork()):
        _run(request, files)
    for file in files:
        os.close(file)
    running.add(pid)
    return pid


def _run(request: dict[str, Any], files: Sequence[int]) -> None:
    os.setsid()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored in what a shell starts in the background
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if request["environment"] is not None:
        os.environ.clear()
        os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if request["kill"]:
        change, folder = request["kill"]
        kill_at(change, Path(folder))
    package, default = PROGRAMS[request["program"]]
    commands = import_module(package).COMMANDS
    sys.argv = [request["program"], *request["arguments"]]
    status: Any = 1
    try:
        exec(request["setup"], {})  # noqa: S102 - of a test
        status = main(request["program"], commands, default=default)
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 - as Python does
        traceback.print_exc()
    finally:
        os._exit(status)  # without the end of the interpreter, which takes longer than most commands


if __name__ == "__main__":
    _main(sys.argv[1:])
