"""The bodies of FastAPI's routes, which are small: their size is checked while they arrive."""

from typing import Any

import orjson
from fastapi import Request

from serving.codecs.errors import BodyTooLarge, MalformedBody

MAX_BYTES = 16 * 1024


async def read_body(request: Request, limit: int = MAX_BYTES) -> bytes:
    """Return the body of a request. Raises `BodyTooLarge`."""
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > limit:
            raise BodyTooLarge(f"the body has at least {len(content):,} bytes; the limit is {limit:,}")
    return bytes(content)


async def read_json(request: Request, limit: int = MAX_BYTES) -> Any:
    """Return the JSON document in the body of a request. Raises `BodyTooLarge`, `MalformedBody`."""
    try:
        return orjson.loads(await read_body(request, limit))
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from None
