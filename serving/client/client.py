"""The two clients, on httpx: `Client` blocks, `AsyncClient` is for asyncio."""

import asyncio
import itertools
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx
from numpy.typing import ArrayLike

from serving.client.errors import ClientError
from serving.client.messages import (
    Feedback,
    Predictions,
    as_images,
    check_labels,
    feedback_request,
    feedback_response,
    images_request,
    images_response,
    join,
    join_feedback,
    models_response,
    pictures_request,
    pictures_response,
    split,
)
from serving.client.retries import delay_after_error, delay_after_status

_KEEP_ALIVE_S = 60.0  # the service closes an idle connection after 75 (--keep-alive)


Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


class _Settings(Generic[Http]):
    """Settings of both clients. All methods raise `ClientError`."""

    _transport: type[Http]

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        timeout: float = 10.0,
        connect_timeout: float = 2.0,
        retries: int = 3,
        max_images: int = 256,
        connections: int = 100,
    ) -> None:
        """Set the service's address; nothing is sent yet.

        `model`: of calls that name none; the service's default by default. `ca_file`: certificates (PEM) to trust
        in place of the system's, for a service whose authority is your own. `timeout`: seconds without a byte from
        the service. `retries`: attempts after the first. `max_images`: per request; at most the service's
        --max-images. `connections`: the most at once; further threads or tasks wait for one of them.
        """
        tls = url.startswith("https")  # reading the certificates takes longer than a hundred predictions
        self._http: Http = self._transport(
            base_url=_check_url(url),
            headers=_key_header(api_key),
            timeout=httpx.Timeout(timeout, connect=connect_timeout, pool=None),
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=_KEEP_ALIVE_S),
            verify=ssl.create_default_context(cafile=ca_file)
            if tls
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,  # a proxy of the environment is not meant for a service of one's own
        )
        self._model = model
        self._retries = retries
        self._max_images = max_images


class Client(_Settings[httpx.Client]):
    """A synchronous client, for any number of threads."""

    _transport = httpx.Client

    def predict(self, images: ArrayLike, model: str | None = None) -> Predictions:
        """Classify `uint8 [N, 28, 28]`, or one `[28, 28]`."""
        parts = split(as_images(images), self._max_images)
        name = model or self._model or next(iter(self.models()))
        requests = [images_request(self._http, name, part) for part in parts]
        responses = [self._send(request) for request in requests]
        return join([images_response(*pair) for pair in zip(responses, map(len, parts), strict=True)])

    def predict_pictures(self, pictures: Sequence[bytes], model: str | None = None) -> Predictions:
        """Classify PNG, JPEG, WebP, GIF or BMP files of any size; the service converts them to MNIST's form."""
        parts = split(pictures, self._max_images)
        requests = [pictures_request(self._http, model or self._model, part) for part in parts]
        responses = [self._send(request) for request in requests]
        return join([pictures_response(*pair) for pair in zip(responses, map(len, parts), strict=True)])

    def feedback(self, predictions: Predictions, digits: Sequence[int | None]) -> Feedback:
        """Send the true digits of images that were classified; None for an image whose digit is not known."""
        parts = check_labels(predictions, digits)
        requests = [feedback_request(self._http, *part) for part in parts]
        return join_feedback([feedback_response(self._send(request)) for request in requests])

    def models(self) -> dict[str, dict[str, Any]]:
        """Return the manifest of every model by name, the default model's first."""
        models = models_response(self._send(self._http.build_request("GET", "/models")))
        self._model = self._model or next(iter(models))
        return models

    def ready(self) -> bool:
        """Return whether the service answers predictions; tried once."""
        try:
            return self._http.get("/health/ready").status_code == httpx.codes.OK
        except httpx.RequestError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, request: httpx.Request) -> httpx.Response:
        for attempt in itertools.count():
            try:
                response = self._http.send(request)
            except httpx.RequestError as error:
                time.sleep(delay_after_error(error, attempt, self._retries))
            else:
                if response.status_code < httpx.codes.BAD_REQUEST:
                    return response
                time.sleep(delay_after_status(response, attempt, self._retries))
        raise AssertionError  # the last attempt returns or raises


class AsyncClient(_Settings[httpx.AsyncClient]):
    """The same for asyncio, for any number of tasks of one event loop."""

    _transport = httpx.AsyncClient

    async def predict(self, images: ArrayLike, model: str | None = None) -> Predictions:
        """Classify `uint8 [N, 28, 28]`, or one `[28, 28]`."""
        parts = split(as_images(images), self._max_images)
        name = model or self._model or next(iter(await self.models()))
        requests = [images_request(self._http, name, part) for part in parts]
        responses = [await self._send(request) for request in requests]
        return join([images_response(*pair) for pair in zip(responses, map(len, parts), strict=True)])

    async def predict_pictures(self, pictures: Sequence[bytes], model: str | None = None) -> Predictions:
        """Classify PNG, JPEG, WebP, GIF or BMP files of any size; the service converts them to MNIST's form."""
        parts = split(pictures, self._max_images)
        requests = [pictures_request(self._http, model or self._model, part) for part in parts]
        responses = [await self._send(request) for request in requests]
        return join([pictures_response(*pair) for pair in zip(responses, map(len, parts), strict=True)])

    async def feedback(self, predictions: Predictions, digits: Sequence[int | None]) -> Feedback:
        """Send the true digits of images that were classified; None for an image whose digit is not known."""
        parts = check_labels(predictions, digits)
        requests = [feedback_request(self._http, *part) for part in parts]
        return join_feedback([feedback_response(await self._send(request)) for request in requests])

    async def models(self) -> dict[str, dict[str, Any]]:
        """Return the manifest of every model by name, the default model's first."""
        models = models_response(await self._send(self._http.build_request("GET", "/models")))
        self._model = self._model or next(iter(models))
        return models

    async def ready(self) -> bool:
        """Return whether the service answers predictions; tried once."""
        try:
            return (await self._http.get("/health/ready")).status_code == httpx.codes.OK
        except httpx.RequestError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        for attempt in itertools.count():
            try:
                response = await self._http.send(request)
            except httpx.RequestError as error:
                await asyncio.sleep(delay_after_error(error, attempt, self._retries))
            else:
                if response.status_code < httpx.codes.BAD_REQUEST:
                    return response
                await asyncio.sleep(delay_after_status(response, attempt, self._retries))
        raise AssertionError  # the last attempt returns or raises


def _check_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ClientError(f"{url!r} is not the URL of a service: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ClientError(f"{url!r} is not the URL of a service; expected one such as http://127.0.0.1:8000")
    return parsed


def _key_header(api_key: str | None) -> dict[str, str]:
    if not api_key:
        return {}
    if not (api_key.isascii() and api_key.isprintable()):
        raise ClientError("the API key has characters that a header cannot carry; expected printable ASCII")
    return {"X-API-Key": api_key}
