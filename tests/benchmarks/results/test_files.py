"""Result files, and the latencies in them."""

import json
import platform
from pathlib import Path

import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load.latency import Latencies
from benchmarks.results.files import describe_run, latest, read_result, write_result


def test_a_result_has_machine_versions_and_date(tmp_path: Path) -> None:
    path = write_result("session", {"rows": [{"p50_us": 7.0}]}, folder=tmp_path / "results")
    document = read_result(path)
    assert document["data"] == {"rows": [{"p50_us": 7.0}]}
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["memory_gib"] > 0
    assert document["versions"].keys() >= {"python", "onnxruntime", "litserve"}
    assert document["date"].endswith("+00:00")
    assert path.name.startswith("session-20")


def test_a_machine_without_the_files_of_linux_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(platform, "freedesktop_os_release", missing)
    machine = describe_run()["machine"]
    assert machine["cpu"] == platform.machine()
    assert machine["os"].startswith(platform.system())


def test_the_command_is_kept_without_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["/opt/venv/bin/distillery-bench", "http", "--models-dir", "/home/ann/models", "--url=/x/y"]
    monkeypatch.setattr("sys.argv", command)
    document = read_result(write_result("http", {}, folder=tmp_path))
    assert document["command"] == "distillery-bench http --models-dir models --url=y"


def test_the_newest_of_a_kind_is_found(tmp_path: Path) -> None:
    for name in (
        "http-20260102T000000Z-ffffff",
        "http-20260103T000000Z-000000",
        "session-20270101T000000Z-1",
    ):
        (tmp_path / f"{name}.json").touch()
    newest = latest("http", folder=tmp_path)
    assert newest is not None
    assert newest.name == "http-20260103T000000Z-000000.json"
    assert latest("training", folder=tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "http"}', '"text"', "3"])
def test_another_file_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "http-1.json").write_text(content)
    with pytest.raises(BenchmarkError, match=r"http-1\.json is not a result"):
        read_result(tmp_path / "http-1.json")


def test_a_kind_with_other_characters_than_letters_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.\./x"):
        write_result("../x", {}, folder=tmp_path)


def test_quantiles_use_the_nearest_rank() -> None:
    latencies = Latencies.from_samples(range(1, 101))
    assert [latencies.quantile(q) for q in (0.0, 0.5, 0.9, 0.99, 1.0)] == [1, 50, 90, 99, 100]
    assert latencies.quantiles("us") == {"p50_us": 50, "p90_us": 90, "p99_us": 99}
    assert latencies.quantiles("ms") == {"p50_ms": 0.05, "p90_ms": 0.09, "p99_ms": 0.099}


def test_counted_and_pooled_latencies_equal_their_samples() -> None:
    samples = [5, 5, 5, 7, 9, 9]
    counted = Latencies.from_counts({9: 2, 5: 3, 7: 1})
    pooled = Latencies.merge([Latencies.from_samples(samples[:2]), Latencies.from_samples(samples[2:])])
    for latencies in (counted, pooled):
        assert latencies.values.tolist() == [5, 7, 9]
        assert latencies.counts.tolist() == [3, 1, 2]
        assert latencies.mean == pytest.approx(np.mean(samples))


def test_a_compact_histogram_counts_each_sample_in_its_bucket() -> None:
    samples = np.random.default_rng(0).lognormal(4, 1, 5000)
    histogram = Latencies.from_samples(samples).compact()
    edges = histogram["ratio"] ** (histogram["first"] + np.arange(len(histogram["counts"]) + 1))
    assert histogram["counts"] == np.histogram(samples, edges)[0].tolist()
    assert sum(histogram["counts"]) == 5000
    assert len(json.dumps(histogram)) < 2000
