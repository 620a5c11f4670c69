"""HTTP/1.1 for the synchronous client: sockets that are kept, and the standard library's reader of responses.

Head and body leave in one piece, which `http.client`'s own writer does not do: the service answers a request
that comes whole without a second look at its socket.
"""

import select
import socket
import ssl
import time
from collections import deque
from http.client import HTTPException, HTTPResponse
from urllib.parse import SplitResult, urlsplit

from serving.client.errors import ClientError
from serving.client.flow import Lost, Outcome, Slow
from serving.client.wire import Answer, Send

KEPT_SECONDS = 4.0
"""How long an idle connection is kept; the service closes its own after 5."""


class Connections:
    """Connections to one service, for any number of threads."""

    def __init__(self, url: str, api_key: str | None, timeout: float, connect_timeout: float) -> None:
        parts = check_url(url)
        self._address = (str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80))
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._common = {"Host": parts.netloc.rpartition("@")[2], **key_header(api_key)}
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._idle: deque[tuple[socket.socket, float]] = deque()  # the last used at the right

    def send(self, request: Send) -> Outcome:
        """Send a request and read the whole answer."""
        connection = None
        try:
            connection = self._kept() or self._connect()
            connection.sendall(self._bytes(request))
            response = HTTPResponse(connection, method=request.method)
            response.begin()
            content = response.read()
        except TimeoutError:
            limit = self._connect_timeout if connection is None else self._timeout
            outcome: Outcome = Slow(f"nothing came for {limit:g} s")
        except (OSError, HTTPException) as error:
            outcome = Lost(f"{type(error).__name__}: {error}")
        else:
            headers = {name.lower(): value for name, value in response.getheaders()}
            if response.will_close:
                connection.close()
            else:
                self._idle.append((connection, time.monotonic()))
            return Answer(response.status, headers, content)
        if connection:
            connection.close()
        return outcome

    def close(self) -> None:
        """Close the idle ones."""
        while self._idle:
            self._idle.pop()[0].close()

    def _kept(self) -> socket.socket | None:
        """A connection that is still good; the others are closed."""
        while self._idle:
            try:
                connection, since = self._idle.pop()
            except IndexError:  # another thread took it
                return None
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if time.monotonic() - since < KEPT_SECONDS and not poll.poll(0):  # a word now can only be goodbye
                return connection
            connection.close()
        return None

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, self._connect_timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            connection = self._tls.wrap_socket(connection, server_hostname=self._address[0])
        connection.settimeout(self._timeout)
        return connection

    def _bytes(self, request: Send) -> bytes:
        headers = {**self._common, **request.headers, "Content-Length": str(len(request.content))}
        lines = [f"{request.method} {self._prefix}{request.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join((*lines, "", "")).encode("latin-1") + request.content


def check_url(url: str) -> SplitResult:
    """Take the URL of a service apart. Raises `ClientError`."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError as error:
        raise ClientError(f"{url!r} is no URL of a service: {error}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ClientError(f"{url!r} is no URL of a service; expected one such as http://127.0.0.1:8000")
    return parts


def key_header(api_key: str | None) -> dict[str, str]:
    """The header that carries the key. Raises `ClientError` for one that no header can carry."""
    if not api_key:
        return {}
    if not (api_key.isascii() and api_key.isprintable()):
        raise ClientError("the API key has characters that a header cannot carry; expected printable ASCII")
    return {"X-API-Key": api_key}
