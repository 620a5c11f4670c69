"""The bodies of FastAPI's routes, which are small: size and duration are limited while they arrive."""

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request

from serving.codecs.errors import BodyTooLarge, MalformedBody, SlowBody

MAX_BYTES = 16 * 1024


@dataclass(frozen=True)
class BodyReader:
    """Reads bodies that arrive within `timeout` seconds."""

    timeout: float

    async def read(self, request: Request, limit: int = MAX_BYTES, fix: str = "send less") -> bytes:
        """Return the body, of at most `limit` bytes. Raises `BodyTooLarge`, which names the `fix`, `SlowBody`."""
        content = bytearray()
        try:
            async with asyncio.timeout(self.timeout):
                async for piece in request.stream():
                    content += piece
                    if len(content) > limit:
                        raise BodyTooLarge(f"the body has more than {limit:,} bytes; {fix}")
        except TimeoutError:
            raise SlowBody(f"the body did not arrive within {self.timeout:g} s; send it faster") from None
        return bytes(content)

    async def read_json(self, request: Request) -> Any:
        """Return the JSON document in the body. Raises as `read` does, and `MalformedBody`."""
        try:
            return orjson.loads(await self.read(request))
        except orjson.JSONDecodeError as error:
            raise MalformedBody(f"the body is not JSON: {error}") from None
