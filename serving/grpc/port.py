"""The port of gRPC: reserved by the parent process, opened by every API process.

gRPC opens its sockets itself, so they cannot be inherited as those of HTTP are. This module does not import gRPC,
because it runs in the parent, before the fork.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from serving.processes.sockets import ServiceError, format_address, free_address

_PACKAGES = ("grpc", "grpc_health", "grpc_reflection")


@contextmanager
def grpc_address(host: str, port: int | None) -> Iterator[str | None]:
    """Reserve and yield the address of gRPC; port 0 selects a free one, None disables gRPC. Raises `ServiceError`."""
    if port is None:
        yield None
        return
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ServiceError(f"--grpc-port needs {', '.join(missing)}: pip install '.[serving,grpc]'")
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ServiceError("--grpc-port needs SO_REUSEPORT, which this operating system lacks; leave it out")
    kind, address = free_address(host, port, "--grpc-port")
    with socket.socket(*kind) as kept:
        # Without SO_REUSEADDR no other program can bind it; a socket that does not listen gets no connections.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
        yield format_address(kept)
