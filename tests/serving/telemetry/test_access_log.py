"""The access log fills no disk, stops no service and delays no request."""

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from serving.codecs.base import Timing
from serving.codecs.predict import PredictCodec
from serving.engine.telemetry import access_log
from serving.engine.telemetry.access_log import AccessLog
from serving.engine.telemetry.correlation import NO_CORRELATION
from serving.engine.telemetry.record import Record, Result
from tests.support.service import eventually

Open = Callable[..., AccessLog]


@pytest.fixture
def open_log() -> Iterator[Open]:
    """Open a log on a descriptor."""
    logs = []

    def open_log(descriptor: int, **settings: Any) -> AccessLog:
        logs.append(AccessLog(descriptor, **({"sample": 1.0, "rate": 10} | settings)))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


def add(log: AccessLog, count: int, status: int = 200) -> None:
    for _ in range(count):
        log.add(b"id", status, 0.001, path="/models")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_lines_above_the_rate_are_counted_and_not_written(tmp_path: Path, open_log: Open) -> None:
    file = tmp_path / "log"
    with file.open("wb") as target:
        log = open_log(target.fileno(), rate=10)
        add(log, 25)
        log.publish()
        time.sleep(0.3)
        log.publish()
        log.close()
    found = lines(file)
    assert [line.get("path") for line in found[:10]] == ["/models"] * 10
    assert found[10]["dropped"] == 15
    assert len(found) == 11


def test_a_share_of_the_successful_requests_is_logged_and_every_error(tmp_path: Path, open_log: Open) -> None:
    file = tmp_path / "log"
    with file.open("wb") as target:
        log = open_log(target.fileno(), sample=0.1, rate=10_000)
        add(log, 2000)
        add(log, 50, status=503)
        log.close()
    statuses = [line["status"] for line in lines(file)]
    assert statuses.count(503) == 50
    assert 100 < statuses.count(200) < 300


def test_a_reader_that_does_not_read_delays_nothing_and_few_lines_wait_for_it(open_log: Open) -> None:
    reader, writer = os.pipe()
    log = open_log(writer, rate=1000)
    began = time.monotonic()
    for _ in range(20):  # more than the pipe holds
        add(log, 1000)
        log.publish()
        time.sleep(0.01)
    assert len(log._lines) <= 1000
    log.close()
    assert time.monotonic() - began < 5
    os.set_blocking(reader, False)
    content = os.read(reader, 1 << 20)
    assert content.endswith(b"\n")
    assert all(json.loads(line)["path"] == "/models" for line in content.splitlines())
    os.close(reader)  # the thread that waits ends with an error
    eventually(lambda: not log._writer.is_alive())
    os.close(writer)


def test_a_reader_that_has_gone_ends_nothing(open_log: Open) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = open_log(writer, rate=1000)
    for _ in range(3):
        add(log, 5)
        log.publish()
        eventually(lambda: log._writer.idle)
    log.close()
    assert log._writer.dropped > 10
    os.close(writer)


class Endpoint(NamedTuple):
    """A version that has served a request."""

    name: str = "student"
    version: str = "1"
    slot: str = "0"


class Ended:
    """A request that has ended, with values that JSON must escape wherever they may have any."""

    correlation = NO_CORRELATION
    trace_id = "f" * 32

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def record(self, status: int, ended: float) -> Record:
        whole = Record(
            b"Az09._:=+/@~-",
            self.trace_id,
            PredictCodec(),
            Endpoint(),
            'one"\\\n\u2028é',
            status,
            None,
            None,
            ended - 0.25,
            0.0,
            0.0,
            ended,
        )
        return whole._replace(**self.fields)


def test_every_line_is_valid_json(tmp_path: Path, open_log: Open) -> None:
    result = Result(3, 1.0, 2.0, Timing(0.001, 1e-9, 12345.678, 0.0), 2.0)
    cases = (
        {},
        {"result": result},
        {"endpoint": None, "code": "unknown_model"},
        {"client": None, "trace_id": ""},
    )
    file = tmp_path / "log"
    with file.open("wb") as target:
        log = open_log(target.fileno())
        now = time.time()
        for fields in cases:
            log.observe(Ended(**fields), 200, time.monotonic())
        log.add(b"id", 404, 0.5, path='/"\\\n\x00é')
        log.close()
    first, predicted, unknown, anonymous, other = sorted(
        lines(file), key=lambda line: "path" in line
    )  # predictions are written after it
    assert first["client"] == predicted["client"] == 'one"\\\n\u2028é'
    assert (first["id"], first["trace_id"]) == ("Az09._:=+/@~-", "f" * 32)
    assert (first["images"], first["total_ms"]) == (None, 250)
    assert (predicted["images"], predicted["decode_ms"], predicted["inference_ms"]) == (3, 0.001, 12345.678)
    assert (unknown["model"], unknown["error"]) == (None, "unknown_model")
    assert not {"client", "trace_id"} & set(anonymous)
    assert other["path"] == '/"\\\n\x00é'
    for line in lines(file):
        assert abs(datetime.fromisoformat(line["time"]).timestamp() - now) < 60


def test_a_disk_that_is_nearly_full_is_not_filled(
    tmp_path: Path, open_log: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log"
    with file.open("wb") as target:
        log = open_log(target.fileno(), rate=1000)
        disk = os.statvfs(tmp_path)
        monkeypatch.setattr(access_log, "MIN_FREE", disk.f_bavail / disk.f_blocks + 0.01)
        add(log, 5)
        log.publish()
        eventually(lambda: log._writer.dropped == 5)
        assert not file.read_bytes()
        monkeypatch.setattr(access_log, "MIN_FREE", 0.0)
        add(log, 1)
        log.publish()
        log.close()
    assert [line.get("dropped") for line in lines(file)] == [None, 5]
