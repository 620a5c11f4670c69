"""perf_analyzer: its report is parsed, and the program measures the service."""

import ctypes
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.errors import BenchmarkError
from benchmarks.report.markdown import Source, fill
from benchmarks.results.files import latest, read_result
from benchmarks.systems import perf_analyzer as perf_analyzer_tool
from benchmarks.systems.perf_analyzer import install, measure, read_report
from benchmarks.systems.servers import free_port
from distillery import main

# Output of one measurement of this service: teacher, 64 images per request, 16 concurrent requests.
HERE = Path(__file__).parents[2] / "data"
OUTPUT, TABLE = ((HERE / f"perf_analyzer.{kind}").read_text() for kind in ("txt", "csv"))
LIBB64 = None
with suppress(OSError):
    LIBB64 = ctypes.CDLL("libb64.so.0d")


def runs_the_program(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that installs the program: a few seconds, once, with access to PyPI."""
    missing = pytest.mark.skipif(LIBB64 is None, reason="no libb64-0d: make system installs it")
    return pytest.mark.slow(missing(test))


def test_a_report_is_parsed() -> None:
    assert read_report(OUTPUT, TABLE) == {
        "requests": 1548,
        "images_per_s": 27006.6,
        "mean_us": 37754,
        "p50_us": 34838,
        "p90_us": 48528,
        "p95_us": 50871,
        "p99_us": 69398,
        "client_us": 174,
        "network_us": 1194,
        "queue_us": 32355,
        "compute_input_us": 90,
        "compute_infer_us": 3870,
        "compute_output_us": 69,
        "overhead_us": 563,
        "inference_count": 97728,
        "execution_count": 1527,
    }


@pytest.mark.parametrize(
    ("output", "table"),
    [
        (OUTPUT.partition("Server:")[0], TABLE),  # a service without statistics
        (OUTPUT, TABLE.replace("Server Queue", "Queue")),
        (OUTPUT, TABLE.splitlines()[0]),
        (OUTPUT, TABLE.replace("27006.6", "many")),
    ],
    ids=["no statistics", "no queue", "no row", "no number"],
)
def test_an_incomplete_report_is_rejected(output: str, table: str) -> None:
    with pytest.raises(BenchmarkError, match="not a report of perf_analyzer"):
        read_report(output, table)


@runs_the_program
def test_client_and_server_figures_of_every_case_are_kept(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--models=teacher,student", "--batch=1,8", "--concurrency=1,4", "--rounds=1", "--window-ms=200"]
    folders = ["--models-dir", str(model_repository), "--results-dir", str(tmp_path)]
    assert main("distillery-bench", COMMANDS, arguments=["perf-analyzer", *sizes, *folders]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    path = latest("perf_analyzer", folder=tmp_path)
    assert summary["result"] == str(path)
    assert path
    rows = read_result(path)["data"]["rows"]
    assert [(row["batch"], row["concurrency"], row["model"]) for row in rows] == [
        (batch, concurrency, model)
        for batch in (1, 8)
        for concurrency in (1, 4)
        for model in ("teacher", "student")
    ]
    section = fill("perf-analyzer", {"perf_analyzer": Source(read_result(path), "the-link")})
    assert "(the-link)" in section
    for row in rows:
        line = f"| {row['batch']}, {row['concurrency']}, `{row['model']}` | {row['images_per_s']:,.0f}"
        ratio = "" if row["model"] == "teacher" else ", ≈ "  # one round decides nothing
        assert section.count(f"{line}{ratio}") == 1
        assert row["requests"] > 0
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p95_us"] <= row["p99_us"]
        # the server counts the same requests, except for 0.1 s at each end of a window of 0.2 s
        assert 0.3 < row["inference_count"] / (row["batch"] * row["requests"]) < 1.7
        assert 0.7 < row["images_per_run"] / row["batch"] < 1.3 * row["concurrency"]
        stages = [row[name] for name in ("compute_input_us", "compute_infer_us", "compute_output_us")]
        assert all(stage > 0 for stage in stages)
        assert sum(stages) < row["mean_us"]


@runs_the_program
def test_the_error_for_a_missing_library_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    monkeypatch.setattr(perf_analyzer_tool, "CUDA", "nowhere")
    with pytest.raises(BenchmarkError, match=r"lacks a library.*make system"):
        install()


@runs_the_program
def test_a_service_that_does_not_run_is_an_error() -> None:
    install()
    with pytest.raises(BenchmarkError, match=r"student.*ended with an error"):
        measure(f"http://127.0.0.1:{free_port()}", "student", batch=1, concurrency=1, window_ms=100)
