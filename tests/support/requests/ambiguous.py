"""Requests to `/predict` whose end is ambiguous, and unusual ones whose end is clear."""

import json

from tests.support.fast_path_server import one

BODY = json.dumps(one(0)).encode()
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SECOND = b"GET /second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
OFFER = (b"Connection: Upgrade", b"Upgrade: h2c")


def post(*headers: bytes, body: bytes = BODY) -> bytes:
    return b"\r\n".join((b"POST /predict HTTP/1.1", b"Host: x", *headers, b"", b"")) + body


def chunked(chunks: bytes) -> bytes:
    return post(CHUNKED, body=chunks)


AMBIGUOUS = {
    "length and chunks": post(LENGTH, CHUNKED, body=CHUNKS),
    "chunks and length": post(CHUNKED, LENGTH, body=CHUNKS),
    "two equal lengths": post(LENGTH, LENGTH),
    "two lengths": post(LENGTH, b"Content-Length: 5"),
    "list of lengths": post(LENGTH + b", %d" % len(BODY)),
    "length with sign": post(b"Content-Length: +%d" % len(BODY)),
    "negative length": post(b"Content-Length: -1"),
    "hexadecimal length": post(b"Content-Length: 0x%x" % len(BODY)),
    "space before the colon": post(b"Content-Length : %d" % len(BODY)),
    "unknown coding": post(b"Transfer-Encoding: xchunked", body=CHUNKS),
    "chunked is not the last coding": post(b"Transfer-Encoding: chunked, identity", body=CHUNKS),
    "identity and length": post(b"Transfer-Encoding: identity", LENGTH),
    "control character before the coding": post(b"Transfer-Encoding: \x0bchunked", LENGTH),
    "folded header": post(b"X-A: a", b" b", LENGTH),
    "folded coding": post(b"Transfer-Encoding:", b" chunked", body=CHUNKS),
    "bare LF": post(LENGTH).replace(b"\r\n", b"\n"),
    "one bare LF": post(LENGTH).replace(b"Host: x\r\n", b"Host: x\n"),
    "bare CR": post(LENGTH).replace(b"Host: x\r\n", b"Host: x\r"),
    "NUL": post(b"X-A: a\0b", LENGTH),
    "header without colon": post(b"X-A", LENGTH),
    "header without name": post(b": a", LENGTH),
    "space before the first header": post(LENGTH).replace(b"Host", b" Host"),
    "chunk size with LF": chunked(CHUNKS.replace(b"\r\n", b"\n", 1)),
    "chunk size with space": chunked(CHUNKS.replace(b"\r\n", b" \r\n", 1)),
    "chunk size with prefix": chunked(b"0x" + CHUNKS),
    "chunk size of 65 bits": chunked(b"1" + b"0" * 16 + b"\r\n" + BODY),
    "length after the chunks": chunked(CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n"),
    "length and chunks with an offer": post(*OFFER, LENGTH, CHUNKED, body=CHUNKS),
    "folded offer": post(b"Connection: Upgrade", b"Upgrade:", b" h2c", LENGTH),
}
CLEAR = {
    "length": post(LENGTH),
    "chunks": chunked(CHUNKS),
    "leading zeros": post(b"Content-Length: 000%d" % len(BODY)),
    "chunk extension": chunked(CHUNKS.replace(b"\r\n", b";a=b\r\n", 1)),
    "trailers": chunked(CHUNKS[:-2] + b"Content-Encoding: br\r\nX-Request-Timeout-Seconds: no\r\n\r\n"),
    "tab before the coding": post(b"Transfer-Encoding:\tchunked", body=CHUNKS),
    "whitespace after the values": post(LENGTH + b" \t", b"Content-Encoding: identity \t"),
    "length with an offer": post(*OFFER, LENGTH),
    "chunks with an offer": post(*OFFER, CHUNKED, body=CHUNKS),
}
