"""Slow clients of a service with default settings: a slow uplink, and heads that arrive byte by byte."""

import asyncio
import json
import time
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.requests.connections import Connection, post
from tests.support.service import Service
from tests.support.training.samples import sample_test

ONE = {"image": sample_test().images[0].tolist()}
HEADS = 200

pytestmark = pytest.mark.slow


async def dial(service: Service) -> Connection:
    address = urlsplit(service.url)
    return await Connection.to(str(address.hostname), address.port or 0)


async def upload(service: Service) -> float:
    """Send 3 MB at 300 kB/s; return the seconds until the response."""
    connection = await dial(service)
    data = post("/predict", json.dumps(ONE).encode().ljust(3_000_000))
    started = time.monotonic()
    for start in range(0, len(data), 30_000):
        connection.writer.write(data[start : start + 30_000])
        await asyncio.sleep(0.1)
    status, _, _ = await connection.answer()
    assert status == 200
    connection.writer.close()
    return time.monotonic() - started


async def drip(service: Service) -> float:
    """Send a head byte by byte; return the seconds until the service gives up."""
    connection = await dial(service)
    started = time.monotonic()
    answer = asyncio.create_task(connection.answer())
    for byte in b"GET /models HTTP/1.1\r\nX-Padding: " + b"x" * 100:
        if answer.done():
            break
        connection.writer.write(bytes([byte]))
        await asyncio.sleep(0.25)
    status, headers, _ = await answer
    assert (status, headers["connection"]) == (408, "close")
    assert await connection.reader.read() == b""
    connection.writer.close()
    return time.monotonic() - started


def test_a_slow_upload_is_served_while_heads_that_never_complete_are_closed(service: Service) -> None:
    async def clients() -> tuple[float, list[float]]:
        uploading = asyncio.create_task(upload(service))
        closed = await asyncio.gather(*(drip(service) for _ in range(HEADS)))
        async with httpx.AsyncClient(base_url=service.url) as client:
            assert (await client.post("/predict", json=ONE)).status_code == 200
        return await uploading, closed

    uploaded, closed = asyncio.run(clients())
    assert uploaded > 9
    assert min(closed) > 9
    assert max(closed) < 20
