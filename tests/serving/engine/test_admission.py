"""Limits that a real client could reach only with hundreds of megabytes."""

import time

import pytest

from serving.codecs.errors import BodyTooLarge, Overloaded
from serving.engine.admission import Admission, AdmissionLimits


class Request:
    """A request in flight."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.held_bytes = 0
        self.expired = False

    def is_late(self, now: float) -> bool:
        return now >= self.deadline

    def expire(self) -> None:
        self.expired = True


def test_bodies_in_several_pieces_share_a_limited_memory() -> None:
    admission = Admission(AdmissionLimits(max_held_bytes=1000))
    first, second, third = Request(), Request(), Request()
    for request in (first, second, third):
        admission.enter(request)
    admission.hold(first, 300)
    admission.hold(second, 300)
    admission.hold(first, 600)
    with pytest.raises(Overloaded):
        admission.hold(second, 600)
    admission.leave(second)
    admission.leave(first)
    admission.hold(third, 900)  # the memory of the others is free again


def test_a_body_in_several_pieces_is_limited_like_any_other() -> None:
    admission = Admission(AdmissionLimits(max_body_bytes=100))
    request = Request()
    admission.enter(request)
    admission.hold(request, 100)
    with pytest.raises(BodyTooLarge, match="at least 101 bytes; the limit is 100"):
        admission.hold(request, 101)


def test_only_requests_past_their_deadline_expire() -> None:
    admission = Admission(AdmissionLimits())
    early, late = Request(), Request()
    early.deadline = time.monotonic() + 5
    for request in (early, late):  # in any order: a body may take longer than a prediction
        admission.enter(request)
    admission.expire_late()
    assert (late.expired, early.expired) == (True, False)
