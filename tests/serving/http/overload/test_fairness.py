"""A client that floods the service takes nothing from one that stays within its share."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from serving.engine.admission.api_keys import hash_of
from tests.support.fast_path_server import DIGITS, request
from tests.support.requests.connections import Connection
from tests.support.service import running_service

SLOW_MODEL = """
import time
from serving.model.session import Session
unslowed = Session.run
Session.run = lambda self, images: (time.sleep(0.001 * len(images)), unslowed(self, images))[1]
"""
"""A millisecond per image, on any machine."""
IMAGES = {"images": DIGITS[:16].tolist()}
FLOOD = 60
"""Connections that retry at once: about a second of work, where half a second is admitted."""
TIMEOUT_S = 1.0
SECONDS = 2.5

Answers = list[tuple[int, float]]
"""Status and seconds."""


async def send(url: str, key: str, until: float, pause: float = 0.0) -> Answers:
    """Send requests one after the other."""
    parts = urlsplit(url)
    client = await Connection.to(str(parts.hostname), parts.port or 0)
    data, answers = request(IMAGES, f"X-API-Key: {key}"), []
    while (started := time.monotonic()) < until:
        client.writer.write(data)
        status, _, _ = await client.answer()
        answers.append((status, time.monotonic() - started))
        await asyncio.sleep(pause)
    client.writer.close()
    return answers


async def flooded(url: str, key: str) -> tuple[Answers, Answers]:
    """Return the answers to a flood, and to two connections with another `key` meanwhile."""
    until = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as group:
        flood = [group.create_task(send(url, "flood", until)) for _ in range(FLOOD)]
        await asyncio.sleep(0.5)
        others = [group.create_task(send(url, key, until, pause=0.05)) for _ in range(2)]
    return answers(flood), answers(others)


def answers(tasks: Sequence[asyncio.Task[Answers]]) -> Answers:
    return [answer for task in tasks for answer in task.result()]


def median_seconds(answers: Answers) -> float:
    return statistics.median(seconds for status, seconds in answers if status == 200)


@pytest.mark.parametrize("switch", ["--fast-path", pytest.param("--no-fast-path", marks=pytest.mark.slow)])
def test_a_key_that_floods_the_service_takes_nothing_from_another(
    one_model: Path, tmp_path: Path, switch: str
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        "".join(f'[[keys]]\nname = "{name}"\nhash = "{hash_of(name)}"\n' for name in ("flood", "other"))
    )
    flags = ("--api-servers", "1", "--request-timeout", str(TIMEOUT_S), "--api-keys", str(keys), switch)
    with running_service(one_model, *flags, setup=SLOW_MODEL) as service:
        flood, other = asyncio.run(flooded(service.url, "other"))
        rejected = sum(status == 503 for status, _ in flood)
        assert rejected > FLOOD / 4, "the backlog was not full"
        assert len(other) > 5
        assert {status for status, _ in other} == {200}
        assert median_seconds(other) < 0.6 * median_seconds(flood)
