"""`distillery-bench cluster`: several hosts behind a balancer, under faults and by their number."""

import json
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from rich.progress import track

from benchmarks.cluster.balancers import ENGINES as BALANCERS
from benchmarks.cluster.engines import Engine
from benchmarks.cluster.faults import EVENTS, PLAIN_CONNECTIONS, measure_faults
from benchmarks.cluster.load import SLOW_S
from benchmarks.cluster.ray_engines import RAY_ENGINES
from benchmarks.cluster.scaling import measure_scaling
from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from benchmarks.results.models import model_facts
from distillery import unknown

BODIES = 8

ENGINES: dict[str, type[Engine]] = BALANCERS | RAY_ENGINES
EngineName = Literal["nginx", "haproxy", "ray-nodes", "ray-replicas"]


class Cluster(Bench, RepositorySettings):
    """Measure faults and throughput of several hosts behind a balancer.

    Hosts are network namespaces of this machine; needs root. Under a constant load on kept connections, replicas are
    restarted, added, removed and killed, and a host is disconnected. Balancers are configured by the files of deploy/.
    """

    limitations = (
        "the hosts share this machine's cores and memory; for throughput, each has a CPU quota, and load generator and "
        "balancer have what is left",
        "the network between them has the latency of the loopback interface",
    )
    examples = ("distillery-bench cluster --engine nginx --hosts 0 --shutdown-delay 2",)

    model: str = Field("student", description="model to serve")
    engine: list[EngineName] = Field(["nginx", "haproxy"], description="engines to measure")
    event: list[str] = Field(list(EVENTS), description="faults and changes, in their order")
    connections: PositiveInt = Field(8, description="kept connections of the load during the faults")
    rate: PositiveFloat = Field(25.0, description="requests per second of each of these")
    settle: PositiveFloat = Field(3.0, description="seconds of load after each fault")
    disconnected: PositiveFloat = Field(15.0, description="seconds for which a host is disconnected")
    shutdown_delay: NonNegativeFloat = Field(5.0, description="seconds, --shutdown-delay of the replicas")
    hosts: int = Field(
        3, ge=0, description="number of hosts up to which throughput is measured; 0: not at all"
    )
    cores: PositiveFloat = Field(0.15, description="CPU quota of each replica, in cores, for the throughput")
    seconds: PositiveFloat = Field(
        2.0, description="seconds per number of hosts and round; whole seconds with wrk"
    )
    rounds: PositiveInt = Field(5, description="rounds; each measures every number of hosts once")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        for event in self.event:
            if event not in EVENTS:
                raise BenchmarkError(unknown("event", event, EVENTS))
        bodies = [json.dumps({"image": digit.tolist()}).encode() for digit in load_digits()[:BODIES]]
        faults, scaling = [], []
        for name in track(self.engine, "cluster", transient=True):
            engine = ENGINES[name]
            if self.event:
                faults.append(
                    measure_faults(
                        engine,
                        self.models_dir,
                        f"/predict/{self.model}",
                        bodies,
                        settle_s=self.settle,
                        disconnected_s=self.disconnected,
                        shutdown_delay_s=self.shutdown_delay,
                        connections=self.connections,
                        rate=self.rate,
                        events=self.event,
                    )
                )
            if self.hosts:
                scaling += measure_scaling(
                    engine,
                    self.models_dir,
                    self.model,
                    cores=self.cores,
                    hosts=self.hosts,
                    seconds=self.seconds,
                    rounds=self.rounds,
                )
        return {
            "models": model_facts(entries),
            "model": self.model,
            "connections": self.connections,
            "plain_connections": PLAIN_CONNECTIONS,
            "rate": self.rate,
            "shutdown_delay": self.shutdown_delay,
            "disconnected": self.disconnected,
            "slow": SLOW_S,
            "cores": self.cores,
            "memory_mib": {one["engine"]: one["control_plane_mib"] for one in faults},
            "versions": {one["engine"]: one["version"] for one in faults},
            "rows": [row for one in faults for row in one["rows"]],
            "scaling": scaling,
        }
