"""`--engine ray`: a real Ray cluster on this machine, with the results of local processes."""

from pathlib import Path

import numpy as np
import pytest

from serving.model.tensors import Images
from tests.support.scoring import Score, files, rows
from tests.support.service import ROOT

pytestmark = [
    pytest.mark.slow,  # a cluster takes ten seconds to start, and its actors as many
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),  # of its own fields
]


def test_ray_writes_the_same_files_as_processes_after_a_file_that_crashes_its_reader_too(
    digits: Images, pictures: list[bytes], score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One cluster for all of it: the crash ends a process, its part is named, and the next run scores what is left."""
    np.save(tmp_path / "digits.npy", digits)
    (tmp_path / "pictures").mkdir()
    for number, content in enumerate([*pictures[:3], b"no picture"]):
        (tmp_path / f"pictures/{number}.png").write_bytes(content)
    good = [tmp_path / "digits.npy", tmp_path / "pictures", "--part-items", 50, "--out"]
    crashing = ROOT / "tests/data/contradicting.parquet"
    assert score(crashing, *good, tmp_path / "ray", "--engine", "ray", "--processes", 2) == 1
    assert f"{crashing}" in capsys.readouterr().err
    assert score(*good, tmp_path / "local") == 0
    local = files(tmp_path / "local")
    assert len(local) == 4 + 1 + 1
    found = files(tmp_path / "ray")
    assert {name: found[name] for name in local} == local
    assert len(rows(tmp_path / "ray")) == 203


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "ray", "--ray-address", "127.0.0.1:9"], "Ray cluster 127.0.0.1:9: "),
        (["--engine", "ray", "--ray-address", "cluster"], "Ray cluster cluster: Invalid address format"),
        (["--engine", "ray", "--processes", "0"], "--processes 0 is for --engine local"),
        (["--ray-address", "127.0.0.1:6379"], "--ray-address needs --engine ray"),
    ],
)
def test_an_address_without_a_cluster_and_contradicting_settings_are_errors(
    flags: list[str],
    message: str,
    digits: Images,
    score: Score,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "digits.npy", digits)
    processes = [] if "--processes" in flags else ["--processes", "1"]
    assert score(tmp_path / "digits.npy", "--out", tmp_path / "out", *processes, *flags) != 0
    assert message in capsys.readouterr().err
