"""The service's own clients, against the service itself."""

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import prometheus_client
import pytest
from PIL import Image
from samples import sample_test
from test_serving_processes import service as started

from benchmarks.servers import ROOT, free_port, running_service
from serving.client import AsyncClient, Client
from serving.client.errors import (
    ClientError,
    FailedError,
    InvalidImagesError,
    MalformedAnswerError,
    RefusedError,
    SlowServiceError,
    UnreachableError,
)
from serving.client.wire import Predictions
from serving.repository import load_repository
from serving.session import Session

DIGITS = sample_test().images.numpy()
KEY = "correct horse"
BOTH = pytest.mark.parametrize("kind", [Client, AsyncClient])
Kind = type[Client] | type[AsyncClient]


@pytest.fixture(scope="module")
def url(two_models: Path) -> Iterator[str]:
    with running_service(two_models, "--api-servers", "2", "--max-images", "100") as url:
        yield url


@pytest.fixture(scope="module")
def expected(two_models: Path) -> dict[str, Any]:
    """The probabilities of every digit, by model, as onnxruntime alone gives them."""
    return {name: Session(entry.path).run(DIGITS)[1] for name, entry in load_repository(two_models).items()}


def predict(
    kind: Kind, url: str, batches: Iterable[Any], model: str | None = None, **settings: Any
) -> list[Predictions]:
    """One client's answers to each of `batches`, asked one after the other."""
    if kind is Client:
        with Client(url, **settings) as client:
            return [client.predict(images, model) for images in batches]

    async def ask() -> list[Predictions]:
        async with AsyncClient(url, **settings) as client:
            return [await client.predict(images, model) for images in batches]

    return asyncio.run(ask())


def png(digit: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(digit).save(buffer, "PNG")
    return buffer.getvalue()


class Proxy:
    """A TCP proxy that counts its connections, and closes the next `cut` of them when a request comes."""

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
def proxy(url: str) -> Iterator[Proxy]:
    proxy = Proxy(url)
    yield proxy
    proxy.close()


# Answers


@BOTH
def test_answers_are_those_of_the_session_in_several_requests_if_need_be(
    kind: Kind, url: str, expected: dict[str, Any]
) -> None:
    for model, scores in expected.items():
        for images in (64, 100):
            (answer,) = predict(kind, url, [DIGITS], model, max_images=images)
            assert np.abs(answer.probabilities - scores).max() < 1e-5
            assert answer.digits.tolist() == scores.argmax(axis=1).tolist()
            assert (answer.model, answer.version, len(answer)) == (model, "1", len(DIGITS))
            assert 0 < answer.timing.inference_ms < answer.timing.total_ms
    (one,) = predict(kind, url, [DIGITS[0]])
    assert one.model == "student"  # the service's default
    assert one.probabilities.shape == (1, 10)


def test_pictures_get_the_answers_of_their_pixels(url: str, expected: dict[str, Any]) -> None:
    files = [png(digit) for digit in DIGITS[:5]]

    async def ask() -> Predictions:
        async with AsyncClient(url, model="teacher") as client:
            return await client.predict_pictures(files)

    with Client(url) as client:
        answers = [client.predict_pictures(files, "teacher"), asyncio.run(ask())]
        for answer in answers:
            assert np.abs(answer.probabilities - expected["teacher"][:5]).max() < 1e-5
            assert answer.model == "teacher"
        assert client.predict_pictures(files[:1]).model == "student"


def test_every_task_and_every_thread_gets_its_own_answer(proxy: Proxy, expected: dict[str, Any]) -> None:
    async def ask() -> list[Predictions]:
        async with AsyncClient(proxy.url, model="student", connections=8) as client:
            return await asyncio.gather(*(client.predict(digit) for digit in DIGITS))

    answers = asyncio.run(ask())
    assert proxy.connections <= 8
    with Client(proxy.url, model="student") as client, ThreadPoolExecutor(4) as threads:
        answers += threads.map(client.predict, DIGITS)
    assert proxy.connections <= 8 + 4
    found = np.concatenate([answer.probabilities for answer in answers])
    assert np.abs(found - np.concatenate([expected["student"]] * 2)).max() < 1e-5


@BOTH
def test_one_connection_is_used_again_and_again(kind: Kind, proxy: Proxy) -> None:
    predict(kind, proxy.url, DIGITS[:20])
    assert proxy.connections == 1


def test_models_and_readiness(url: str, two_models: Path) -> None:
    manifests = {name: entry.manifest for name, entry in load_repository(two_models).items()}
    nowhere = f"http://127.0.0.1:{free_port()}"

    async def ask() -> tuple[Any, bool, bool]:
        async with AsyncClient(url) as client, AsyncClient(nowhere) as lost:
            return await client.models(), await client.ready(), await lost.ready()

    with Client(url) as client, Client(nowhere) as lost:
        for models, ready, lost_ready in [
            (client.models(), client.ready(), lost.ready()),
            asyncio.run(ask()),
        ]:
            assert list(models) == ["student", "teacher"]  # the default first
            assert models == {name: one.model_dump(mode="json") for name, one in manifests.items()}
            assert (ready, lost_ready) == (True, False)


# Trouble


@BOTH
def test_a_connection_lost_before_the_answer_is_tried_again(kind: Kind, proxy: Proxy) -> None:
    proxy.cut = 2
    predict(kind, proxy.url, [DIGITS[0]], "student")
    assert proxy.connections == 3
    proxy.cut = 2
    with pytest.raises(UnreachableError, match="tried 2 times"):
        predict(kind, proxy.url, [DIGITS[0]], "student", retries=1)


@BOTH
@pytest.mark.slow
def test_a_service_that_restarts_is_not_noticed(kind: Kind, two_models: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def batches(stack: contextlib.ExitStack) -> Iterator[Any]:
        first = stack.enter_context(started(two_models, "--api-servers", "1", port=port))
        first.wait_until_ready()
        yield DIGITS[0]
        first.end()
        stack.enter_context(started(two_models, "--api-servers", "1", port=port))
        yield DIGITS[0]  # the kept connection is dead, and nobody listens yet

    with contextlib.ExitStack() as stack:
        assert len(predict(kind, url, batches(stack), retries=12)) == 2


@BOTH
def test_a_refusal_is_not_tried_again(kind: Kind, url: str) -> None:
    label = 'distillery_requests_total{model="teacher",protocol="v2",status="400"}'

    def refused() -> float:
        time.sleep(0.3)  # counts are published a few times a second
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(label))

    before = refused()
    with pytest.raises(RefusedError, match="one request may carry 100 images") as caught:
        predict(kind, url, [DIGITS], "teacher")
    assert caught.value.status == 400
    assert refused() - before == 1
    with pytest.raises(RefusedError, match="there is no model 'no/body'") as caught:
        predict(kind, url, [DIGITS[0]], "no/body")
    assert caught.value.status == 404


@BOTH
def test_a_service_that_hangs_is_not_waited_for(kind: Kind, two_models: Path) -> None:
    with started(two_models, "--api-servers", "1") as running:
        url = running.wait_until_ready()
        predict(kind, url, [DIGITS[0]])
        for process in running.children():
            os.kill(process, signal.SIGSTOP)
        before = time.monotonic()
        with pytest.raises(SlowServiceError, match="/infer"):
            predict(kind, url, [DIGITS[0]], "student", timeout=0.3)
        assert 0.25 < time.monotonic() - before < 2


@BOTH
def test_a_busy_service_is_asked_again_when_it_says(kind: Kind, strict_url: str) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: {KEY}\r\n"
    address = (urlsplit(strict_url).hostname, urlsplit(strict_url).port)
    with socket.create_connection(address) as holder:  # the one request that there is room for
        holder.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        time.sleep(0.2)  # nothing tells a client that its headers were read
        with pytest.raises(FailedError, match="1 requests are under way") as caught:
            predict(kind, strict_url, [DIGITS[0]], "student", api_key=KEY, retries=0)
        assert caught.value.status == 503
        threading.Timer(0.5, holder.shutdown, [socket.SHUT_RDWR]).start()
        before = time.monotonic()
        predict(kind, strict_url, [DIGITS[0]], "student", api_key=KEY)
        assert 1 <= time.monotonic() - before < 3


@pytest.fixture(scope="module")
def strict_url(two_models: Path) -> Iterator[str]:
    with running_service(two_models, "--api-servers", "1", "--max-in-flight", "1", "--api-key", KEY) as url:
        yield url


@BOTH
def test_without_the_key_the_service_says_so(kind: Kind, strict_url: str) -> None:
    with pytest.raises(RefusedError, match="X-API-Key is missing or wrong") as caught:
        predict(kind, strict_url, [DIGITS[0]])
    assert caught.value.status == 401


@BOTH
@pytest.mark.parametrize(
    "images",
    [DIGITS / 255, DIGITS.astype(np.int64), DIGITS.reshape(-1, 784), DIGITS[:0], 7, [[1, 2], [3, 4]]],
)
def test_what_is_no_image_is_not_sent(kind: Kind, proxy: Proxy, images: Any) -> None:
    with pytest.raises(InvalidImagesError, match=r"expected uint8 \[N, 28, 28\]"):
        predict(kind, proxy.url, [images])
    assert proxy.connections == 0


def test_what_is_no_picture_is_not_sent(proxy: Proxy) -> None:
    with Client(proxy.url) as client:
        for pictures in ([], [b"GIF89a"], [png(DIGITS[0]), b""]):
            with pytest.raises(InvalidImagesError, match="PNG or JPEG"):
                client.predict_pictures(pictures)
    assert proxy.connections == 0


@BOTH
def test_something_else_at_the_url_is_named(kind: Kind) -> None:
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1")  # answers anything with its metrics
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(MalformedAnswerError, match="is no answer of this service"):
            predict(kind, url, [DIGITS[0]])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@BOTH
def test_settings_that_cannot_work_are_refused_at_once(kind: Kind) -> None:
    for url in ("127.0.0.1:8000", "ftp://host", "http://", "http://host:port"):
        with pytest.raises(ClientError, match="is no URL of a service"):
            kind(url)
    with pytest.raises(ClientError, match="printable ASCII"):
        kind("http://127.0.0.1", api_key="a\r\nb")


# Its imports


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_nothing_is_imported_that_only_the_service_needs() -> None:
    heavy = (
        "onnxruntime",
        "litserve",
        "fastapi",
        "uvicorn",
        "prometheus_client",
        "PIL",
        "grpc",
        "torch",
        "aiohttp",
    )
    code = f"import sys, serving.client; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code) == "[]\n"


def test_without_aiohttp_only_the_asynchronous_client_is_missing() -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from serving.client import AsyncClient, Client\n"
        "from serving.client.errors import ClientError\n"
        "Client('http://127.0.0.1').close()\n"
        "try: AsyncClient('http://127.0.0.1')\n"
        "except ClientError as error: print(error)"
    )
    assert run_python(code) == "AsyncClient needs aiohttp: pip install '.[client]'\n"
