"""Properties of the machine that several packages need."""

import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of CPU cores this process may keep busy: by its affinity and by its CPU quota, rounded up.

    Where the operating system has neither (macOS), it is the machine's. `root` is the folder with `proc`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(root))]))


def lower_priority() -> None:
    """Let everything else run before this thread; Linux has priorities of threads."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class Throttling(NamedTuple):
    """How often the CPU quota of the process's control group has stopped its processes."""

    periods: int = 0
    """Of the quota, in which a process of the group ran."""
    throttled_periods: int = 0
    seconds: float = 0.0
    """In which processes were stopped, summed over the cores."""


def cpu_throttling(root: Path = Path("/")) -> Throttling:
    """Return the counts of the process's control group, of version 2 or 1; zeros without a quota, or not on Linux."""
    for file in _cpu_statistics(root):
        with suppress(OSError, ValueError):
            lines = file.read_text().splitlines()
            found = {name: int(count) for name, count in map(str.split, lines)}
            if "nr_periods" in found:
                seconds = found.get("throttled_usec", 0) / 1e6 + found.get("throttled_time", 0) / 1e9
                return Throttling(found["nr_periods"], found.get("nr_throttled", 0), seconds)
    return Throttling()


@cache  # parsing the mounts takes ten times as long as the rest
def _cpu_statistics(root: Path) -> tuple[Path, ...]:
    return tuple(top / path / "cpu.stat" for top, path in _control_groups(root))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the process's control groups and of their ancestors, of versions 2 and 1.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    https://docs.kernel.org/scheduler/sched-bwc.html
    """
    for top, path in _control_groups(root):
        for folder in (top / path, *(top / parent for parent in path.parents)):
            with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no quota: "max 100000"
                quota, period = (folder / "cpu.max").read_text().split()
                yield int(quota) / int(period)
            with suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                if int(quota) > 0:  # -1: none
                    yield int(quota) / int(period)


def _control_groups(root: Path) -> Iterator[tuple[Path, PurePosixPath]]:
    """Yield the mount point of each hierarchy that can limit CPU time, and the process's path below it."""
    try:
        memberships = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux, or no /proc
        return
    paths: dict[str, PurePosixPath] = {}
    for line in memberships:  # 4:cpu,cpuacct:/docker/12ab, or 0::/docker/12ab for version 2
        _, _, described = line.partition(":")
        controllers, _, own = described.partition(":")
        paths |= dict.fromkeys(controllers.split(","), PurePosixPath(own))
    for line in mounts:  # 32 31 0:29 ROOT MOUNT-POINT OPTIONS - KIND SOURCE OPTIONS
        place, _, described = line.partition(" - ")
        before, after = place.split(), described.split()
        if len(before) < 5 or len(after) < 2:
            continue
        top, point, controller = before[3], before[4], {"cgroup2": "", "cgroup": "cpu"}.get(after[0])
        if controller not in paths or (controller and controller not in after[-1].split(",")):
            continue
        # A container sees its own group as the root of the mount, but perhaps its path on the host.
        path = paths[controller]
        inside = path.is_relative_to(top) and ".." not in path.parts
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), point)
        yield root / point.lstrip("/"), path.relative_to(top) if inside else PurePosixPath()
