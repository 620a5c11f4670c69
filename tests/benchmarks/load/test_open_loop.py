"""The open loop: every scheduled request is accounted for, and late ones count as late."""

import pytest

from benchmarks.load.open_loop import Schedule, poisson, run_schedule
from benchmarks.load.workloads import service_workload
from tests.support.service import Service


def test_a_poisson_process_has_its_rate_and_is_reproducible() -> None:
    schedule = poisson(500, 20, 7, seed=1)
    assert schedule == poisson(500, 20, 7, seed=1)
    assert schedule != poisson(500, 20, 7, seed=2)
    assert len(schedule.due) == pytest.approx(10_000, rel=0.05)
    assert schedule.due == sorted(schedule.due)
    assert set(schedule.numbers) == set(range(7))
    gaps = [later - earlier for earlier, later in zip(schedule.due, schedule.due[1:], strict=False)]
    assert sum(gap > 1 / 500 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)  # 1/e


def test_every_scheduled_request_is_sent_at_its_time_and_accounted_for(service: Service) -> None:
    workload = service_workload(service.url, "student")
    bad = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{"
    schedule = Schedule([0.0, 0.0, 0.1, 0.3, 0.3], [0, 1, 0, 1, 0])
    load = run_schedule(service.url, [workload.requests[0], bad], schedule, connections=4, limit_s=10)
    assert (load.scheduled, load.ended, load.gave_up) == (5, 5, False)
    assert load.statuses == {200: 3, 415: 2}
    assert load.late == 2  # the rejected ones
    assert load.latencies is not None
    assert load.latencies.total == 3
    assert load.latencies.values[0] > 0


def test_the_time_that_a_request_waits_for_a_connection_counts(service: Service) -> None:
    workload = service_workload(service.url, "student")
    schedule = Schedule([0.0] * 300, [0] * 300)
    load = run_schedule(service.url, workload.requests[:1], schedule, connections=1, limit_s=10)
    assert load.latencies is not None
    fastest, slowest = load.latencies.values[0], load.latencies.values[-1]
    assert slowest > 5 * fastest  # one after the other
    assert load.late == 0


def test_a_run_ends_early_when_more_requests_are_late_than_allowed(service: Service) -> None:
    workload = service_workload(service.url, "student")
    schedule = poisson(200, 20, 1, seed=0)  # 20 s, if it did not end early
    load = run_schedule(
        service.url, workload.requests[:1], schedule, connections=4, limit_s=1e-6, max_late=10
    )
    assert load.gave_up
    assert 10 < load.late == load.ended < 200
    assert load.late_share == 1
