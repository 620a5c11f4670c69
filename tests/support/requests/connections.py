"""HTTP/1.1 on bare connections, for tests that control connections and writes."""

import asyncio
import http.client
import json
import socket
import ssl
from typing import Any, Self
from urllib.parse import urlsplit


class Connection:
    """A connection that is kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, host: str, port: int, tls: ssl.SSLContext | None = None) -> Self:
        return cls(*await asyncio.open_connection(host, port, ssl=tls))

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, data: bytes) -> tuple[int, Any]:
        self.writer.write(data)
        status, _, body = await self.answer()
        return status, json.loads(body)


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a POST request; `length` is declared in place of the body's own."""
    declared = len(body) if length is None else length
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {declared}",
    )
    return "\r\n".join((*lines, *headers, "", "")).encode() + body


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and JSON body of the next response."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, headers, json.loads(answer.read())


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)
