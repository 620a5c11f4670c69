"""The load: rates, bodies and arrivals of both profiles, sent to a real service."""

from itertools import product
from pathlib import Path

import pytest

from benchmarks.advise.profile import LogProfile, PoissonProfile
from benchmarks.errors import BenchmarkError
from benchmarks.load.open_loop import run_schedule
from distillery.request_log.read import read_log
from tests.support.request_log import add_requests
from tests.support.service import Service


def a_log(folder: Path, *, rate: float = 1.0) -> Path:
    """One request every 50 ms for 2 s, and then one every 10 ms for half a second."""
    for number in range(40):
        add_requests(folder, number, number + 1, moment=1e9 + number * 0.05, rate=rate)
    for number in range(50):
        add_requests(folder, 40 + number, 41 + number, moment=1e9 + 10 + number * 0.01, rate=rate)
    return folder


def profile_of(folder: Path, rate: float | None = None, seconds: float = 0.5) -> LogProfile:
    return LogProfile(read_log(folder), rate, seconds=seconds, connections=8, limit_s=10)


def test_the_busiest_part_of_a_log_is_the_load(tmp_path: Path) -> None:
    profile = profile_of(a_log(tmp_path))
    assert profile.rate == pytest.approx(100, rel=0.03)
    load = profile.load("http://127.0.0.1:1", "student", 0.5, 0)
    assert len(load.schedule.due) in {49, 50, 51}
    gaps = [later - earlier for earlier, later in zip(load.schedule.due, load.schedule.due[1:], strict=False)]
    assert gaps == pytest.approx([0.01] * len(gaps), abs=1e-3)


def test_a_rate_changes_the_speed_of_a_log(tmp_path: Path) -> None:
    profile = profile_of(a_log(tmp_path), rate=400)
    assert len(profile.load("http://127.0.0.1:1", "student", 0.1, 0).schedule.due) == pytest.approx(40, abs=2)
    assert "times as fast as recorded" in str(profile)


def test_a_sample_stands_for_all_requests(tmp_path: Path) -> None:
    profile = profile_of(a_log(tmp_path, rate=0.25))
    assert profile.rate == pytest.approx(400, rel=0.1)


def test_a_part_that_is_shorter_than_a_run_is_repeated(tmp_path: Path) -> None:
    profile = profile_of(a_log(tmp_path), rate=1000)
    schedule = profile.load("http://127.0.0.1:1", "student", 3, 0).schedule
    assert len(schedule.due) == pytest.approx(3000, rel=0.1)
    assert schedule.due == sorted(schedule.due)
    assert schedule.due[-1] <= 3


def test_a_log_of_one_request_is_no_profile(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 1)
    with pytest.raises(BenchmarkError, match="100 requests at one time are no load profile"):
        profile_of(tmp_path)


def test_the_requests_of_both_profiles_are_answered(service: Service, tmp_path: Path) -> None:
    poisson = PoissonProfile(100, "binary-8", connections=8, limit_s=10)
    assert poisson.images == 8
    for profile in (poisson, profile_of(a_log(tmp_path))):
        schedule, requests = profile.load(service.url, "student", 0.3, 1)
        load = run_schedule(service.url, requests, schedule, connections=8, limit_s=10)
        assert load.statuses == {200: len(schedule.due)}


def test_the_shortest_run_has_a_request(tmp_path: Path) -> None:
    profiles = [profile_of(a_log(tmp_path), rate=1), PoissonProfile(1, "json", connections=8, limit_s=10)]
    for profile, seed in product(profiles, range(5)):
        assert len(profile.load("http://127.0.0.1:1", "student", 1e-3, seed).schedule.due) == 1
