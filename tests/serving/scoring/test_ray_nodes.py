"""`--engine ray` on two hosts, of which one is lost: the other scores what it had not finished."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from benchmarks.cluster.engines import Site
from benchmarks.cluster.faults import hosts_of_a_cluster
from benchmarks.cluster.hosts import Host
from benchmarks.cluster.ray_engines import RayNodes
from serving.model.tensors import Images
from tests.support.root import needs_root
from tests.support.scoring import Score, files
from tests.support.service import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), needs_root]

PATIENCE_S = 120


def test_the_parts_of_a_host_that_is_lost_are_scored_by_another_one(
    digits: Images, score: Score, one_model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "digits.npy", np.tile(digits, (10, 1, 1)))
    arguments = [str(tmp_path / "digits.npy"), "--part-items", "20", "--models-dir", str(one_model)]
    out = tmp_path / "ray"
    with (
        TemporaryDirectory(prefix="d-") as folder,  # sockets have short paths
        hosts_of_a_cluster(2) as (_, entry, (kept, lost)),
        RayNodes(Site(entry=entry, models_dir=one_model, folder=Path(folder))) as engine,
    ):
        engine.start_nodes([kept, lost])
        command = [sys.executable, "-m", "serving.scoring", *arguments, "--out", str(out)]
        command += ["--engine", "ray", "--ray-address", engine.address]
        with (tmp_path / "log").open("wb") as log, entry.entered():
            process = subprocess.Popen(command, env=engine.environment(entry), stdout=log, stderr=log)
        try:
            eventually(lambda: scores(lost), PATIENCE_S)
            eventually(lambda: len(list(out.glob("predictions/*"))) >= 5, PATIENCE_S)
            engine.kill_host(lost)
            assert process.poll() is None
            assert process.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    assert score(*arguments, "--out", tmp_path / "local") == 0
    assert files(out) == files(tmp_path / "local")


def scores(host: Host) -> bool:
    """Return whether an actor of Ray Data runs on a host."""
    return any("_ScorePart" in " ".join(process.cmdline()) for process in host.processes())
