"""An HTTP request to a service, sent by a command: the health check, and the calls of an administrator.

With the standard library alone: a container runs its health check every few seconds.
"""

import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from distillery import DistilleryError
from serving.processes.sockets import is_loopback

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not to listen on


class CallError(DistilleryError):
    """The service does not respond, or has rejected the request; the message is the service's."""


def call(
    url: str,
    method: str,
    path: str,
    body: str | None = None,
    *,
    timeout: float,
    api_key: str | None = None,
    verify: bool = True,
) -> tuple[int, bytes]:
    """Send a request to the service at `url`; return status and body of the response. Raises `CallError`.

    Without `verify`, and at a loopback address, any certificate will do: those of services name public hosts. An
    address that services listen on, 0.0.0.0 or ::, stands for this machine.
    """
    try:
        place = urlsplit(url)
        host, port = _LOOPBACK.get(place.hostname or "", place.hostname), place.port
    except ValueError as error:
        raise CallError(f"--url {url} is not an address: {error}") from None
    if place.scheme not in {"http", "https"} or not host:
        raise CallError(f"--url {url} is not the address of a service, such as http://127.0.0.1:8000")
    connection = HTTPConnection(host, port, timeout=timeout)
    if place.scheme == "https":
        context = _tls(verify=verify and not is_loopback(host))
        connection = HTTPSConnection(host, port, timeout=timeout, context=context)
    try:
        headers = {"X-API-Key": api_key} if api_key else {}
        connection.request(method, f"{place.path.rstrip('/')}{path}", body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, HTTPException) as error:
        raise CallError(f"{url} does not respond: {error}") from None
    finally:
        connection.close()


def _tls(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
