"""A client's bare HTTP/1.1 connections, for tests that must know what is one connection and one write."""

import asyncio
import json
import socket
from typing import Any, Self
from urllib.parse import urlsplit


class Connection:
    """One connection, kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, host: str, port: int) -> Self:
        return cls(*await asyncio.open_connection(host, port))

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, data: bytes) -> tuple[int, Any]:
        self.writer.write(data)
        status, _, body = await self.answer()
        return status, json.loads(body)


def raw_request(
    body: bytes, headers: str = "", *, length: int | None = None, path: str = "/predict"
) -> bytes:
    length = len(body) if length is None else length
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    )
    return (head + headers + "\r\n").encode() + body


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)
