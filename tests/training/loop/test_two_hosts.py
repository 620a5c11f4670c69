"""`torchrun` on two hosts: every host is a network namespace, every process real."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from benchmarks.cluster.hosts import Host, network
from tests.support.root import needs_root
from tests.support.service import eventually
from tests.training.conftest import call
from training.model.checkpoint import load_tensors
from training.runs.folder import RunError, read_history

RECIPE = """
[teacher]
hidden = [64, 32]
norm = false
epochs = 12
batch_size = 25
learning_rate = 0.003
augmentation = { shift = 2 }

[student]
hidden = [32]
norm = false
epochs = 4
batch_size = 50
control = false

[student.distillation]
temperature = 4
"""
TOLERANCE = 1e-3
"""Of the norm of each layer's weights. Sums in another order changed them by 5e-7; without the other host's gradients
they differ by more than a tenth."""
SECONDS = 90
"""Limit of every wait; the machine may be busy."""
PORT = 29400
SCRIPT = Path(__file__).parents[2] / "support" / "training" / "train_on_samples.py"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), needs_root]


@dataclass(frozen=True)
class Torchrun:
    """The agent of `torchrun` on each host, with a process that trains."""

    agents: list[subprocess.Popen[bytes]]
    outs: list[Path]

    def wait(self) -> list[int]:
        """Return the status of each host."""
        return [agent.wait(SECONDS) for agent in self.agents]

    def read(self, rank: int, name: str) -> str:
        """Return what a host has written to `output` or `errors`."""
        return (self.outs[rank] / name).read_text()

    def epochs(self) -> int:
        """Return the number of epochs of the teacher that rank 0 has saved."""
        assert all(agent.poll() is None for agent in self.agents), self.read(0, "errors")
        for folder in self.outs[0].glob("small/teacher-*"):
            with suppress(RunError):
                return len(read_history(folder))
        return 0

    def kill(self, rank: int) -> None:
        """Kill all processes of a host."""
        with suppress(psutil.NoSuchProcess):  # it has ended
            agent = psutil.Process(self.agents[rank].pid)
            for process in [*agent.children(recursive=True), agent]:
                process.kill()


def is_listening(process: int) -> bool:
    """Return whether a process on the host of `process` listens on `PORT` (proc(5), /proc/net/tcp)."""
    tables = (Path(f"/proc/{process}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    sockets = [line.split() for table in tables for line in table.splitlines()[1:]]
    return any(int(local.split(":")[1], 16) == PORT and state == "0A" for _, local, _, state, *_ in sockets)


@contextmanager
def torchrun(hosts: list[Host], folder: Path, *flags: str) -> Iterator[Torchrun]:
    """Start a training on all hosts, each with a folder of its own; rank 0 is the first host."""
    group = ["--nnodes", str(len(hosts)), "--nproc-per-node", "1"]
    group += ["--master-addr", hosts[0].address, "--master-port", str(PORT)]
    with ExitStack() as stack:
        run = Torchrun([], [folder / host.name for host in hosts])
        for rank, host in enumerate(hosts):
            run.outs[rank].mkdir(exist_ok=True)
            command = [sys.executable, "-m", "torch.distributed.run", *group, "--node-rank", str(rank)]
            command += [str(SCRIPT), str(folder / "mnist"), "--recipe", str(folder / "small.toml")]
            command += ["--out", str(run.outs[rank]), *flags]
            output = stack.enter_context((run.outs[rank] / "output").open("wb"))
            errors = stack.enter_context((run.outs[rank] / "errors").open("wb"))
            with host.entered():
                agent = subprocess.Popen(command, stdout=output, stderr=errors)
            run.agents.append(stack.enter_context(agent))
            stack.callback(run.kill, rank)
            # torch tries a refused connection again after up to a minute.
            eventually(lambda: is_listening(run.agents[0].pid), seconds=SECONDS)
        yield run


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with network("one", "two") as found:
        yield found


def test_two_hosts_train_the_weights_of_one_and_a_lost_host_ends_both_until_they_resume(
    hosts: list[Host], mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "small.toml").write_text(RECIPE)
    with torchrun(hosts, tmp_path, "--peer-timeout=5") as run:
        eventually(lambda: run.epochs() >= 2, seconds=SECONDS)
        hosts[1].disconnect()
        assert run.wait() == [1, 1]
        for rank in (0, 1):
            assert f"rank {rank}: another process has ended or does not respond" in run.read(rank, "errors")
        hosts[1].connect()

    with torchrun(hosts, tmp_path) as run:
        assert run.wait() == [0, 0], run.read(0, "errors")
        assert "teacher: resumed after epoch" in run.read(0, "output")
        assert run.read(1, "output") == ""  # rank 0 alone prints and writes
        assert {file.name for file in run.outs[1].iterdir()} == {"output", "errors"}

    assert call("--recipe=small.toml", f"--data-dir={mnist}") == 0
    for name in ("teacher", "student"):
        ours, metadata = load_tensors(tmp_path / "one" / "small" / name / "model.safetensors")
        theirs, expected = load_tensors(tmp_path / "runs" / "small" / name / "model.safetensors")
        assert metadata["processes"] == 2
        for key in theirs:
            difference = (ours[key] - theirs[key]).double().norm()
            assert difference <= TOLERANCE * theirs[key].double().norm(), key
        assert abs(metadata["validation_errors"] - expected["validation_errors"]) <= 1  # of 100 digits
