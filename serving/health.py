"""The health check of a service on the same machine: a file with its address, and a request to it.

A container's health check runs beside the service. It knows neither the options nor the file that the port came from,
so a service that is ready leaves its address in the folder where its processes share their metrics.
"""

import logging
import os
import tempfile
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from distillery import DistilleryError

_logger = logging.getLogger("distillery")

TEMPORARY = "distillery-metrics-"
"""Beginning of the name of the folder that a service makes in the temporary folder."""
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_FILE = "url"
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not to listen on


class HealthError(DistilleryError):
    """The service is not ready."""


def write_url(url: str) -> None:
    """Leave the address of this service for `served_url`."""
    try:
        Path(os.environ[_FOLDER], _FILE).write_text(url, encoding="utf-8")
    except (KeyError, OSError) as error:
        _logger.warning("distillery-serve health will not find this service: %s", error)


def served_url() -> str:
    """Return the address of the service that this user started last on this machine. Raises `HealthError`."""
    files: list[Path] = []
    with suppress(FileNotFoundError):  # there is no temporary folder
        files += Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*/{_FILE}")
    if folder := os.environ.get(_FOLDER):
        files.append(Path(folder, _FILE))
    found = {}
    for file in files:
        with suppress(OSError):  # of another user, or of a service that ends at this moment
            found[file.stat().st_mtime_ns] = file.read_text(encoding="utf-8")
    if not found:
        raise HealthError("no service of this user is ready on this machine; name one with --url")
    return found[max(found)]


def check_ready(url: str, *, timeout: float) -> None:
    """Return if the service at `url` is ready. Raises `HealthError`."""
    place = urlsplit(url)
    host = _LOOPBACK.get(place.hostname or "", place.hostname)
    if place.scheme != "http" or not host:
        raise HealthError(f"--url {url} is not the address of a service, such as http://127.0.0.1:8000")
    connection = HTTPConnection(host, place.port, timeout=timeout)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        raise HealthError(f"{url} does not respond: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise HealthError(f"{url} is not ready: {response.status} {text}")
