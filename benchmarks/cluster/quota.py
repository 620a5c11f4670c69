"""CPU quotas of processes, by control groups of version 1 or 2: hosts that have less than a core each."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psutil

from benchmarks.errors import BenchmarkError

GROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 10_000
"""A tenth of the kernel's default: a process that has used its quota waits for 10 ms at most."""
_numbers = count()


@contextmanager
def cpu_quota(processes: Iterable[psutil.Process], cores: float) -> Iterator[None]:
    """Limit processes, and those that they start, to this part of the CPU time of a core, together.

    Raises `BenchmarkError` without root rights.
    """
    unified = (GROUPS / "cgroup.controllers").exists()
    parent = GROUPS if unified else GROUPS / "cpu"
    group = parent / f"distillery-{os.getpid()}-{next(_numbers)}"
    quota = round(cores * PERIOD_US)
    try:
        group.mkdir()
        if unified:
            (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        for process in processes:
            (group / "cgroup.procs").write_text(str(process.pid))
    except OSError as error:
        raise BenchmarkError(f"cannot set a CPU quota: {error}; control groups need root rights") from None
    try:
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):  # it has ended
                (parent / "cgroup.procs").write_text(pid)
        for _ in range(100):  # a group is busy while killed processes end
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.02)
