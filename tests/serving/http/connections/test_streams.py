"""TCP has no messages: however the bytes of requests are cut, each gets its own response, in order."""

import gzip
import json
import re
import socket
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.requests.connections import connect, post
from tests.support.service import Service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()
JSONS = [json.dumps({"image": digit.tolist()}).encode() for digit in DIGITS[:5]]
GET = b"GET /v2/models/student HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
REQUESTS = [
    *(post("/predict", body) for body in JSONS[:3]),
    post("/predict/teacher", JSONS[1]),
    post("/predict", gzip.compress(JSONS[3]), "Content-Encoding: gzip"),
    post("/v2/models/student/infer", DIGITS[5:7].tobytes(), "Inference-Header-Content-Length: 0"),
    CHUNKED + b"%x\r\n%b\r\n" % (len(JSONS[4]), JSONS[4]) + b"5\r\n    \n\r\n0\r\n\r\n",
    post("/predict", b'{"image": [1, 2, 3]}'),
    post("/predict/nobody", JSONS[0]),
    GET,
    GET.replace(b"GET", b"PUT"),
]
PLACES = st.lists(st.floats(0, 1, exclude_max=True), max_size=5)
_TIMING = re.compile(rb',"timing":\{[^}]*\}')


def responses(
    connection: socket.socket, data: bytes, cuts: list[float], count: int
) -> list[tuple[int, bytes]]:
    """Send data in pieces; return status and body of `count` responses."""
    places = sorted({0, *(int(cut * len(data)) for cut in cuts), len(data)})
    for start, end in pairwise(places):
        connection.sendall(data[start:end])
        if end < len(data):
            time.sleep(0.001)
    found = []
    with connection.makefile("rb") as stream:
        for _ in range(count):
            status = int(stream.readline().split()[1])
            lines = iter(lambda: stream.readline().strip().lower(), b"")
            headers = dict(line.split(b": ", 1) for line in lines)
            found.append((status, _TIMING.sub(b"", stream.read(int(headers[b"content-length"])))))
    return found


@pytest.fixture(scope="module")
def expected(service: Service) -> list[Any]:
    """The responses to each request alone."""
    found = []
    for request in REQUESTS:
        with connect(service.url) as connection:
            found += responses(connection, request, [], 1)
    assert [status for status, _ in found] == [200] * 7 + [422, 404, 200, 405]
    assert len(set(found)) == len(found)
    return found


@pytest.fixture(scope="module")
def kept(service: Service) -> Any:
    """A connection that all examples use, so that some of their requests take the fast path."""
    with connect(service.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(chosen=st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=8), cuts=PLACES)
def test_requests_cut_anywhere_and_pipelined_get_their_responses_in_order(
    kept: socket.socket, expected: list[Any], chosen: list[int], cuts: list[float]
) -> None:
    data = b"".join(REQUESTS[index] for index in chosen)
    assert responses(kept, data, cuts, len(chosen)) == [expected[index] for index in chosen]
