"""Headers that keep browsers from misusing responses, on everything but predictions.

Predictions do without them: they are JSON in response to a POST, which no browser takes for a page, and every header
costs each of them time.
"""

import base64
import hashlib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.codecs.errors import Header

CSP = b"content-security-policy"
_HEADERS: tuple[Header, ...] = (
    (CSP, b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_HSTS = (b"strict-transport-security", b"max-age=86400")
"""A day only: it holds for all ports of a host, also those of other services, which may have no TLS."""

_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def page_policy(page: bytes) -> str:
    """Return the Content-Security-Policy of Swagger UI's page: files of this service, and the page's own script.

    The styles are set by Swagger UI's script, and its icons are `data:` URLs.
    """
    scripts = [base64.b64encode(hashlib.sha256(text).digest()) for text in _INLINE_SCRIPT.findall(page)]
    allowed = " ".join(f"'sha256-{digest.decode()}'" for digest in scripts)
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class SecurityHeaders:
    """Adds the headers to the responses of `app`, unless they have their own; with `tls`, HSTS as well."""

    def __init__(self, app: ASGIApp, *, tls: bool) -> None:
        self._app = app
        self._headers = (*_HEADERS, _HSTS) if tls else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in self._headers if header[0] not in own),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)
