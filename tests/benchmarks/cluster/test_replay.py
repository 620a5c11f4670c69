"""A short replay: a real Prometheus sees a real load rise, and a second replica starts."""

from pathlib import Path
from shutil import which

import pytest

from benchmarks.cluster.replay import replay
from tests.support.root import needs_root

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.prometheus,
    pytest.mark.timeout(300),
    needs_root,
    pytest.mark.skipif(not which("prometheus"), reason="no prometheus: make system installs it"),
]


def test_a_second_replica_serves_when_the_load_rises(one_model: Path) -> None:
    shape = ((0, 0.2), (4, 0.2), (4, 1.0), (24, 1.0))
    data = replay(one_model, "student", shape=shape, faster=60, maximum=2, peak=1.2)
    samples = data["samples"]
    assert samples[0]["replicas"] == 1
    assert samples[-1]["replicas"] == 2
    assert data["answered"] > 100
    assert any(one["queue_wait_s"] is not None for one in samples)
    assert max(one["cpu"] or 0 for one in samples) > data["triggers"]["cpu"] * data["cores"]
