"""Start a candidate on a running service and wait for the rule's decision."""

import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.errors import BenchmarkError
from distillery.files import write_atomically
from serving.engine.admission.api_keys import hash_of, new_key
from serving.model.release import Release, write_release

KEY = new_key()
"""Of all requests of a benchmark, for predictions and changes; of this process only."""
PATIENCE_S = 150
DECISION_S = 180
"""Within which the rule must have decided."""
CANDIDATE = {"share": 0.5, "rule": {"criteria": ["failed", "wrong"], "ignored": ["unaccepted"]}}
"""Half of the requests, and promotion once the candidate is as good in these criteria. With labels, errors are known:
a lower share of accepted predictions does not end it."""


def admin_keys(folder: Path) -> Path:
    """Write a file of API keys with `KEY`; return its path."""
    path = folder / "keys.toml"
    entry = f'[[keys]]\nname = "benchmark"\nhash = "{hash_of(KEY)}"\nscopes = ["infer", "admin"]\n'
    write_atomically(path, entry.encode())
    return path


def pin(models_dir: Path, stable: str) -> None:
    """Let a repository's service keep `NAME/VERSION` as the stable model when newer versions appear."""
    write_release(models_dir, Release(stable=stable))


def promote_by_rule(url: str, stable: str, candidate: str) -> dict[str, Any]:
    """Load and start a candidate, and wait until the rule has promoted it; return how long and on what evidence.

    Raises `BenchmarkError` if the service rejects it, the rule ends it, or does not decide within `DECISION_S`.
    """
    with httpx.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=PATIENCE_S) as client:

        def call(method: str, path: str, document: object = None) -> httpx.Response:
            response = client.request(method, path, json=document)
            if response.status_code != 200:
                raise BenchmarkError(f"{method} {path}: status {response.status_code}: {response.text[:500]}")
            return response

        call("POST", f"/v2/repository/models/{candidate.partition('/')[0]}/load")
        call("PUT", "/release", {"candidate": candidate, **CANDIDATE})
        start = time.monotonic()
        criteria: dict[str, Any] = {}
        while time.monotonic() < start + DECISION_S:
            state = call("GET", "/release").json()
            if state["candidate"] is None:
                break
            criteria = state["criteria"] or criteria
            time.sleep(0.2)
        else:
            raise BenchmarkError(
                f"the rule has not decided on {candidate} within {DECISION_S} s; evidence: {criteria}"
            )
    decision = state["decisions"][-1]
    if state["stable"] != candidate:
        raise BenchmarkError(
            f"the rule ended {candidate}: {decision['reason'] or decision['decision']}; {stable} is stable"
        )
    return {
        "decision": decision["decision"],
        "by": decision["by"],
        "seconds": round(time.monotonic() - start, 1),
        "criteria": {name: of for name, of in criteria.items() if of["candidate"][1]},
    }
