"""The health check of a service on the same machine: a file with its address, and a request to it.

A container's health check runs beside the service. It knows neither the options nor the file that the port came from,
so a service that is ready leaves its address in a folder of its own below the temporary folder.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from serving.calls import CallError, call

_logger = logging.getLogger("distillery")

_TEMPORARY = "distillery-address-"
_FILE = "url"


class HealthError(CallError):
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
        with (
            suppress(OSError),
            file.open(encoding="utf-8") as opened,
        ):  # of a service that ends at this moment
            status = os.fstat(opened.fileno())
            if status.st_uid == os.geteuid():  # a command sends its API key there
                found[status.st_mtime_ns] = opened.read()
    if not found:
        raise HealthError("no service of this user is ready on this machine; name one with --url")
    return found[max(found)]


def check_ready(url: str, *, timeout: float, api_key: str | None = None, verify: bool = True) -> None:
    """Return if the service at `url` is ready; the key is for one that requires it. Raises `CallError`.

    Without `verify`, any certificate will do.
    """
    status, content = call(url, "GET", "/health/ready", timeout=timeout, api_key=api_key, verify=verify)
    if status != 200:
        raise HealthError(f"{url} is not ready: {status} {content.decode(errors='replace').strip()}")
