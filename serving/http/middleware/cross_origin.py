"""Cross-origin requests (CORS): pages of the origins named by `--cors-origins` may read responses, others may not."""

from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message

from serving.codecs.errors import Header

_EXPOSED = (
    "Server-Timing",
    "X-Request-ID",
    "Inference-Header-Content-Length",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
)


class CrossOrigin(CORSMiddleware):
    """starlette's middleware, which also computes its headers for responses that do not pass through it."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=_EXPOSED,
        )

    def response_headers(self, headers: Mapping[bytes, bytes]) -> Sequence[Header]:
        """Return the headers added to a response that has no others of CORS; `headers` are those of its request."""
        message: Message = {"type": "http.response.start", "status": 200, "headers": []}
        adding = self.send(message, _ignore, Headers(raw=list(headers.items())))
        try:
            adding.send(None)
        except StopIteration:
            added: list[Header] = message["headers"]
            return added
        raise AssertionError("starlette awaits something other than the send function")


async def _ignore(message: Message) -> None:
    pass
