"""Requests of a log as a load: their times, their number, their bodies."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load import recorded as module
from benchmarks.load.digits import load_digits
from benchmarks.load.recorded import recorded_requests
from distillery.request_log.read import read_log
from tests.support.logged_images import write_log

URL = "http://127.0.0.1:1"
DIGITS = load_digits()


@pytest.mark.parametrize("speed", [1, 2, 0.5])
def test_requests_are_sent_at_their_times_scaled_by_the_speed(speed: float, tmp_path: Path) -> None:
    write_log(tmp_path, DIGITS[:20], interval=0.25)
    due, numbers = recorded_requests(read_log(tmp_path), URL, speed=speed).schedule
    assert due == pytest.approx([0.25 * number / speed for number in range(20)])
    assert numbers == list(range(20))


def test_a_sampled_request_is_sent_as_often_as_it_was_made(tmp_path: Path) -> None:
    write_log(tmp_path, DIGITS, interval=1, rate=0.4)
    log = read_log(tmp_path)
    scaled = recorded_requests(log, URL)
    count = len(scaled.schedule.due)
    assert 200 < count < 300  # 250 on average; each of the 100 is sent two or three times
    assert scaled.schedule.due == sorted(scaled.schedule.due)
    # Every request at its own time, the copies until the next one.
    for number, (due, source) in enumerate(zip(*scaled.schedule, strict=True)):
        assert source <= due + 1e-6 < source + 1 + 1e-3, number
    assert set(range(100)) <= {round(due, 6) for due in scaled.schedule.due}
    assert len(recorded_requests(log, URL, scale=False).schedule.due) == 100


def test_the_busiest_part_is_sent(tmp_path: Path) -> None:
    write_log(tmp_path, DIGITS[:10], interval=1)
    write_log(tmp_path, DIGITS[10:40], interval=0.1, first_id=1000)  # begins 90 s after the others have ended
    found = recorded_requests(read_log(tmp_path), URL, seconds=2)
    assert len(found.schedule.due) == len(found.requests) == 21
    assert found.schedule.due[0] == 0
    assert found.schedule.due[-1] == pytest.approx(2)


def test_images_of_a_request_are_sent_together_in_its_protocol(tmp_path: Path) -> None:
    write_log(tmp_path, DIGITS[:3], per_request=3, model="student")
    write_log(tmp_path, DIGITS[3:4], protocol="v2", first_id=10, model="teacher")
    found = recorded_requests(read_log(tmp_path), URL, key="secret")
    assert found.images == [3, 1]
    assert found.sent_images == 4
    head, _, body = found.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /predict/student HTTP/1.1")
    assert b"X-API-Key: secret" in head
    assert np.array_equal(json.loads(body)["images"], DIGITS[:3])
    head, _, body = found.requests[1].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/teacher/infer HTTP/1.1")
    assert body.endswith(DIGITS[3].tobytes())
    renamed = recorded_requests(read_log(tmp_path), URL, model="fast")
    assert all(b"/fast" in one.partition(b"\r\n")[0] for one in renamed.requests)


def test_too_many_requests_are_rejected_before_they_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_REQUESTS", 500)
    write_log(tmp_path, DIGITS, rate=0.01)
    with pytest.raises(
        BenchmarkError, match=r"10,000 requests to send, 500 at most: use --seconds or --no-scale"
    ):
        recorded_requests(read_log(tmp_path), URL)
