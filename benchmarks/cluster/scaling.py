"""Throughput and latency of an engine by the number of its hosts."""

from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cluster.engines import Engine, Site
from benchmarks.cluster.faults import hosts_of_a_cluster
from benchmarks.load.latency import Latencies
from benchmarks.load.run import Load, run_load
from benchmarks.load.workloads import service_workload
from benchmarks.results.ratio import Ratio


def measure_scaling(
    engine_type: type[Engine],
    models_dir: Path,
    model: str,
    *,
    cores: float,
    hosts: int = 3,
    connections: int = 16,
    seconds: float = 2.0,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """Measure one host, two and so on in rounds, which add a host at a time and remove them again; a row each.

    Every replica has a CPU quota of `cores`. The load is a closed loop of one JSON image per request. Rates are medians
    of the rounds, latencies those of all of them, gains ratios to one host within each round. Raises `BenchmarkError`.
    """
    measured: list[list[Load]] = [[] for _ in range(hosts)]
    with ExitStack() as stack:
        client, entry, others = stack.enter_context(hosts_of_a_cluster(hosts))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="distillery-cluster-")))
        folder.chmod(0o755)
        site = Site(entry=entry, models_dir=models_dir, folder=folder, shutdown_delay_s=0, cores=cores)
        engine = stack.enter_context(engine_type(site))
        engine.start(others[:1])
        workload = service_workload(engine.url, model)
        running = 1
        for number in range(rounds):
            for index in range(hosts) if number % 2 == 0 else reversed(range(hosts)):
                while running <= index:
                    engine.add(others[running])
                    running += 1
                while running > index + 1:
                    running -= 1
                    engine.remove(others[running])
                with client.entered():
                    run_load(workload, connections, 1)  # warm up
                    measured[index].append(run_load(workload, connections, seconds))
    rates = [[load.requests_per_s for load in loads] for loads in measured]
    rows = []
    for number, loads in enumerate(measured):
        latencies = Latencies.merge(load.latencies for load in loads)
        rows.append(
            {
                "engine": engine.name,
                "hosts": number + 1,
                "requests_per_s": round(median(rates[number]), 1),
                **latencies.quantiles("ms"),
                "gain": Ratio.within_rounds(rates[number], rates[0]).as_json(),
                "rounds_requests_per_s": [round(rate, 1) for rate in rates[number]],
            }
        )
    return rows
