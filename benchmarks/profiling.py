"""Where an API process' time goes: py-spy's samples of its stack, sorted by stage of a request.

A stage's price is its share of the samples on a core, times the CPU time of a request. Samples are taken while
the process runs as ever; what it does inside onnxruntime, orjson and uvloop counts for who called it.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import psutil

from benchmarks.errors import BenchmarkError
from benchmarks.load import run_load
from benchmarks.processes import ServerProcess
from benchmarks.workloads import Workload

SAMPLES_PER_S = 500
_MARGIN_S = 0.5
"""py-spy starts a little after the load and ends a little before it."""

STAGES = {
    "sockets and event loop": "epoll, recv; whatever is under no other name",
    "head, admission": "recognising the head, key, limits, one request under way more",
    "body to pixels": "JSON or binary tensors, validated",
    "batching": "queue, joining the images, giving each request its part",
    "model": "onnxruntime",
    "answer": "JSON or binary tensors, Server-Timing",
    "write": "the answer's head, send",
    "metrics": "counting",
    "whole way": "uvicorn's parser, ASGI, tasks: the first request of a connection",
}
_BY_FUNCTION = {
    ("serving/direct.py", "send"): "write",
    ("serving/endpoint.py", "encode"): "answer",
    ("serving/endpoint.py", "decode"): "body to pixels",
    ("serving/open_inference/protocol.py", "is_quick"): "body to pixels",
    ("serving/predict.py", "is_quick"): "body to pixels",
    ("serving/session.py", "run"): "model",
    ("serving/api.py", "run_batch"): "batching",
    ("serving/front.py", "__call__"): "whole way",
}
_BY_FILE = {
    "serving/tallies.py": "metrics",
    "serving/metrics.py": "metrics",
    "serving/batching.py": "batching",
    "serving/executors.py": "batching",
    "serving/direct.py": "head, admission",
    "serving/admission.py": "head, admission",
    "uvicorn/protocols/http/httptools_impl.py": "whole way",
}
_OTHER = "sockets and event loop"


def stage_of(stack: str) -> str:
    """The stage of one of py-spy's raw stacks, "outer (file:line);…;inner (file:line)": the innermost known."""
    for frame in reversed(stack.split(";")):
        name, _, place = frame.partition(" (")
        file = place.rpartition(":")[0]
        known = _BY_FUNCTION.get((file, name.rpartition(".")[2])) or _BY_FILE.get(file)
        if known:
            return known
    return _OTHER


def api_processes(server: ServerProcess) -> list[psutil.Process]:
    """The API processes of our service: its children, but for Python's own and for model workers."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if not any("multiprocessing" in part for part in child.cmdline())]


def profile(server: ServerProcess, workload: Workload, connections: int, seconds: float) -> dict[str, object]:
    """Load a service that has one API process, and say what a request costs it.

    Returns `requests`, `requests_per_s`, `p50_ms`, `p90_ms`, `p99_ms`, `cpu_us` (CPU time of the process, a
    request), `samples`, and `stages_us` by stage. Raises `BenchmarkError` when py-spy may not look.
    """
    (process,) = api_processes(server)
    run_load(workload, connections, 1)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks.txt"
        command = [
            str(Path(sys.executable).with_name("py-spy")),
            "record",
            "--format",
            "raw",
            "--nonblocking",
        ]
        command += ["--rate", str(SAMPLES_PER_S), "--duration", f"{max(1, seconds - 2 * _MARGIN_S):.0f}"]
        command += ["--pid", str(process.pid), "--output", str(raw)]
        before = process.cpu_times()
        spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        load = run_load(workload, connections, seconds)
        after = process.cpu_times()
        _, said = spy.communicate(timeout=seconds + 30)
        if spy.returncode or not raw.is_file():
            raise BenchmarkError(
                f"py-spy could not look into the service: {said.strip()[-300:]}; run as root, or allow it "
                "with sysctl kernel.yama.ptrace_scope=0"
            )
        samples: Counter[str] = Counter()
        for line in raw.read_text(encoding="utf-8").splitlines():
            stack, _, count = line.rpartition(" ")
            samples[stage_of(stack)] += int(count)
    requests = load.latencies.total
    cpu_us = (after.user + after.system - before.user - before.system) * 1e6 / requests
    total = samples.total()
    return {
        "requests": requests,
        "requests_per_s": round(load.requests_per_s, 1),
        **load.latencies.quantiles("ms"),
        "cpu_us": round(cpu_us, 1),
        "samples": total,
        "stages_us": {stage: round(cpu_us * samples[stage] / total, 1) for stage in STAGES},
    }
