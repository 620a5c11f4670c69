"""The same calls through `Client` and `AsyncClient`."""

import asyncio
import io
from collections.abc import Iterable
from typing import Any

import pytest
from PIL import Image

from serving.client import AsyncClient, Client, Predictions

BOTH = pytest.mark.parametrize("kind", [Client, AsyncClient])
Kind = type[Client] | type[AsyncClient]


def predict(
    kind: Kind, url: str, batches: Iterable[Any], model: str | None = None, **settings: Any
) -> list[Predictions]:
    """The predictions of one client for each of `batches`, one after the other."""
    if kind is Client:
        with Client(url, **settings) as client:
            return [client.predict(images, model) for images in batches]

    async def predict_all() -> list[Predictions]:
        async with AsyncClient(url, **settings) as client:
            return [await client.predict(images, model) for images in batches]

    return asyncio.run(predict_all())


def png(digit: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(digit).save(buffer, "PNG")
    return buffer.getvalue()
