"""The work in flight: what is admitted, and how its duration is measured."""

import pytest

from serving.codecs.errors import Overloaded
from serving.engine.admission.backlog import SHARE, Backlog
from serving.engine.admission.fairness import Shares


def filled(backlog: Backlog, model: str, work: float, timeout: float) -> int:
    """Admit requests of `model` until one is rejected; return how many were admitted."""
    count = 0
    while True:
        try:
            backlog.admit(model, work, timeout)
        except Overloaded:
            return count
        count += 1


def test_admitted_work_fits_into_a_share_of_the_timeout() -> None:
    backlog = Backlog()
    assert filled(backlog, "student", 0.25, 10) == SHARE * 10 / 0.25
    assert backlog.seconds == SHARE * 10
    with pytest.raises(Overloaded, match="the requests in flight take 5 s"):
        backlog.admit("student", 0.25, 10)
    backlog.admit("student", 0.25, 20)  # a client with more patience


def test_the_first_request_of_a_model_is_always_admitted() -> None:
    backlog = Backlog()
    assert backlog.admit("teacher", 100, 1) == 100
    with pytest.raises(Overloaded):
        backlog.admit("teacher", 0.001, 1)
    backlog.admit("student", 0.001, 1)


def test_models_share_the_time_equally() -> None:
    backlog = Backlog()
    admitted = filled(backlog, "teacher", 0.25, 10)
    assert filled(backlog, "student", 0.25, 10) == 1  # the first
    for _ in range(admitted // 2):
        backlog.end("teacher", 0.25)
    with pytest.raises(Overloaded):
        backlog.admit("teacher", 0.25, 10)  # it has its half
    assert filled(backlog, "student", 0.25, 10) == admitted // 2 - 1
    for _ in range(admitted // 2):
        backlog.end("teacher", 0.25)
    assert filled(backlog, "student", 0.25, 10) == admitted // 2  # alone again


def test_work_that_has_ended_or_changed_makes_room() -> None:
    backlog = Backlog()
    backlog.admit("student", 3.0, 10)
    with pytest.raises(Overloaded):
        backlog.admit("student", 3.0, 10)
    backlog.change("student", -2.0)
    backlog.admit("student", 3.0, 10)
    backlog.end("student", 1.0)
    backlog.end("student", 3.0)
    assert backlog.seconds == 0


def test_the_duration_of_work_is_measured() -> None:
    backlog = Backlog()
    for _ in range(50):
        backlog.observe(waited=0.4, expected=0.1)
        backlog.measure()
        backlog.measure()  # without requests, nothing changes
    assert backlog.slowdown == pytest.approx(4, rel=1e-3)
    assert filled(backlog, "student", 0.25, 10) == SHARE * 10 / 0.25 / 4
    for _ in range(50):
        backlog.observe(waited=0.1, expected=0.1)
        backlog.measure()
    assert backlog.slowdown == pytest.approx(1, rel=1e-3)


def test_a_request_that_waited_for_something_else_has_no_others_rejected() -> None:
    backlog = Backlog()
    backlog.observe(waited=5, expected=2e-4)
    backlog.measure()
    assert filled(backlog, "student", 2e-4, 5) > 1000


def test_a_client_gets_its_share_of_a_full_backlog() -> None:
    shares = Shares()
    backlog = Backlog(shares)
    for client in ("flood", "flood", "other"):
        shares.enter(client)
    assert backlog.admit("student", 2.0, 10, "flood") == 2
    assert backlog.admit("student", 3.0, 10, "flood") == 5
    for client in ("flood", None):
        with pytest.raises(Overloaded):
            backlog.admit("student", 0.1, 10, client)
    assert backlog.admit("student", 1.0, 10, "other") == 2  # twice its own: it waits for as much of the flood
    backlog.check("student", 1.5, 10, "other")
    with pytest.raises(Overloaded):
        backlog.check("student", 1.6, 10, "other")
    with pytest.raises(Overloaded):
        backlog.check("student", 1.7, 10, "third")  # a third of 5
    backlog.check("student", 1.6, 10, "third")
