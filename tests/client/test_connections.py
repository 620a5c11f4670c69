"""Connections of the clients: how many, retries, timeouts, and input that is never sent."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from serving.client import AsyncClient, Client, Predictions
from serving.client.errors import InvalidImagesError, SlowServiceError, UnreachableError
from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.requests.clients import BOTH, Kind, png, predict
from tests.support.service import Service, free_port, starting_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()


class Proxy:
    """A TCP proxy that counts its connections and closes the next `cut` of them at their first request."""

    def __init__(self, url: str) -> None:
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.cut = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._begin(self._serve, client)

    def _begin(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        first = client.recv(65536)
        if self.cut:
            self.cut -= 1
            client.close()
            return
        server = socket.create_connection(self._target)
        server.sendall(first)
        self._begin(self._copy, server, client)
        self._copy(client, server)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def url(service: Service) -> str:
    return service.url


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    proxy = Proxy(url)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def expected(model_repository: Path) -> dict[str, Any]:
    """The probabilities of every sample digit by model, from onnxruntime alone."""
    return {
        name: Session(entry.path).run(DIGITS).probabilities
        for name, entry in load_repository(model_repository).items()
    }


def test_every_task_and_thread_gets_its_own_predictions(proxy: Proxy, expected: dict[str, Any]) -> None:
    async def predict_all() -> list[Predictions]:
        async with AsyncClient(proxy.url, model="student", connections=8) as client:
            return await asyncio.gather(*(client.predict(digit) for digit in DIGITS))

    answers = asyncio.run(predict_all())
    assert proxy.connections <= 8
    with Client(proxy.url, model="student") as client, ThreadPoolExecutor(4) as threads:
        answers += threads.map(client.predict, DIGITS)
    assert proxy.connections <= 8 + 4
    found = np.concatenate([answer.probabilities for answer in answers])
    assert np.abs(found - np.concatenate([expected["student"]] * 2)).max() < 1e-5


@BOTH
def test_one_connection_is_reused(kind: Kind, proxy: Proxy) -> None:
    predict(kind, proxy.url, DIGITS[:20])
    assert proxy.connections == 1


@BOTH
def test_a_connection_lost_before_the_response_is_retried(kind: Kind, proxy: Proxy) -> None:
    proxy.cut = 2
    predict(kind, proxy.url, [DIGITS[0]], "student")
    assert proxy.connections == 3
    proxy.cut = 2
    with pytest.raises(UnreachableError, match="tried 2 times"):
        predict(kind, proxy.url, [DIGITS[0]], "student", retries=1)


@BOTH
@pytest.mark.slow
def test_a_restart_of_the_service_goes_unnoticed(kind: Kind, two_models: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def batches(stack: contextlib.ExitStack) -> Iterator[Any]:
        first = stack.enter_context(starting_service(two_models, "--api-servers", "1", port=port))
        first.wait_until_ready()
        yield DIGITS[0]
        first.end()
        stack.enter_context(starting_service(two_models, "--api-servers", "1", port=port))
        yield DIGITS[0]  # the kept connection is closed, and nothing listens yet

    with contextlib.ExitStack() as stack:
        assert len(predict(kind, url, batches(stack), retries=12)) == 2


@pytest.fixture(scope="module")
def hanging(one_model: Path) -> Iterator[str]:
    """The URL of a service that answered, and then was stopped."""
    with starting_service(one_model, "--api-servers", "1") as running:
        url = running.wait_until_ready()
        predict(Client, url, [DIGITS[0]])
        for process in running.children():
            os.kill(process, signal.SIGSTOP)
        yield url


@BOTH
def test_a_service_that_hangs_raises_after_the_timeout(kind: Kind, hanging: str) -> None:
    before = time.monotonic()
    with pytest.raises(SlowServiceError, match="/infer"):
        predict(kind, hanging, [DIGITS[0]], "student", timeout=0.3)
    assert 0.25 < time.monotonic() - before < 5  # far below the service's own time limit and the retries


@BOTH
@pytest.mark.parametrize(
    "images",
    [DIGITS / 255, DIGITS.astype(np.int64), DIGITS.reshape(-1, 784), DIGITS[:0], 7, [[1, 2], [3, 4]]],
)
def test_invalid_images_are_not_sent(kind: Kind, proxy: Proxy, images: Any) -> None:
    with pytest.raises(InvalidImagesError, match=r"expected uint8 \[N, 28, 28\]"):
        predict(kind, proxy.url, [images])
    assert proxy.connections == 0


def test_files_that_are_not_pictures_are_not_sent(proxy: Proxy) -> None:
    with Client(proxy.url) as client:
        for pictures in ([], [b"II*\0"], [png(DIGITS[0]), b""]):
            with pytest.raises(InvalidImagesError, match="expected"):
                client.predict_pictures(pictures)
    assert proxy.connections == 0
