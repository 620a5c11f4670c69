"""More requests than can be served in time: rejections are early, cheap, and slow down clients that retry at once."""

import asyncio
import json
import time
from functools import partial
from pathlib import Path

import grpc
import pytest

from serving.engine.admission.backlog import SHARE
from serving.engine.admission.pacing import Rejections
from serving.grpc.port import grpc_address
from tests.support.fast_path_server import (
    DIGITS,
    Run,
    Running,
    hold_runs,
    one,
    request,
    run_with_server,
    until,
)
from tests.support.requests.connections import Connection
from tests.support.requests.grpc_calls import INFER, message

MANY = request({"images": DIGITS[:64].tolist()})
HURRY = "X-Request-Timeout-Seconds: 0.5"


@pytest.fixture(params=[True, False], ids=["fast-path", "no-fast-path"])
def run(request: pytest.FixtureRequest, one_model: Path) -> Run:
    return partial(run_with_server, one_model, fast_path=request.param)


def fill(service: Running) -> None:
    """Put as much work in flight as a request with a timeout of 0.5 s accepts before it."""
    service.service.admission.backlog.admit("student", SHARE * 0.5, 60)


def test_a_process_sends_a_limited_number_of_rejections_per_second() -> None:
    rejections = Rejections()
    first = [rejections.due(0.0, 0.0) for _ in range(300)]
    assert first[:100] == [0] * 100
    assert first[100:] == pytest.approx([1 + index / 100 for index in range(200)], abs=0.02)
    patient = [rejections.due(now, now) for now in (2.0, 2.1, 2.2)]
    assert patient == [2.0, 2.1, 2.2]
    assert max(rejections.due(3.0, 4.0) for _ in range(2000)) == 13.0


async def held_back(service: Running) -> Connection:
    """Return a client whose second rejection is held back."""
    client = await service.connect()
    data = request(one(0), HURRY)
    fill(service)
    assert (await client.ask(data))[0] == 503
    client.writer.write(data)
    await until(lambda: service.rejections.held == 1)
    return client


def empty(service: Running) -> None:
    service.service.admission.backlog.end("student", SHARE * 0.5)


def test_a_request_that_would_be_late_is_rejected_at_once(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        data = request(one(0), HURRY)
        assert (await client.ask(data))[0] == 200
        fill(service)
        started = time.monotonic()
        client.writer.write(data)
        status, headers, body = await client.answer()
        assert time.monotonic() - started < 0.5
        assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (503, "1", "overloaded")
        assert (await client.ask(request(one(0))))[0] == 200  # it has 5 s
        empty(service)
        assert (await client.ask(data))[0] == 200

    run(scenario)


def test_a_body_is_not_awaited_before_a_rejection(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        data = request({"images": DIGITS[:64].tolist()}, HURRY)
        for known in (False, True):
            fill(service)
            client.writer.write(data[:1000])
            assert (await client.answer())[0] == 503
            empty(service)
            client.writer.write(data[1000:])  # and the connection stays usable
            assert (await client.ask(request(one(0), HURRY)))[0] == 200
            if not known:
                assert (await client.ask(data))[0] == 200

    run(scenario)


def test_a_client_that_retries_at_once_waits_and_others_do_not(run: Run) -> None:
    async def scenario(service: Running) -> None:
        impatient = await service.connect()
        data = request(one(0), HURRY)
        fill(service)
        started = time.monotonic()
        for _ in range(2):
            assert (await impatient.ask(data))[0] == 503
        assert 0.7 < time.monotonic() - started < 3
        other = await service.connect()
        started = time.monotonic()
        impatient.writer.write(data)  # is held back while
        assert (await other.ask(data))[0] == 503
        assert time.monotonic() - started < 0.5
        empty(service)
        assert (await other.ask(data))[0] == 200
        assert time.monotonic() - started < 0.5
        assert (await impatient.answer())[0] == 503

    run(scenario)


def test_a_body_that_is_not_awaited_does_not_delay_the_end_of_the_connection(run: Run) -> None:
    async def scenario(service: Running) -> None:
        data = request({"images": DIGITS[:64].tolist()}, HURRY, "Connection: close")
        assert (await (await service.connect()).ask(data))[0] == 200
        fill(service)
        client = await service.connect()
        client.writer.write(data[:1000])
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (503, "close")
        assert await client.reader.read() == b""
        client.writer.write(data[1000:])  # to a server that has closed its side only: no reset
        await client.writer.drain()
        empty(service)

    run(scenario)


def test_clients_that_connect_for_every_request_wait_and_the_first_do_not(run: Run) -> None:
    async def scenario(service: Running) -> None:
        data = request(one(0), HURRY, "Connection: close")
        assert (await (await service.connect()).ask(data))[0] == 200
        fill(service)
        rejections, now = service.rejections, time.monotonic()
        assert (await (await service.connect()).ask(data))[0] == 503
        assert time.monotonic() - now < 0.5
        rejections.due(time.monotonic() + 60, 0)  # as if all that are sent at once had been, for a minute
        late = await service.connect()
        started = time.monotonic()
        late.writer.write(data)
        await until(lambda: rejections.held == 1)
        assert (await late.answer())[0] == 503
        assert 0.7 < time.monotonic() - started < 3
        empty(service)

    run(scenario)


def test_rejections_over_grpc_are_held_back_too(one_model: Path) -> None:
    async def scenario(service: Running) -> None:
        fill(service)
        async with grpc.aio.insecure_channel(address) as channel:
            infer = channel.unary_unary(INFER)

            async def rejected(limit: float) -> tuple[grpc.StatusCode, float]:
                started = time.monotonic()
                with pytest.raises(grpc.RpcError) as caught:
                    await infer(message().SerializeToString(), timeout=limit)
                return caught.value.code(), time.monotonic() - started

            code, seconds = await rejected(10)
            assert (code, seconds < 0.9) == (grpc.StatusCode.UNAVAILABLE, True)
            service.rejections.due(time.monotonic() + 60, 0)  # as if all that are sent at once had been
            code, seconds = await rejected(10)
            assert (code, 0.9 < seconds < 5) == (grpc.StatusCode.UNAVAILABLE, True)
            assert (await rejected(0.3))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: service.rejections.held == 0)
        empty(service)

    with grpc_address("127.0.0.1", 0) as address:
        run_with_server(one_model, scenario, grpc=address, request_timeout=0.5)


def test_a_client_that_leaves_while_its_rejection_is_held_back_leaves_nothing(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await held_back(service)
        client.writer.transport.abort()
        await until(lambda: service.rejections.held == 0)
        empty(service)

    run(scenario)


def test_a_shutdown_does_not_wait_for_rejections_held_back(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await held_back(service)
        started = time.monotonic()
        service.server.should_exit = True
        status, headers, _ = await client.answer()
        assert (status, headers["connection"], time.monotonic() - started < 0.5) == (503, "close", True)
        empty(service)

    run(scenario)


def test_a_client_that_leaves_makes_room(run: Run) -> None:
    async def scenario(service: Running) -> None:
        released = hold_runs(service.endpoint.api.session)
        released.clear()
        backlog = service.service.admission.backlog
        try:
            clients = [await service.connect() for _ in range(3)]
            for client in clients:
                client.writer.write(MANY)
            await until(lambda: backlog._counts.get("student") == 3)
            before = backlog.seconds
            clients[2].writer.transport.abort()
            await until(lambda: backlog.seconds < before)
        finally:
            released.set()
        for client in clients[:2]:
            assert (await client.answer())[0] == 200
        assert backlog.seconds == 0

    run(scenario, max_batch=1)


def test_an_invalid_timeout_is_an_error(run: Run) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        for value in ("soon", "0", "-1", "nan", ""):
            status, body = await client.ask(request(one(0), f"X-Request-Timeout-Seconds: {value}"))
            assert status == 422, value
            assert "X-Request-Timeout-Seconds is" in body["error"]["message"]

    run(scenario)


def test_the_timeout_of_a_client_ends_its_request(run: Run) -> None:
    async def scenario(service: Running) -> None:
        released = hold_runs(service.endpoint.api.session)
        client = await service.connect()
        released.clear()
        try:
            client.writer.write(request({"images": DIGITS[:2].tolist()}, HURRY))
            started = time.monotonic()
            status, _, body = await client.answer()
            assert (status, 0.4 < time.monotonic() - started < 3) == (504, True)
            assert "not ready within 0.5 s" in json.loads(body)["error"]["message"]
        finally:
            released.set()
        await asyncio.sleep(0)

    run(scenario, max_batch=1)


def test_without_a_valid_key_an_overloaded_service_answers_401_and_does_no_work(run: Run) -> None:
    async def scenario(service: Running) -> None:
        data = {key: request(one(0), HURRY, f"X-API-Key: {key}") for key in ("valid", "wrong")}
        clients = {key: await service.connect() for key in data}
        for key, status in (("valid", 200), ("wrong", 401)):
            assert (await clients[key].ask(data[key]))[0] == status
        fill(service)
        before = service.service.admission.backlog.seconds
        for size in (None, 1000):  # also before the body has arrived
            for key, status in (("wrong", 401), ("valid", 503)):
                clients[key].writer.write(data[key][:size])
                assert (await clients[key].answer())[0] == status
            assert service.service.admission.backlog.seconds == before
        empty(service)

    run(scenario, api_key="valid")
