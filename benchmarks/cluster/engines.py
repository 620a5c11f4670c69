"""What an engine is: replicas of the service on hosts, and the address that distributes requests to them."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from benchmarks.cluster.hosts import Host

PORT = 8000
"""Of the service on every host."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where an engine runs, and what."""

    entry: Host
    """Host of the balancer or of the control plane; the clients' requests go to it."""
    models_dir: Path
    folder: Path
    """A temporary folder for its files."""
    shutdown_delay_s: float = 2.0
    """Between SIGTERM and the end of a replica; it serves meanwhile, and its /health/ready fails."""
    cores: float | None = None
    """CPU quota of each replica once it is ready; None: no limit."""


class Engine(AbstractContextManager["Engine"]):
    """Replicas of the service, one per host, behind one address; the end of the block stops all of it.

    Each method returns when its change is complete: a replica that is added is ready, one that is removed has ended.
    """

    name: ClassVar[str]

    def __init__(self, site: Site) -> None:
        self.site = site

    def __enter__(self) -> Self:
        return self

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return the version of the engine's software."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients send retry-safe requests to, without a path."""

    @property
    def plain_url(self) -> str | None:
        """Where they send requests to that the engine must not send twice; None where there is no such address."""
        return None

    @abstractmethod
    def start(self, hosts: Sequence[Host]) -> None:
        """Start with a replica on each of the hosts."""

    @abstractmethod
    def add(self, host: Host) -> None:
        """Start a replica on one more host, and send requests to it."""

    @abstractmethod
    def remove(self, host: Host) -> None:
        """Drain the replica of a host, and stop it."""

    @abstractmethod
    def restart(self) -> None:
        """Restart all replicas one after the other, each drained first; a rolling update."""

    @abstractmethod
    def kill(self, host: Host) -> None:
        """Kill all processes of the replica of a host by SIGKILL."""

    @abstractmethod
    def recover(self, host: Host) -> None:
        """Return when the replica that was killed is ready again, started by the engine or else here."""

    def kill_host(self, host: Host) -> None:
        """Kill all processes of a host; those of the engine too, if it has some there."""
        self.kill(host)

    def recover_host(self, host: Host) -> None:
        """Start the engine's processes on a host again that was killed, and return when its replica is ready."""
        self.recover(host)

    @abstractmethod
    def memory_mib(self) -> float:
        """Return the memory (PSS) of all processes that are not replicas of the service."""
