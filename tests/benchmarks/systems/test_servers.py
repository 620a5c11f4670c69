"""Memory of the measured processes."""

import signal
import subprocess
import sys
from typing import NamedTuple

import psutil
import pytest

from benchmarks.systems.servers import MIB, own_memory_mib
from tests.support.service import eventually, is_alive


class MemoryOfMacos(NamedTuple):
    """What psutil returns on macOS: no proportional set size."""

    rss: int = 9 * MIB
    vms: int = 99 * MIB
    pfaults: int = 0
    pageins: int = 0
    uss: int = 3 * MIB


def test_memory_is_the_proportional_set_size_or_the_unique_one(monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process()
    assert 10 < own_memory_mib(process) <= process.memory_info().rss / MIB * 1.1
    monkeypatch.setattr(psutil.Process, "memory_full_info", lambda _: MemoryOfMacos())
    assert own_memory_mib(process) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="this machine does not run Linux")
def test_a_server_ends_when_the_benchmark_is_killed() -> None:
    code = (
        "import os, signal, subprocess; from benchmarks.systems.servers import _end_with_parent\n"
        "print(subprocess.Popen(['sleep', '60'], preexec_fn=_end_with_parent).pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL
    server = int(killed.stdout)
    eventually(lambda: not is_alive(server))
