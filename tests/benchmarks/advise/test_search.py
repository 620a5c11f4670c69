"""The race and its proof, over candidates whose cost and latency are known and whose runs are noisy."""

from collections.abc import Container, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.advise.candidates import Candidate, SessionCosts, Shape
from benchmarks.advise.measure import Known, Run, most_late, requests_to_verify
from benchmarks.advise.profile import PoissonProfile
from benchmarks.advise.search import START_S, Search
from benchmarks.advise.verify import ROUNDS, verify

PROFILE = PoissonProfile(500, "json", connections=1, limit_s=0.01)
OVERHEAD_US = 100.0
SESSION_US = {"fast": 30.0, "student": 60.0, "teacher": 200.0}
SHAPES = [Shape("inprocess", 1, servers, batch) for batch in (64, 8, 1) for servers in (1, 2)]
CANDIDATES = [Candidate(shape, model) for shape in SHAPES for model in SESSION_US]


class Costs(SessionCosts):
    """Known costs of the models."""

    def __init__(self) -> None:
        super().__init__({})

    def seconds(self, candidate: Candidate, images: float) -> float:
        return images * SESSION_US[candidate.model] / 1e6


class Machine:
    """A machine on which time passes when something is measured; CPU time varies by a few percent."""

    def __init__(self, *, late_share: dict[str, float] | None = None, pauses: Container[int] = ()) -> None:
        self.now = 0.0
        self.measured: list[Candidate] = []
        self._late = late_share or {}
        self._pauses = pauses
        self._random = np.random.default_rng(0)

    @contextmanager
    def start(self, shape: Shape) -> Iterator[Shape]:
        self.now += START_S / 2
        yield shape

    def run(self, service: Shape, candidate: Candidate, seconds: float, _rung: int = 0) -> Run:
        assert service == candidate.shape
        self.now += seconds
        self.measured.append(candidate)
        requests = round(500 * seconds)
        cost = OVERHEAD_US + SESSION_US[candidate.model] + 20 * (candidate.shape.api_servers - 1)
        late_share = 0.3 if len(self.measured) in self._pauses else self._late.get(candidate.model, 0.001)
        late = int(self._random.binomial(requests, late_share))
        gave_up = late > most_late(requests)
        return Run(
            requests=requests,
            late=late,
            seconds=seconds,
            cpu_s=requests * cost / 1e6 * float(self._random.normal(1, 0.03)),
            gave_up=gave_up,
            generator_cores=0.1,
            generator_lag_p99_ms=0.1,
            failed=0,
            latency_us=[(1000, requests - late), (20_000, late)],
        )

    def search(self) -> Search:
        return Search(profile=PROFILE, costs=Costs(), start=self.start, run=self.run, clock=lambda: self.now)


def test_the_cheapest_candidate_is_found_in_the_given_time() -> None:
    machine = Machine()
    race = machine.search().race(CANDIDATES, deadline=120)
    assert machine.now <= 120
    best = race.cheapest()[0]
    assert (best.model, best.shape.api_servers) == ("fast", 1)
    assert len(race.runs[best]) > 1  # longer runs followed the first


def test_a_candidate_that_misses_the_target_is_dropped_however_cheap_it_is() -> None:
    machine = Machine(late_share={"fast": 0.2})
    race = machine.search().race(CANDIDATES, deadline=120)
    assert {one.model for one in race.cheapest()} == {"student"}
    assert all(len(runs) == 2 for one, runs in race.runs.items() if one.model == "fast")


def test_one_pause_of_the_machine_drops_no_candidate() -> None:
    machine = Machine(pauses={1})
    race = machine.search().race(CANDIDATES, deadline=120)
    best = race.cheapest()[0]
    assert race.runs[CANDIDATES[0]][0].missed
    assert (best.model, best.shape.api_servers) == ("fast", 1)
    assert CANDIDATES[0] in race.cheapest()


def test_a_model_whose_cost_alone_exceeds_the_best_one_is_not_measured() -> None:
    machine = Machine()
    race = machine.search().race(CANDIDATES, deadline=120)
    assert "teacher" not in {one.model for one in machine.measured}
    assert {race.states[one] for one in CANDIDATES if one.model == "teacher"} == {"expensive"}


def test_without_time_the_simplest_settings_are_measured_and_the_others_named() -> None:
    machine = Machine()
    race = machine.search().race(CANDIDATES, deadline=3)
    assert {one.shape for one in machine.measured} == {SHAPES[0]}
    assert "no time" in race.states.values()


def test_where_nothing_meets_the_target_the_closest_candidate_is_known() -> None:
    machine = Machine(late_share={"fast": 0.8, "student": 0.1, "teacher": 0.9})
    race = machine.search().race(CANDIDATES, deadline=120)
    assert race.cheapest() == []
    closest = race.closest()
    assert closest
    assert closest.model == "student"


def test_a_model_that_needs_more_cores_than_it_may_use_is_not_measured() -> None:
    machine = Machine()
    profile = PoissonProfile(6000, "json", connections=1, limit_s=0.01)
    search = Search(
        profile=profile, costs=Costs(), start=machine.start, run=machine.run, clock=lambda: machine.now
    )
    race = search.race(CANDIDATES, deadline=120)
    overloaded = {
        (one.model, one.shape.api_servers) for one, state in race.states.items() if state == "overloaded"
    }
    assert overloaded == {("teacher", 1)}  # 6000 × 200 µs are 1.2 cores


def test_the_finalists_include_the_simplest_settings_of_the_cheapest_model() -> None:
    machine = Machine()
    race = machine.search().race(CANDIDATES, deadline=120)
    finalists = race.finalists()
    assert finalists[:2] == race.cheapest()[:2]
    assert Candidate(SHAPES[0], "fast") in finalists
    assert len(finalists) <= 3


def prove(machine: Machine, finalists: list[Candidate]) -> Iterator[Candidate]:
    proof = verify(finalists, start=machine.start, run=lambda service, one, _: machine.run(service, one, 3))
    yield from proof.passed


def test_the_verified_winner_is_the_cheaper_one_that_meets_the_target() -> None:
    fast, student = (Candidate(SHAPES[0], model) for model in ("fast", "student"))
    assert list(prove(Machine(), [student, fast])) == [fast, student]
    assert list(prove(Machine(late_share={"fast": 0.05}), [fast, student])) == [student]


def test_a_difference_that_is_not_decided_is_left_to_the_preference() -> None:
    one, other = (Candidate(Shape("inprocess", 1, 1, batch), "fast") for batch in (64, 8))
    machine = Machine()
    proof = verify(
        [one, other], start=machine.start, run=lambda service, each, _: machine.run(service, each, 3)
    )
    assert not proof.saving(one, other).decided
    assert proof.choose([one, other].index) == one
    assert proof.choose([other, one].index) == other
    assert len(proof.rounds[one]) == ROUNDS


def test_a_decided_difference_is_not() -> None:
    fast, student = (Candidate(SHAPES[0], model) for model in ("fast", "student"))
    machine = Machine()
    proof = verify(
        [fast, student], start=machine.start, run=lambda service, one, _: machine.run(service, one, 3)
    )
    assert proof.choose([student, fast].index) == fast


def known(requests: int, late: int) -> Known:
    return Known(
        [
            Run(
                requests=requests, late=late, seconds=1, cpu_s=0.1, gave_up=False, generator_cores=0.1,
                generator_lag_p99_ms=0.1, failed=0, latency_us=[(1000, requests - late)],
            )
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("requests", "late", "meets", "missed"),
    [
        (10_000, 50, True, False),
        (10_000, 100, False, False),
        (10_000, 200, False, True),
        (100, 0, False, False),
    ],
)
def test_the_target_needs_confidence_in_both_directions(
    requests: int, late: int, meets: bool, missed: bool
) -> None:
    found = known(requests, late)
    assert (found.meets_target, found.runs[0].missed) == (meets, missed)


def test_the_requests_to_verify_allow_one_late_one() -> None:
    needed = requests_to_verify()
    assert known(needed, 1).meets_target
    assert not known(needed - 1, 1).meets_target


def test_a_quantile_beyond_the_answered_requests_is_unknown() -> None:
    assert known(1000, 0).latency_ms(0.99) == 1
    assert known(1000, 5).latency_ms(0.99) == 1
    assert known(1000, 50).latency_ms(0.99) is None
