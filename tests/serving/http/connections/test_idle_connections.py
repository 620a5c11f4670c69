"""A thousand clients that connect, begin a request or not, and send nothing more."""

import json
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.requests.connections import connect, post
from tests.support.service import eventually, running_service
from tests.support.training.samples import sample_test

CONNECTIONS = 1000
MAX_BYTES_PER_CONNECTION = 64 * 1024
ONE = {"image": sample_test().images[0].tolist()}
BEGINNINGS = (b"", b"POST /predict HTTP/1.1\r\nHost", post("/predict", json.dumps(ONE).encode())[:-1000])


@pytest.fixture
def many_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2 * CONNECTIONS:
        pytest.skip(f"this machine allows only {limits[1]} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2 * CONNECTIONS), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_a_thousand_idle_connections_take_little_memory_and_are_closed_while_others_are_served(
    one_model: Path,
) -> None:
    flags = ("--api-servers", "1", "--client-timeout", "4", "--keep-alive", "8")
    with running_service(one_model, *flags) as service, httpx.Client(base_url=service.url) as client:
        [pid] = service.children()
        process = psutil.Process(pid)

        def serve() -> None:
            for _ in range(20):
                assert client.post("/predict", json=ONE, timeout=20).status_code == 200

        serve()
        memory, files = process.memory_info().rss, process.num_fds()
        with ExitStack() as connections:
            idle = [connections.enter_context(connect(service.url)) for _ in range(CONNECTIONS)]
            for index, one in enumerate(idle):
                one.sendall(BEGINNINGS[index % 3])
            eventually(lambda: process.num_fds() >= files + CONNECTIONS)
            serve()
            assert process.memory_info().rss - memory < CONNECTIONS * MAX_BYTES_PER_CONNECTION
            eventually(lambda: process.num_fds() <= files, seconds=60)
            ends = Counter((index % 3, one.recv(12)) for index, one in enumerate(idle))
            assert set(ends) == {(0, b""), (1, b"HTTP/1.1 408"), (2, b"HTTP/1.1 408")}
            serve()
        assert process.memory_info().rss - memory < CONNECTIONS * MAX_BYTES_PER_CONNECTION
