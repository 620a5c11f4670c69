"""Three replicas on hosts of their own behind a real nginx and HAProxy, configured by deploy/: no request is lost.

Both are measured at once: most of the time is waiting.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster.balancers import ENGINES
from benchmarks.cluster.faults import EVENTS, measure_faults
from tests.support.root import needs_root
from tests.support.training.samples import sample_test

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    needs_root,
]

BODIES = [json.dumps({"image": image.tolist()}).encode() for image in sample_test().images[:4]]
CASES = [(engine, event) for engine in ("nginx", "haproxy") for event in EVENTS]


@pytest.fixture(scope="module")
def rows(one_model: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What each event has cost with each engine."""

    def measure(engine: str) -> dict[str, Any]:
        return measure_faults(
            ENGINES[engine],
            one_model,
            "/predict/student",
            BODIES,
            settle_s=0.5,
            disconnected_s=8,  # above the time-outs of 6 s
            shutdown_delay_s=2.5,  # above inter × fall
        )

    with ThreadPoolExecutor() as pool:
        measured = list(pool.map(measure, ("nginx", "haproxy")))
    return {(row["engine"], row["event"]): row for one in measured for row in one["rows"]}


@pytest.mark.parametrize(("engine", "event"), CASES)
def test_no_request_that_may_be_sent_twice_fails(
    rows: dict[tuple[str, str], dict[str, Any]], engine: str, event: str
) -> None:
    row = rows[engine, event]
    assert row["failed"] == 0, row
    assert row["sent"] > 20


@pytest.mark.parametrize(("engine", "event"), CASES)
def test_a_change_costs_at_most_one_request_per_connection_that_must_not_be_sent_twice(
    rows: dict[tuple[str, str], dict[str, Any]], engine: str, event: str
) -> None:
    """Those with a replica or host that is killed are lost with it."""
    row = rows[engine, event]["plain"]
    assert row["sent"] > 5
    if event not in {"replica killed", "host killed", "host disconnected"}:
        assert row["failed"] <= 2, row


@pytest.mark.parametrize("engine", ["nginx", "haproxy"])
def test_a_host_that_is_disconnected_loses_packets(
    rows: dict[tuple[str, str], dict[str, Any]], engine: str
) -> None:
    assert rows[engine, "host disconnected"]["longest_s"] > 0.9  # the connect time-out is 1 s
