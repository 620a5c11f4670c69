"""Commands as processes that start within milliseconds: forked from one that has imported everything.

    with ForkServer.start(digits) as server:
        command = server.run("distillery-train", "--out", "runs")
        os.killpg(command.pid, signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL

Each command is the leader of a process group. The server is `python -m tests.support.forkserver DIGITS`.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from distillery import main
from tests.support.faults.crash import kill_at

ROOT = Path(__file__).parents[2]
PROGRAMS: dict[str, tuple[str, str | None]] = {
    "distillery-train": ("training.__main__", "train"),
    "distillery-export": ("export.__main__", "export"),
    "distillery-bench": ("benchmarks.__main__", None),
    "publish": ("tests.support.faults.publish", "publish"),
}
"""Module of each program, and its default command."""
PRELOADED = (
    "benchmarks.commands.http",
    "export.commands.export",
    "onnx.reference",
    "optuna.importance",
    "scipy.optimize",
    "scipy.stats",
    "tests.support.faults.publish",
    "training.commands.sweep",
    "training.commands.train",
)


@dataclass(frozen=True)
class Forked:
    """A command that was started; its output is in `folder`."""

    server: "ForkServer"
    pid: int
    folder: Path

    def wait(self) -> int:
        """Return its exit status when it has ended; minus the signal that ended it."""
        status = int(self.server.request({"wait": self.pid}))
        self.server.running.remove(self.pid)
        return status

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def errors(self) -> str:
        return (self.folder / "errors").read_text()


class ForkServer:
    """The process that commands are forked from."""

    def __init__(self, process: "subprocess.Popen[str]", outputs: Path, *, own_mounts: bool) -> None:
        self.process, self.outputs, self.own_mounts = process, outputs, own_mounts
        self.running: set[int] = set()

    @classmethod
    @contextmanager
    def start(cls, digits: Path, *, prefix: Sequence[str] = ()) -> Iterator["ForkServer"]:
        """Start a server whose commands take the sample digits in `digits` for MNIST; `prefix` runs its program."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [*prefix, sys.executable, "-m", "tests.support.forkserver", str(digits)]
        with (
            tempfile.TemporaryDirectory() as outputs,
            subprocess.Popen(
                command, env=environment, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process,
        ):
            server = cls(process, Path(outputs), own_mounts=bool(prefix))
            try:
                yield server
            finally:
                for pid in server.running:  # of a test that failed
                    os.killpg(pid, signal.SIGKILL)
                assert process.stdin
                process.stdin.close()

    def request(self, request: Mapping[str, Any]) -> Any:
        """Send a request to the server and return its response."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def run(
        self,
        program: str,
        *arguments: str | Path,
        kill: tuple[int, Path] | None = None,
        output: Path | None = None,
    ) -> Forked:
        """Start a command. `kill`: see `tests.support.faults.crash.kill_at`."""
        folder = Path(tempfile.mkdtemp(dir=self.outputs))
        (folder / "errors").touch()
        request = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "kill": [kill[0], str(kill[1])] if kill else None,
            "output": str(output or folder / "output"),
            "errors": str(folder / "errors"),
        }
        command = Forked(self, int(self.request(request)), folder)
        self.running.add(command.pid)
        return command

    def shell(self, script: str, *arguments: str | Path) -> None:
        """Run a shell script where the commands run; raises `AssertionError` where it fails."""
        assert self.request({"shell": [script, "sh", *map(str, arguments)]}) == 0


def _main(digits: Path) -> None:
    _import_everything(digits)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            response = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif "shell" in request:
            command = ["sh", "-ec", *request["shell"]]
            response = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        elif not (response := os.fork()):
            _run(request)
        print(response, flush=True)


def _import_everything(digits: Path) -> None:
    for name in PRELOADED:
        import_module(name)
    import optuna  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import tqdm  # noqa: PLC0415

    from distillery.files import sha256  # noqa: PLC0415
    from export.splits import Splits  # noqa: PLC0415
    from training.data import mnist  # noqa: PLC0415

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # no thread: a fork has one thread only
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(storage="sqlite://").ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    mnist.SHA256.update({name: sha256((digits / name).read_bytes()) for name in mnist.SHA256})
    mnist.VALIDATION_DIGITS = 100
    read = Splits.read

    def read_few(data_dir: Path | None) -> Splits:
        splits = read(data_dir)
        return Splits(splits.training, splits.validation, splits.test, drawn=30)

    Splits.read = read_few  # type: ignore[assignment, method-assign]
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1, threads
    os.environ |= {"DISTILLERY_DATA_DIR": str(digits), "COLUMNS": "200"}
    gc.collect()
    gc.freeze()  # what is never collected is never copied by a fork


def _run(request: dict[str, Any]) -> None:
    os.setsid()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored in what a shell starts in the background
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["output"], os.O_WRONLY | os.O_CREAT),
        (2, request["errors"], os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(name, flags), number)
    if request["kill"]:
        change, folder = request["kill"]
        kill_at(change, Path(folder))
    package, default = PROGRAMS[request["program"]]
    commands = import_module(package).COMMANDS
    sys.argv = [request["program"], *request["arguments"]]
    status: Any = 1
    try:
        status = main(request["program"], commands, default=default)
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001 - as Python does
        traceback.print_exc()
    finally:
        os._exit(status)  # without the end of the interpreter, which takes longer than most commands


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
