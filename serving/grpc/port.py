"""The port of gRPC: reserved by the parent process, listened on by every API process.

gRPC opens its sockets itself, so they cannot be handed over as those of HTTP are. This module imports none of
it: the parent forks.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from serving.processes.supervisor import ServiceError, free_address, spell


@contextmanager
def grpc_address(host: str, port: int | None) -> Iterator[str | None]:
    """Yield the address to listen on, kept for us meanwhile; port 0 takes a free one, None wants no gRPC.

    Raises `ServiceError`.
    """
    if port is None:
        yield None
        return
    if find_spec("grpc") is None:
        raise ServiceError("--grpc-port needs grpcio: pip install '.[serving,grpc]'")
    kind, address = free_address(host, port, "--grpc-port")
    with socket.socket(*kind) as kept:
        # Without SO_REUSEADDR nobody else gets it; bound but not listening, it takes no connection.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
        yield spell(kept)
