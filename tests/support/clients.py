"""Questions that both of the service's own clients are asked."""

import asyncio
import io
from collections.abc import Iterable
from typing import Any

import pytest
from PIL import Image

from serving.client import AsyncClient, Client
from serving.client.wire import Predictions

BOTH = pytest.mark.parametrize("kind", [Client, AsyncClient])
Kind = type[Client] | type[AsyncClient]


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
