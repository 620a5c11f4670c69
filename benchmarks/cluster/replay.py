"""A day's load on real replicas, whose number follows from a real Prometheus as Kubernetes and KEDA would decide.

Time is compressed: scrapes, windows of rates, decisions and windows of the autoscaler are shorter by one factor.
"""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from math import isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.cluster.autoscaler import SYNC_S, Autoscaler, Scaling
from benchmarks.cluster.balancers import Balanced, HAProxy
from benchmarks.cluster.engines import PORT, Site
from benchmarks.cluster.faults import hosts_of_a_cluster
from benchmarks.cluster.hosts import Host
from benchmarks.load.run import run_load
from benchmarks.load.workloads import service_workload
from benchmarks.systems.servers import ROOT, running

SCALED_OBJECT = ROOT / "deploy/kubernetes/components/keda/scaled-object.yaml"
DAY = (
    (0, 0.2),
    (10, 0.25),
    (30, 0.9),
    (40, 1.0),
    (48, 0.6),
    (48, 0.3),
    (55, 0.3),
    (55, 1.0),
    (57, 1.0),
    (57, 0.3),
    (100, 0.2),
)
"""A day's shape: minutes, and the share of the largest load at them. A rise and a fall, a step down, and a spike."""
CONNECTIONS = 64
OBJECTIVE_S = 0.1
"""Of the queue wait: all that the latency objective allows a request."""
WAIT = "distillery_queue_wait_seconds"
QUEUE_WAIT = (
    f'sum(rate({WAIT}_sum{{job="distillery"}}[1m])) / sum(rate({WAIT}_count{{job="distillery"}}[1m]))'
)
"""Mean seconds in the queue of all requests."""
CPU = "cpu"
"""The trigger whose unit is the cores of a replica."""
PROMETHEUS_PORT = 9090


class Prometheus:
    """A Prometheus on a host; the windows of its rates are shorter by the factor `faster`."""

    def __init__(self, host: Host, faster: float) -> None:
        self._host, self._faster = host, faster

    def value(self, expression: str) -> float | None:
        """Return the value of an expression; None where there is none, or one that is not a number."""
        query = urllib.parse.urlencode({"query": shortened(expression, self._faster)})
        with self._host.entered(), suppress(OSError):
            url = f"http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/query?{query}"
            with urllib.request.urlopen(url, timeout=5) as response:
                result = json.load(response)["data"]["result"]
                value = float(result[0]["value"][1]) if result else None
                return None if value is None or isnan(value) else value
        return None


@contextmanager
def running_prometheus(
    host: Host, targets: Sequence[Host], folder: Path, faster: float
) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration of docker/, at another speed and other addresses, without its rules."""
    configuration = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    interval = f"{1000 * SYNC_S / faster:.0f}ms"
    [job] = configuration["scrape_configs"]
    job |= {"scrape_interval": interval, "scrape_timeout": interval}
    job["static_configs"] = [{"targets": [f"{target.address}:{PORT}" for target in targets]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    address = f"127.0.0.1:{PROMETHEUS_PORT}"
    with ExitStack() as stack:
        with host.entered():
            stack.enter_context(
                running(
                    [*command, f"--web.listen-address={address}"],
                    f"http://{address}",
                    ready="/-/ready",
                    cwd=folder,
                )
            )
        yield Prometheus(host, faster)


def shortened(expression: str, faster: float) -> str:
    """Return an expression with windows in minutes that are shorter by a factor."""
    return re.sub(r"\[(\d+)m\]", lambda found: f"[{int(found[1]) * 60_000 / faster:.0f}ms]", expression)


class Replicas:
    """Replicas that start and stop in the background, as pods do."""

    def __init__(self, engine: Balanced, hosts: Sequence[Host], pool: ThreadPoolExecutor) -> None:
        self._engine, self._pool = engine, pool
        self._used = list(engine.replicas)
        self._free = [host for host in hosts if host not in self._used]
        self._running: list[Future[None]] = []

    @property
    def number(self) -> int:
        """Replicas that run or start."""
        return len(self._used)

    @property
    def ready(self) -> int:
        """Replicas that get requests."""
        return len(self._engine.replicas)

    def scale(self, number: int) -> None:
        """Start or stop replicas. Raises the error of an earlier start or stop."""
        for future in self._running:
            if future.done():
                future.result()
        while self.number < number and self._free:
            host = self._free.pop(0)
            self._used.append(host)
            self._running.append(self._pool.submit(self._engine.add, host))
        while self.number > number and self._used[-1] in self._engine.replicas:
            self._running.append(self._pool.submit(self._remove, self._used.pop()))

    def settle(self) -> None:
        """Wait for all starts and stops."""
        wait(self._running)

    def _remove(self, host: Host) -> None:
        self._engine.remove(host)
        self._free.append(host)


def replay(
    models_dir: Path,
    model: str,
    *,
    shape: Sequence[tuple[float, float]] = DAY,
    faster: float = 30,
    cores: float = 0.3,
    maximum: int = 6,
    peak: float = 2.0,
) -> dict[str, Any]:
    """Replay a load, whose largest rate is `peak` times the capacity of a replica; return the samples over time.

    The number of replicas is from 1 to `maximum`; all else is as in the manifest. Each replica has `cores` of CPU time,
    and the trigger on CPU time a threshold in proportion. Raises `BenchmarkError`.
    """
    scaling = Scaling.read(SCALED_OBJECT)
    step = SYNC_S / faster
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(maximum))
        client, entry, hosts = stack.enter_context(hosts_of_a_cluster(maximum))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="distillery-cluster-")))
        folder.chmod(0o755)
        site = Site(entry=entry, models_dir=models_dir, folder=folder, shutdown_delay_s=1, cores=cores)
        engine = HAProxy(site)
        stack.enter_context(engine)
        prometheus = stack.enter_context(running_prometheus(entry, hosts, folder, faster))
        engine.start(hosts[:1])
        replicas = Replicas(engine, hosts, pool)
        stack.callback(replicas.settle)
        with client.entered():
            capacity = run_load(service_workload(engine.url, model), 16, 3, tool="python").requests_per_s
        rates = [peak * capacity * share for share in shares(shape, step * faster / 60)]
        generator = stack.enter_context(_generator(client, engine.url, model, rates, step, folder))
        autoscaler = Autoscaler(scaling.behavior, 1, maximum, faster=faster)
        units = [cores if trigger.name == CPU else 1 for trigger in scaling.triggers]
        samples: list[dict[str, Any]] = []
        start = time.monotonic()
        while generator.poll() is None:
            values = [prometheus.value(trigger.query) for trigger in scaling.triggers]
            thresholds = [t.threshold * unit for t, unit in zip(scaling.triggers, units, strict=True)]
            number = replicas.number
            wanted = autoscaler.desired(time.monotonic(), number, list(zip(values, thresholds, strict=True)))
            replicas.scale(wanted)
            samples.append(
                {
                    "time": time.monotonic(),
                    "replicas": number,
                    "ready": replicas.ready,
                    "wanted": wanted,
                    "queue_wait_s": prometheus.value(QUEUE_WAIT),
                    **{
                        t.name: value and value / number
                        for t, value in zip(scaling.triggers, values, strict=True)
                    },
                }
            )
            time.sleep(max(0.0, start + len(samples) * step - time.monotonic()))
        output, _ = generator.communicate()
        load = [json.loads(line) for line in output.splitlines()]
    waits = [one["queue_wait_s"] for one in samples if one["queue_wait_s"] is not None]
    return {
        "faster": faster,
        "cores": cores,
        "maximum": maximum,
        "capacity_per_s": round(capacity, 1),
        "connections": CONNECTIONS,
        "objective_s": OBJECTIVE_S,
        "triggers": {trigger.name: trigger.threshold for trigger in scaling.triggers},
        "largest": max(one["replicas"] for one in samples),
        "turns": turns([one["replicas"] for one in samples]),
        "over_objective_share": round(sum(one > OBJECTIVE_S for one in waits) / len(waits), 4),
        **{key: sum(one[key] for one in load) for key in ("answered", "failed", "unsent")},
        "load": [one | {"time": _minutes(one["time"] - start, faster)} for one in load],
        "samples": [_rounded(one, start, faster) for one in samples],
    }


def turns(numbers: Sequence[int]) -> int:
    """Return how often growth is followed by shrinkage or the reverse."""
    signs = [after > before for before, after in pairwise(numbers) if after != before]
    return sum(after != before for before, after in pairwise(signs))


def shares(shape: Sequence[tuple[float, float]], minutes: float) -> list[float]:
    """Return the share of the largest load for each step of this many minutes."""
    found, now = [], 0.0
    while now < shape[-1][0]:
        (before, low), (after, high) = next(
            (left, right) for left, right in pairwise(shape) if left[0] <= now < right[0]
        )
        found.append(low + (high - low) * (now - before) / (after - before))
        now += minutes
    return found


@contextmanager
def _generator(
    client: Host, url: str, model: str, rates: Sequence[float], step: float, folder: Path
) -> Iterator[subprocess.Popen[str]]:
    address = urllib.parse.urlsplit(url)
    files = [folder / f"{number}.http" for number in range(8)]
    for file, request in zip(files, service_workload(url, model).requests, strict=False):
        file.write_bytes(request)
    (folder / "rates.json").write_text(json.dumps(rates))
    place = (
        str(address.hostname),
        str(address.port),
        str(CONNECTIONS),
        str(step),
        str(folder / "rates.json"),
    )
    command = [sys.executable, "-m", "benchmarks.cluster.open_loop", *place, *map(str, files)]
    with client.entered():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _minutes(seconds: float, faster: float) -> float:
    return round(seconds * faster / 60, 2)


def _rounded(sample: dict[str, Any], start: float, faster: float) -> dict[str, Any]:
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in sample.items()}
    return rounded | {"time": _minutes(sample["time"] - start, faster)}
