"""Triton's perf_analyzer: install the program, run it, read its report.

tritonclient 2.50.0 is the last release on PyPI that contains the program. It is linked with CUDA's runtime, which
another wheel contains (no GPU is needed), and with Debian's libb64.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from benchmarks.errors import BenchmarkError
from benchmarks.systems.servers import ROOT
from distillery.files import require_writable

PACKAGES = ("tritonclient==2.50.0", "nvidia-cuda-runtime-cu12==12.9.79")
FOLDER = ROOT / ".cache" / "perf-analyzer-2.50.0"
PROGRAM = "bin/perf_analyzer"
CUDA = "nvidia/cuda_runtime/lib"
WINDOWS = 3
"""Windows per measurement, merged."""
TIMEOUT_S = 60
STABILITY_PERCENT = 1000
"""Allowed difference between windows: the spread of the rounds is reported instead of an error."""


COLUMNS = {
    "images_per_s": ["Inferences/Second"],
    "mean_us": ["Avg latency"],
    "p50_us": ["p50 latency"],
    "p90_us": ["p90 latency"],
    "p95_us": ["p95 latency"],
    "p99_us": ["p99 latency"],
    "client_us": ["Client Send", "Client Recv"],
    "network_us": ["Network+Server Send/Recv"],
    "queue_us": ["Server Queue"],
    "compute_input_us": ["Server Compute Input"],
    "compute_infer_us": ["Server Compute Infer"],
    "compute_output_us": ["Server Compute Output"],
}
"""Figures and the columns of the report whose sum they are. Times are means in microseconds, except for the quantiles;
`network_us` includes the server's overhead."""
COUNTS = {
    "requests": r"Request count: (\d+)",
    "inference_count": r"Inference count: (\d+)",
    "execution_count": r"Execution count: (\d+)",
    "overhead_us": r"overhead (\d+) usec",
}
"""Figures that only the output has. `inference_count` is in images by the server's count, up to 0.1 s older than the
client's, `execution_count` in runs of the model, `overhead_us` the time in the server outside of the four stages."""
Report = dict[str, float]
"""One measurement by perf_analyzer."""


def install() -> Path:
    """Install the program where it is missing; return its folder. Raises `BenchmarkError` when it cannot run."""
    if not (FOLDER / PROGRAM).is_file():
        require_writable(FOLDER.parent)
        with FileLock(f"{FOLDER}.lock"):
            _install()
    _run(["--version"])
    return FOLDER


def _install() -> None:
    if (FOLDER / PROGRAM).is_file():  # another process has installed it meanwhile
        return
    new = FOLDER.with_name(f"{FOLDER.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--target", str(new), *PACKAGES]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise BenchmarkError(f"pip could not install {' '.join(PACKAGES)}: {run.stderr.strip()[-500:]}")
    new.rename(FOLDER)


def measure(url: str, model: str, *, batch: int, concurrency: int, window_ms: int) -> Report:
    """Load `model` of the service at `url` with `batch` images per request, as binary tensors over HTTP.

    Raises `BenchmarkError` when a request fails or the service has no statistics.
    """
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "report.csv")
        arguments = ["-m", model, "-u", urlsplit(url).netloc, "-i", "http", "-b", str(batch)]
        arguments += ["--concurrency-range", str(concurrency), "--max-threads", str(concurrency)]
        arguments += ["--measurement-interval", str(window_ms), "--max-trials", str(WINDOWS)]
        arguments += ["--stability-percentage", str(STABILITY_PERCENT), "--verbose-csv", "-f", str(table)]
        output = _run(arguments)
        if not table.is_file():
            raise BenchmarkError(
                f"perf_analyzer has no result for {model} at {url}; its output:\n{output[-1500:]}"
            )
        return read_report(output, table.read_text(encoding="utf-8"))


def read_report(output: str, table: str) -> Report:
    """Parse perf_analyzer's output and its CSV with one row. Raises `BenchmarkError` for anything else."""
    try:
        (row,) = csv.DictReader(table.splitlines())
        figures = {name: sum(float(row[column]) for column in columns) for name, columns in COLUMNS.items()}
        return figures | {name: int(re.findall(pattern, output)[0]) for name, pattern in COUNTS.items()}
    except (LookupError, ValueError) as error:
        raise BenchmarkError(
            f"not a report of perf_analyzer: {error}; its output:\n{output[-1500:]}"
        ) from None


def _run(arguments: list[str]) -> str:
    """Run the program; return its output."""
    libraries = [str(FOLDER / CUDA), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
    command = [str(FOLDER / PROGRAM), *arguments]
    try:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except OSError as error:
        raise BenchmarkError(f"perf_analyzer is a program for Linux on x86-64: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"perf_analyzer {' '.join(arguments)}: not done within {TIMEOUT_S} s") from None
    output = run.stdout + run.stderr
    if "loading shared libraries" in output:
        raise BenchmarkError(
            f"perf_analyzer lacks a library: {output.strip()}; `make system` installs libb64-0d"
        )
    if run.returncode:
        raise BenchmarkError(
            f"perf_analyzer {' '.join(arguments)} ended with an error:\n{output.strip()[-1500:]}"
        )
    return output
