"""The counts of a load's requests."""

from benchmarks.cluster.load import CLOSED, SLOW_S, TIMED_OUT, Outcome, covered, summary


def test_every_request_is_counted_once() -> None:
    ends = [(200, 0), (200, 1), (503, 0), (502, 0), (502, 0), (CLOSED, 1), (TIMED_OUT, 0)]
    found = summary([Outcome(0, 0.1, status, retries) for status, retries in ends])
    assert (found["sent"], found["failed"], found["retried"]) == (7, 5, 2)
    assert (found["rejected"], found["closed"], found["timed_out"]) == (1, 1, 1)
    assert found["other_statuses"] == {"502": 2}


def test_the_time_with_slow_requests_counts_once_where_they_overlap() -> None:
    slow = [Outcome(start, start + 2 * SLOW_S, 200, 0) for start in (0, SLOW_S, 10)]
    found = summary([*slow, Outcome(20, 20 + SLOW_S / 2, 200, 0)])
    assert (found["slow"], found["slow_s"], found["longest_s"]) == (3, 5 * SLOW_S, 2 * SLOW_S)
    assert covered([]) == 0
