"""Memory of the measured processes."""

from typing import NamedTuple

import psutil
import pytest

from benchmarks.systems.servers import MIB, own_memory_mib


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
