"""`distillery-serve release`: the state of a release, and the calls of an administrator, over HTTP."""

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from distillery import DistilleryError
from serving.http.release import PATH


class ReleaseCallError(DistilleryError):
    """The service did not do what it was asked to. The message is the service's."""


def call(
    url: str, method: str, action: str = "", document: Mapping[str, Any] | None = None, *, api_key: str | None
) -> dict[str, Any]:
    """Call a route of the release; return its response. Raises `ReleaseCallError`."""
    place = urlsplit(url)
    if place.scheme not in {"http", "https"} or not place.hostname:
        raise ReleaseCallError(f"--url {url} is not the address of a service, such as http://127.0.0.1:8000")
    kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
    connection = kind(place.hostname, place.port, timeout=150)
    headers = {"X-API-Key": api_key} if api_key else {}
    body = json.dumps(document) if document is not None else None
    try:
        connection.request(method, f"{place.path.rstrip('/')}{PATH}{action}", body, headers)
        response = connection.getresponse()
        content = response.read()
    except (OSError, HTTPException) as error:
        raise ReleaseCallError(f"{url} does not respond: {error}") from None
    finally:
        connection.close()
    try:
        found = json.loads(content)
    except ValueError:
        found = {}
    if response.status != 200 or not isinstance(found, dict):
        message = found.get("error", {}).get("message") if isinstance(found, dict) else None
        raise ReleaseCallError(
            f"{url}: {response.status} {message or content[:200].decode(errors='replace')}"
        )
    return found


def show(state: Mapping[str, Any]) -> str:
    """Return the state of a release as text for people."""
    lines = [f"stable     {state['stable']}"]
    if candidate := state["candidate"]:
        lines.append(
            f"candidate  {candidate}: {state['share']:.1%} of the requests, {state['shadow']:.1%} mirrored, "
            f"{'decided by rule' if state['rule'] else 'decided by a person'}"
        )
    elif state["previous"]:
        lines.append(f"previous   {state['previous']}: `distillery-serve release rollback` returns to it")
    if state.get("criteria"):
        lines += [
            "",
            f"{'criterion':<12}{'stable':>18}{'candidate':>18}{'e worse':>12}{'e as good':>12}  verdict",
        ]
        for name, one in state["criteria"].items():
            counts = (f"{errors:,} of {total:,}" for errors, total in (one["stable"], one["candidate"]))
            columns = "".join(f"{text:>18}" for text in counts)
            evidence = "".join(f"{one[side]:>12.3g}" for side in ("worse", "as_good"))
            lines.append(f"{name:<12}{columns}{evidence}  {one['verdict'] or 'undecided'}")
    if not state.get("persisted", True):
        lines.append("release.json could not be written: this is valid until the service ends")
    return "\n".join(lines)
