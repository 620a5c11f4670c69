"""Requests whose end is ambiguous, which proxy and service may see differently (request smuggling).

Each is followed by a second request on the same connection. An ambiguous one is rejected, and nothing behind it is
served; the others are served, and so is the second. On a fresh connection, and on one that has taken the fast path.
"""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from tests.support.fast_path_server import Run, Running, one, request, run_with_server
from tests.support.requests.ambiguous import AMBIGUOUS, CLEAR, SECOND


@pytest.fixture(params=[True, False], ids=["fast-path", "no-fast-path"])
def run(request: pytest.FixtureRequest, one_model: Path) -> Run:
    """Run a scenario with a service with and without the fast path."""
    return partial(run_with_server, one_model, fast_path=request.param)


async def statuses(service: Running, data: bytes, *, used: bool) -> list[int]:
    """Return the statuses of all responses to `data` and a second request, until the connection is closed."""
    client = await service.connect()
    for _ in range(2 if used else 0):
        assert (await client.ask(request(one(0))))[0] == 200
    client.writer.write(data + SECOND)
    responses = (await client.reader.read()).split(b"HTTP/1.1 ")[1:]
    return [int(response.split()[0]) for response in responses]


def test_an_ambiguous_request_is_rejected_and_ends_the_connection(run: Run) -> None:
    async def scenario(service: Running) -> None:
        for used in (False, True):
            for requests, expected in ((AMBIGUOUS, [400]), (CLEAR, [200, 404])):
                found = await asyncio.gather(
                    *(statuses(service, data, used=used) for data in requests.values())
                )
                assert dict(zip(requests, found, strict=True)) == dict.fromkeys(requests, expected)

    run(scenario)
