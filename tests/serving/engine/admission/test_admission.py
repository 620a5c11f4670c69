"""Limits that a real client could reach only with hundreds of megabytes."""

import time
from pathlib import Path

import pytest

from serving.codecs.errors import BodyTooLarge, Overloaded
from serving.engine.admission.admission import Admission, AdmissionLimits
from serving.engine.admission.api_keys import Access, hash_of


class Request:
    """A request in flight."""

    def __init__(self) -> None:
        self.client: str | None = None
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


def test_requests_and_memory_are_shared_by_the_clients_with_requests_in_flight(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        "".join(f'[[keys]]\nname = "{key}"\nhash = "{hash_of(key)}"\n' for key in ("a", "b", "c"))
    )
    limits = AdmissionLimits(max_in_flight=8, max_held_bytes=800)
    admission = Admission(limits, Access(file=file))

    def enter(key: str) -> Request:
        request = Request()
        admission.enter(request)
        try:
            admission.check(request, key.encode(), 0)
        except Overloaded:
            leave(request)
            raise
        return request

    def leave(request: Request) -> None:
        admission.leave(request)
        if request.client:
            admission.shares.leave(request.client, 0.0, request.held_bytes)

    flood = [enter("a") for _ in range(8)]
    for request in flood:
        admission.hold(request, 100)
    with pytest.raises(Overloaded):
        enter("a")
    others = [enter("b") for _ in range(4)]  # half
    for key in ("a", "b"):
        with pytest.raises(Overloaded):
            enter(key)
    admission.hold(others[0], 400)
    for request in (others[1], flood[0]):
        with pytest.raises(Overloaded):
            admission.hold(request, request.held_bytes + 1)
    others.append(enter("c"))
    for request in flood + others:
        leave(request)
    again = [enter("a") for _ in range(8)]  # alone
    admission.hold(again[0], 800)
