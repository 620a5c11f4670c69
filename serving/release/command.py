"""`distillery-serve release`: the state of a release, and the calls of an administrator, over HTTP."""

import json
from collections.abc import Mapping
from typing import Any

from serving.calls import CallError, call

_PATH = "/release"
"""That of `serving.http.release`, which is not imported: FastAPI would make this command four times as slow."""
_SECONDS = 150.0
"""For a change; longer than the trial and the preparation of a candidate may take."""


def call_release(
    url: str,
    method: str,
    action: str = "",
    document: Mapping[str, Any] | None = None,
    *,
    api_key: str | None,
    verify: bool = True,
) -> dict[str, Any]:
    """Call a route of the release; return its response. Raises `CallError`."""
    body = json.dumps(document) if document is not None else None
    path = f"{_PATH}{action}"
    status, content = call(url, method, path, body, timeout=_SECONDS, api_key=api_key, verify=verify)
    try:
        found = json.loads(content)
    except ValueError:
        found = {}
    if status != 200 or not isinstance(found, dict):
        message = found.get("error", {}).get("message") if isinstance(found, dict) else None
        raise CallError(f"{url}: {status} {message or content[:200].decode(errors='replace')}")
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
