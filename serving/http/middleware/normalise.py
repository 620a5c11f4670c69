"""The form of a request that the routes expect, whatever proxy or client it comes from.

- The path may have the prefix under which a proxy publishes the service (`--root-path`); most proxies remove it.
- A trailing slash is ignored, because a redirect would lose the body of a POST in many clients.
- HEAD is routed like GET; uvicorn leaves out the body.
- From a trusted proxy (`--trusted-proxies`), `X-Forwarded-For`, `-Proto`, `-Host` and `-Prefix` replace the client's
  address, the scheme, the host and the prefix. From anyone else they are ignored.
"""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

PUBLIC = "distillery.public"
"""Key of a scope: whether its scheme and host are those that the client of a trusted proxy used."""
PREFIX = re.compile(r"(/[\w.~%!$&'()*+,;=:@-]+)*")
"""A path prefix."""


def route_path(path: str, root_path: str) -> str:
    """Return `path` without the prefix `root_path` and without trailing slashes."""
    if root_path and (path == root_path or path.startswith(f"{root_path}/")):
        path = path[len(root_path) :]
    return path.rstrip("/") or "/"


class NormalisedRequests:
    """Passes requests on to `app` in the form described above."""

    def __init__(self, app: ASGIApp, root_path: str, trusted_proxies: Sequence[str]) -> None:
        self._app = app
        self._root_path = root_path
        self._proxied = ProxyHeadersMiddleware(app, list(trusted_proxies))  # type: ignore[arg-type] # its own types

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        app, root_path = self._app, self._root_path
        changes: Scope = {}
        host, port = scope.get("client") or ("", 0)
        host = host.removeprefix("::ffff:")  # IPv4 on a socket for IPv6
        if host in self._proxied.trusted_hosts:
            changes["client"] = host, port
            app = self._proxied  # type: ignore[assignment]
            headers = Headers(scope=scope)
            root_path = _prefix(headers) or root_path
            if public := headers.get("x-forwarded-host", "").partition(",")[0].strip():
                others = [header for header in scope["headers"] if header[0] != b"host"]
                changes["headers"] = [(b"host", public.encode("latin-1")), *others]
            changes[PUBLIC] = bool(public) or "x-forwarded-proto" in headers
        changes["root_path"] = root_path
        changes["path"] = root_path + route_path(route_path(scope["path"], root_path), self._root_path)
        if scope["method"] == "HEAD":
            changes["method"] = "GET"
        await app({**scope, **changes}, receive, send)


def _prefix(headers: Headers) -> str:
    prefix = headers.get("x-forwarded-prefix", "").rstrip("/")
    return prefix if PREFIX.fullmatch(prefix) else ""
