"""The health check of a service on the same machine: a file with its address, and a request to it.

A container's health check runs beside the service. It knows neither the options nor the file that the port came from,
so a service that is ready leaves its address in a folder of its own below the temporary folder.
"""

import logging
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from distillery import DistilleryError
from serving.processes.sockets import is_loopback

_logger = logging.getLogger("distillery")

_TEMPORARY = "distillery-address-"
_FILE = "url"
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not to listen on


class HealthError(DistilleryError):
    """The service is not ready."""


@contextmanager
def announcement() -> Iterator[Callable[[str], None]]:
    """Yield a function that leaves the address of this service for `served_url`, until the end of the block.

    Where no folder can be written, the service runs without.
    """
    with ExitStack() as stack:

        def announce(url: str) -> None:
            try:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=_TEMPORARY))
                Path(folder, _FILE).write_text(url, encoding="utf-8")
            except OSError as error:
                _logger.warning("distillery-serve health will not find this service: %s", error)

        yield announce


def served_url() -> str:
    """Return the address of the service that this user started last on this machine. Raises `HealthError`."""
    files: list[Path] = []
    with suppress(FileNotFoundError):  # there is no temporary folder
        files += Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*/{_FILE}")
    found = {}
    for file in files:
        with suppress(OSError):  # of another user, or of a service that ends at this moment
            found[file.stat().st_mtime_ns] = file.read_text(encoding="utf-8")
    if not found:
        raise HealthError("no service of this user is ready on this machine; name one with --url")
    return found[max(found)]


def check_ready(url: str, *, timeout: float, api_key: str | None = None, verify: bool = True) -> None:
    """Return if the service at `url` is ready; the key is for one that requires it. Raises `HealthError`.

    Without `verify`, and at a loopback address, any certificate will do: those of services name public hosts.
    """
    place = urlsplit(url)
    host = _LOOPBACK.get(place.hostname or "", place.hostname)
    if place.scheme not in {"http", "https"} or not host:
        raise HealthError(f"--url {url} is not the address of a service, such as http://127.0.0.1:8000")
    connection = HTTPConnection(host, place.port, timeout=timeout)
    if place.scheme == "https":
        context = _tls(verify=verify and not is_loopback(host))
        connection = HTTPSConnection(host, place.port, timeout=timeout, context=context)
    try:
        connection.request("GET", "/health/ready", headers={"X-API-Key": api_key} if api_key else {})
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        raise HealthError(f"{url} does not respond: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise HealthError(f"{url} is not ready: {response.status} {text}")


def _tls(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
