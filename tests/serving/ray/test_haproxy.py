"""HAProxy in front of the services of nodes; its servers are two real services' addresses, no Ray is needed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from benchmarks.cluster.balancers import DEPLOY
from serving.processes.sockets import ServiceError
from serving.ray.haproxy import HAProxy
from tests.support.service import eventually, free_port

PATIENCE_S = 30


class Named(BaseHTTPRequestHandler):
    """A service that responds with its own address."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = str(self.connection.getsockname()[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@contextmanager
def named_services(port: int, *addresses: str) -> Iterator[None]:
    servers = [ThreadingHTTPServer((address, port), Named) for address in addresses]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def proxy() -> Iterator[tuple[HAProxy, str, int]]:
    port, service_port = free_port(), free_port()
    haproxy = HAProxy(port, service_port)
    try:
        yield haproxy, f"http://127.0.0.1:{port}", service_port
    finally:
        haproxy.stop()


def test_servers_follow_the_nodes_while_connections_stay_open(proxy: tuple[HAProxy, str, int]) -> None:
    haproxy, url, port = proxy
    with named_services(port, "127.0.0.2", "127.0.0.3"), httpx.Client() as client:

        def responders() -> set[str]:
            return {client.get(url).text for _ in range(8)}

        haproxy.follow(["127.0.0.2"])
        eventually(lambda: responders() == {"127.0.0.2"}, PATIENCE_S)
        haproxy.follow(["127.0.0.2", "127.0.0.3", "127.0.0.4"])  # nothing responds at the last
        eventually(lambda: responders() == {"127.0.0.2", "127.0.0.3"}, PATIENCE_S)
        haproxy.follow(["127.0.0.3"])
        assert responders() == {"127.0.0.3"}
        haproxy.check()


def test_a_port_in_use_is_an_error_at_the_start() -> None:
    with (
        named_services(port := free_port(), "127.0.0.1"),
        pytest.raises(ServiceError, match="HAProxy ended with status 1"),
    ):
        HAProxy(port, free_port())


def test_a_haproxy_that_died_fails_its_check(proxy: tuple[HAProxy, str, int]) -> None:
    haproxy, _, _ = proxy
    haproxy._process.kill()
    haproxy._process.wait()
    with pytest.raises(ServiceError, match="HAProxy ended with status -9"):
        haproxy.check()


def test_the_configuration_is_the_deployed_one_but_for_the_servers_and_reloads() -> None:
    """A change of one of the two files is made to the other."""
    ours = directives(DEPLOY.parent / "serving/ray/haproxy.cfg")
    theirs = directives(DEPLOY / "haproxy/haproxy.cfg")
    reloads = {"hard-stop-after 30s", "option idle-close-on-response"}
    differences = set(ours) ^ set(theirs)
    assert {one.split()[0] for one in differences - reloads} == {"stats", "bind", "server", "server-template"}


def directives(path: Path) -> list[str]:
    lines = [" ".join(line.partition("#")[0].split()) for line in path.read_text().splitlines()]
    return [line for line in lines if line]
