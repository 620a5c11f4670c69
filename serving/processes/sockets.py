"""The listening sockets of the service.

Each API process has a `SO_REUSEPORT` socket of its own, because on a shared one most keep-alive connections sometimes
reach the same process. Where the kernel does not balance such sockets (anywhere but on Linux), all API processes
share one. The parent keeps them open, so that they queue connections while an API process is replaced.
"""

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from distillery import DistilleryError

_BACKLOG = 2048


class ServiceError(DistilleryError):
    """The service cannot start or continue."""


Kind = tuple[socket.AddressFamily, socket.SocketKind, int]
Listeners = Sequence[socket.socket]
"""The listening socket of each API process, by its index."""


def bind(host: str, port: int, count: int) -> Listeners:
    """Open listening sockets on one address for `count` API processes; port 0 selects a free one.

    Raises `ServiceError`.
    """
    kind, address = free_address(host, port, "--port")
    balanced = sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")
    listeners = []
    for _ in range(count if balanced else 1):
        listener = socket.socket(*kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if balanced:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listeners.append(listener)
    return listeners if balanced else listeners * count


def free_address(host: str, port: int, flag: str) -> tuple[Kind, Any]:
    """Return an unused address and the kind of socket for it. Raises `ServiceError` naming `flag`."""
    try:
        family, type_, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ServiceError(f"--host {host!r} is not an address of this machine: {error.strerror}") from None
    # With SO_REUSEPORT two services could share a port unnoticed, so try without it first.
    kind = (family, type_, protocol)
    with socket.socket(*kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            fixes = {
                errno.EADDRINUSE: f"choose another {flag} or stop the program that uses it",
                errno.EACCES: f"choose a {flag} above 1023, or allow the service the others",
                errno.EADDRNOTAVAIL: "this machine has no such --host; 0.0.0.0 is all of its addresses",
            }
            raise ServiceError(
                f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}; "
                + fixes.get(error.errno or 0, f"choose another --host or {flag}")
            ) from None
        return kind, probe.getsockname()


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`."""
    try:
        return all(
            ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
            for *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        )
    except (OSError, ValueError):
        return False


def format_address(bound: socket.socket) -> str:
    """Return a socket's address in the form of URLs."""
    name, number = bound.getsockname()[:2]
    return f"[{name}]:{number}" if ":" in name else f"{name}:{number}"
