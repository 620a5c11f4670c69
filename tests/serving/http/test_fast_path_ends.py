"""What ends early on the short way: clients that hang up, late requests, the server, idle connections."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.fast_path_server import DIGITS, KEEP_ALIVE_S, Run, Running, one, request, run_with_server


@pytest.fixture
def run(model_repository: Path) -> Run:
    """Run a scenario with a server."""
    return partial(run_with_server, model_repository)


def test_a_client_that_hangs_up_leaves_the_batch(run: Run) -> None:
    async def scenario(service: Running) -> None:
        clients = [await service.connect() for _ in range(4)]
        await asyncio.gather(*(client.ask(request(one(0))) for client in clients))
        for client in clients:  # many images are run on the thread, one request after the other
            client.writer.write(request({"images": [DIGITS[0].tolist()] * 60}))
            await asyncio.sleep(0)
            client.writer.transport.abort()
        survivor = await service.connect()
        assert (await survivor.ask(request(one(1))))[0] == 200

    run(scenario)


def test_what_is_late_or_given_up_leaves_the_batch_before_it_is_computed(run: Run) -> None:
    two = request({"images": DIGITS[:2].tolist()})  # more than a batch of one: each a run, on the thread

    async def scenario(service: Running) -> None:
        runs = service.endpoint._api.metrics._runs

        def metrics_say(in_flight: int) -> bool:
            return service.endpoint.metrics.in_flight == in_flight

        first, direct, whole, leaver = [await service.connect() for _ in range(4)]
        for client in (direct, leaver):
            await client.ask(request(one(0)))
        free = threading.Event()
        service.thread.submit(free.wait)
        try:
            for waiting, client in enumerate((first, direct, whole, leaver), start=1):
                client.writer.write(two)
                await until(partial(metrics_say, waiting))
            leaver.writer.transport.abort()
            await until(partial(metrics_say, 3))
            await asyncio.sleep(0.25)
            service.admission.cancel_late()
            for client in (first, direct, whole):
                status, _, body = await client.answer()
                assert (status, json.loads(body)["error"]["code"]) == (504, "timed_out")
        finally:
            free.set()
        assert (await whole.ask(two))[0] == 200
        assert runs[2].count == 2  # the first one's, which had begun, and the last one's
        assert service.whole_way == 4

    run(scenario, max_batch=1, request_timeout=0.2)


def test_an_answer_under_way_is_given_when_the_server_ends(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        await client.ask(request(one(0)))
        client.writer.write(request({"images": [DIGITS[0].tolist()] * 60}))
        service.server.should_exit = True
        assert (await client.answer())[0] == 200
        assert await client.reader.read() == b""

    run(scenario)


def test_a_connection_is_closed_when_it_has_been_idle_and_not_before(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        for _ in range(5):
            assert (await client.ask(request(one(0))))[0] == 200
            await asyncio.sleep(0.4 * KEEP_ALIVE_S)
        answered = time.monotonic()
        assert (await client.ask(request(one(0))))[0] == 200
        assert await client.reader.read() == b""
        assert 0.9 * KEEP_ALIVE_S < time.monotonic() - answered < 2 * KEEP_ALIVE_S
        assert service.whole_way == 1

    run(scenario)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a connection gives no event
            await asyncio.sleep(0.005)
