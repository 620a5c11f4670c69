"""Hosts of a network on one machine: Linux network namespaces with an address each, on one bridge."""

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil

from benchmarks.errors import BenchmarkError

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_networks = count()


@dataclass(frozen=True)
class Host:
    """A network namespace: its processes see loopback, the other hosts at their addresses, and nothing else."""

    namespace: str
    switch: str
    """Namespace of the bridge that connects the hosts."""
    name: str
    address: str

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run on this host: sockets that this thread opens meanwhile, and processes that it starts, are the host's."""
        with Path("/proc/thread-self/ns/net").open() as before:
            _enter(Path("/run/netns", self.namespace))
            try:
                yield
            finally:
                _enter(Path(f"/proc/self/fd/{before.fileno()}"))

    def processes(self) -> list[psutil.Process]:
        """Return the processes that were started on this host, and run."""
        namespace = Path("/run/netns", self.namespace).stat().st_ino
        found = []
        for process in psutil.process_iter():
            with suppress(OSError):  # it has ended
                if Path(f"/proc/{process.pid}/ns/net").stat().st_ino == namespace:
                    found.append(process)
        return found

    def kill_processes(self) -> None:
        """Kill all of them, as a loss of power does; return when they have ended."""
        while processes := self.processes():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.02)

    def disconnect(self) -> None:
        """Disconnect its cable: packets are lost without an error, and connections stay open."""
        _ip("-netns", self.switch, "link", "set", "dev", self.name, "down")

    def connect(self) -> None:
        """Connect its cable again."""
        _ip("-netns", self.switch, "link", "set", "dev", self.name, "up")


@contextmanager
def network(*names: str) -> Iterator[list[Host]]:
    """Yield hosts with the addresses 10.77.0.1, 10.77.0.2 and so on; `names` have at most 15 characters.

    Raises `BenchmarkError` without root rights.
    """
    prefix = f"distillery-{os.getpid()}-{next(_networks)}"
    switch = f"{prefix}-switch"
    hosts = [
        Host(f"{prefix}-{name}", switch, name, f"10.77.0.{number}")
        for number, name in enumerate(names, start=1)
    ]
    added = []
    try:
        _ip("netns", "add", switch)
        added.append(switch)
        _ip("-netns", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-netns", switch, "link", "set", "bridge", "up")
        for host in hosts:
            _ip("netns", "add", host.namespace)
            added.append(host.namespace)
            _ip("-netns", host.namespace, "link", "set", "lo", "up")
            cable = ("type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("-netns", switch, "link", "add", "name", host.name, *cable)
            _ip("-netns", switch, "link", "set", "dev", host.name, "master", "bridge", "up")
            _ip("-netns", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-netns", host.namespace, "link", "set", "eth0", "up")
        yield hosts
    finally:
        for namespace in added:
            _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise BenchmarkError("there is no program ip; install Debian's package iproute2") from None
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(
            f"ip {' '.join(arguments)}: {error.stderr.strip()}; network namespaces need root rights"
        ) from None


def _enter(namespace: Path) -> None:
    with namespace.open() as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns", str(namespace))
