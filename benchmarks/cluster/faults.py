"""Faults and changes of an engine under load, and how many requests each of them costs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cluster.engines import Engine, Site
from benchmarks.cluster.hosts import Host, network
from benchmarks.cluster.load import Load, summary

PLAIN_CONNECTIONS = 2
"""For requests that the engine must not repeat."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """An engine under load."""

    engine: Engine
    hosts: Sequence[Host]
    """With a replica each at the start."""
    spare: Host
    """Without one."""
    settle_s: float
    """Under load, before and after each fault."""
    disconnected_s: float
    """For how long a host is disconnected: longer than all time-outs, so that every request in flight there ends."""

    def nothing(self) -> None:
        """No fault, for comparison."""
        time.sleep(self.settle_s)

    def rolling_restart(self) -> None:
        self.engine.restart()

    def host_joins(self) -> None:
        self.engine.add(self.spare)

    def host_leaves(self) -> None:
        self.engine.remove(self.spare)

    def replica_killed(self) -> None:
        self.engine.kill(self.hosts[0])
        time.sleep(self.settle_s)
        self.engine.recover(self.hosts[0])

    def host_killed(self) -> None:
        self.engine.kill_host(self.hosts[0])
        time.sleep(self.settle_s)
        self.engine.recover_host(self.hosts[0])

    def host_disconnected(self) -> None:
        self.hosts[1].disconnect()
        time.sleep(self.disconnected_s)
        self.hosts[1].connect()


EVENTS: dict[str, Callable[[Cluster], None]] = {
    "no fault": Cluster.nothing,
    "rolling restart": Cluster.rolling_restart,
    "host joins": Cluster.host_joins,
    "host leaves": Cluster.host_leaves,
    "replica killed": Cluster.replica_killed,
    "host killed": Cluster.host_killed,
    "host disconnected": Cluster.host_disconnected,
}


@contextmanager
def hosts_of_a_cluster(replicas: int) -> Iterator[tuple[Host, Host, list[Host]]]:
    """Yield the clients' host, the host of balancers and control planes, and hosts for replicas."""
    with network("client", "entry", *(f"host{number}" for number in range(1, replicas + 1))) as hosts:
        client, entry, *others = hosts
        yield client, entry, others


def measure_faults(
    engine_type: type[Engine],
    models_dir: Path,
    path: str,
    bodies: Sequence[bytes],
    *,
    settle_s: float = 2.0,
    disconnected_s: float = 10.0,
    shutdown_delay_s: float = 5.0,
    connections: int = 8,
    rate: float = 25.0,
    events: Sequence[str] = tuple(EVENTS),
) -> dict[str, Any]:
    """Run the events one after the other under one load; return a row for each, and the memory of the control plane.

    A row has the counts of the requests that the engine may send again, and as `plain` of those that it must not. The
    requests are those of `path` and `bodies`. Raises `BenchmarkError`.
    """
    with ExitStack() as stack:
        client, entry, (*hosts, spare) = stack.enter_context(hosts_of_a_cluster(4))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="distillery-cluster-")))
        folder.chmod(0o755)
        site = Site(entry=entry, models_dir=models_dir, folder=folder, shutdown_delay_s=shutdown_delay_s)
        engine = stack.enter_context(engine_type(site))
        engine.start(hosts)
        cluster = Cluster(
            engine=engine, hosts=hosts, spare=spare, settle_s=settle_s, disconnected_s=disconnected_s
        )
        with ExitStack() as loads:
            safe = loads.enter_context(
                Load(client, engine.url + path, bodies, connections=connections, rate=rate)
            )
            plain = engine.plain_url and loads.enter_context(
                Load(
                    client,
                    engine.plain_url + path,
                    bodies,
                    connections=PLAIN_CONNECTIONS,
                    rate=rate,
                    retry_safe=False,
                )
            )
            time.sleep(settle_s)
            spans = []
            for name in events:
                start = time.monotonic()
                EVENTS[name](cluster)
                time.sleep(settle_s)
                spans.append((name, start, time.monotonic()))
            memory = engine.memory_mib()
        rows = [
            {
                "engine": engine.name,
                "event": name,
                "seconds": round(end - start, 1),
                **summary(safe.between(start, end)),
                "plain": summary(plain.between(start, end)) if plain else None,
            }
            for name, start, end in spans
        ]
    return {
        "engine": engine.name,
        "version": engine.version(),
        "control_plane_mib": round(memory, 1),
        "rows": rows,
    }
