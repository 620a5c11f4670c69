"""Cores that a process may use: by affinity and by the CPU quota of its control groups, of both versions."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from distillery.machine import Throttling, cpu_throttling, usable_cores
from tests.support.root import as_root

HOST_CORES = 16
UNIFIED = "29 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
CPU = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with more cores than any quota of these tests."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(HOST_CORES)), raising=False)


def machine(folder: Path, groups: str, mounts: str, files: Mapping[str, str]) -> Path:
    """A root folder with the process's groups, the mounts, and files below /sys/fs/cgroup."""
    own = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    for name, content in (
        own | {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    ).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000\n", HOST_CORES),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),  # docker run --cpus 2.5
        ("10000 100000\n", 1),  # Kubernetes: 100m
        ("6400000 100000\n", HOST_CORES),  # above the machine's
        ("25000 50000\n", 1),
        ("", HOST_CORES),
        ("strange\n", HOST_CORES),
    ],
)
def test_a_quota_of_version_2_is_rounded_up(quota: str, cores: int, tmp_path: Path) -> None:
    """A container sees its own group at the mount point."""
    assert usable_cores(machine(tmp_path, "0::/\n", UNIFIED.format(root="/"), {"cpu.max": quota})) == cores


def test_the_smallest_quota_of_all_ancestors_counts(tmp_path: Path) -> None:
    files = {
        "kubepods.slice/cpu.max": "800000 100000\n",
        "kubepods.slice/pod.slice/cpu.max": "300000 100000\n",
        "kubepods.slice/pod.slice/app.scope/cpu.max": "max 100000\n",
    }
    groups = "0::/kubepods.slice/pod.slice/app.scope\n"
    assert usable_cores(machine(tmp_path, groups, UNIFIED.format(root="/"), files)) == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("-1", HOST_CORES), ("150000", 2), ("50000", 1), ("0", HOST_CORES)]
)
def test_a_quota_of_version_1_is_rounded_up(quota: str, cores: int, tmp_path: Path) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": f"{quota}\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
    groups = "11:memory:/\n4:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n"
    assert usable_cores(machine(tmp_path, groups, CPU.format(root="/") + MEMORY, files)) == cores


def test_a_container_may_see_the_path_of_its_group_on_the_host(tmp_path: Path) -> None:
    """Without a control group namespace; with one of another container, the path leads out of the mount."""
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
    for groups, root in (
        ("4:cpu,cpuacct:/docker/12ab\n", "/docker/12ab"),
        ("4:cpu,cpuacct:/docker/12ab\n", "/"),
        ("4:cpu,cpuacct:/../elsewhere\n", "/"),
    ):
        assert usable_cores(machine(tmp_path, groups, CPU.format(root=root), files)) == 4, (groups, root)


def test_a_hybrid_machine_has_the_quota_of_either_version(tmp_path: Path) -> None:
    unified = UNIFIED.format(root="/").replace("/sys/fs/cgroup", r"/sys/fs/cgroup/uni\040fied")
    files = {
        "uni fied/app/cpu.max": "500000 100000\n",
        "cpu,cpuacct/app/cpu.cfs_quota_us": "900000\n",
        "cpu,cpuacct/app/cpu.cfs_period_us": "100000\n",
    }
    groups = "4:cpu,cpuacct:/app\n0::/app\n"
    assert usable_cores(machine(tmp_path, groups, CPU.format(root="/") + unified, files)) == 5


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores(tmp_path) == HOST_CORES  # no /proc
    assert usable_cores(machine(tmp_path, "", "", {})) == HOST_CORES
    assert (
        usable_cores(machine(tmp_path, "0\n\n1:cpu\n", "32 31\n\n - cgroup\n1 2 3 4 5 - cgroup2\n", {}))
        == HOST_CORES
    )
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores(tmp_path) == os.cpu_count()


@pytest.fixture
def own_group() -> Iterator[Path]:
    """A new control group of this machine with a quota of half a core."""
    limit = """
        mkdir "$1" && cd "$1"
        if [ -e cpu.max ]; then echo 50000 100000 > cpu.max
        elif [ -e cpu.cfs_quota_us ]; then echo 50000 > cpu.cfs_quota_us
        else rmdir "$1"; exit 1; fi
    """
    for top in ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"):
        group = Path(top) / f"distillery-test-{os.getpid()}"
        with suppress(subprocess.CalledProcessError, FileNotFoundError):
            as_root(limit, group)
            break
    else:
        pytest.skip(
            "this machine allows no control group with a CPU quota; run as root, or where sudo is allowed"
        )
    yield group
    as_root('rmdir "$1"', group)


@pytest.mark.slow
def test_a_process_in_a_real_control_group_counts_its_quota(own_group: Path) -> None:
    code = f"""
import os
os.sched_getaffinity = lambda _: range({HOST_CORES})
from distillery.machine import usable_cores
from serving.__main__ import Serve
from training.loop.device import choose_device
import torch
choose_device("cpu", "float32", threads=None)
print(usable_cores(), Serve.parse([]).api_servers, torch.get_num_threads(), os.environ["OPENBLAS_NUM_THREADS"])
"""
    enter = 'echo $$ > "$1/cgroup.procs"; unset OPENBLAS_NUM_THREADS; exec "$2" -c "$3"'
    run = as_root(enter, own_group, sys.executable, code)
    assert run.stdout == "1 1 1 1\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "file", "content"),
    [
        (
            "0::/\n",
            UNIFIED,
            "cpu.stat",
            "usage_usec 9\nnr_periods 7\nnr_throttled 3\nthrottled_usec 1500000\n",
        ),
        (
            "4:cpu,cpuacct:/\n",
            CPU,
            "cpu,cpuacct/cpu.stat",
            "nr_periods 7\nnr_throttled 3\nthrottled_time 1500000000\n",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_throttling_is_that_of_the_control_group(
    groups: str, mounts: str, file: str, content: str, tmp_path: Path
) -> None:
    root = machine(tmp_path, groups, mounts.format(root="/"), {file: content})
    assert cpu_throttling(root) == Throttling(7, 3, 1.5)


@pytest.mark.parametrize("content", ["usage_usec 9\n", "strange\n", ""])
def test_without_a_quota_nothing_is_throttled(content: str, tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", UNIFIED.format(root="/"), {"cpu.stat": content})
    assert cpu_throttling(root) == Throttling()
    assert cpu_throttling(tmp_path / "nowhere") == Throttling()
