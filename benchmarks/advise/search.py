"""The race: which candidates meet the target, and which of them take the least CPU time.

Successive halving (Jamieson and Talwalkar 2016) over all candidates: the space is small and discrete and a run is short
and noisy, so that every candidate can be measured, which a model of the space, as Optuna's samplers have, could only
guess; the time saved by dropping candidates early goes into longer runs of the others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from math import ceil, inf
from typing import Any, Literal

from benchmarks.advise.candidates import Candidate, SessionCosts, Shape
from benchmarks.advise.measure import TRIES, Known, Run
from benchmarks.advise.profile import Profile

KEPT = 3
"""A third of the candidates continues after each rung, with runs of three times the length."""
FINALISTS = 3
START_S = 3.0
"""A service starts within about this time."""
SHORTEST_S, LONGEST_S = 0.5, 4.0
"""Of runs of the first rung."""
SHARE_OF_FIRST_RUNG = 0.6
"""Of the time of the search."""
MARGIN = 1.25
"""A candidate whose predicted cost is higher by this factor than the best measured one is not measured."""

State = Literal["measured", "overloaded", "expensive", "no time"]
Clock = Callable[[], float]


@dataclass
class Race:
    """What is known of every candidate."""

    candidates: Sequence[Candidate]
    runs: dict[Candidate, list[Run]] = field(default_factory=lambda: defaultdict(list))
    states: dict[Candidate, State] = field(default_factory=dict)

    def known(self, candidate: Candidate) -> Known:
        """Return all that was measured of a candidate."""
        return Known(self.runs[candidate])

    def cheapest(self) -> list[Candidate]:
        """Return the candidates that may meet the target, by CPU time per request."""
        possible = [one for one in self.candidates if self.runs.get(one) and not self.known(one).hopeless]
        return sorted(possible, key=lambda one: self.known(one).cpu_us)

    def finalists(self) -> list[Candidate]:
        """Return the two cheapest candidates, and the simplest settings of the cheapest one's model.

        Of settings that differ by noise alone, any may be the cheapest of the search.
        """
        cheapest = self.cheapest()
        simplest = [one for one in self.candidates if one in cheapest and one.model == cheapest[0].model][:1]
        return list(dict.fromkeys([*cheapest[: FINALISTS - 1], *simplest]))

    def closest(self) -> Candidate | None:
        """Return the measured candidate with the lowest 99th percentile, or the lowest median without one."""
        measured = [one for one in self.candidates if self.runs.get(one)]

        def distance(one: Candidate) -> tuple[float, float]:
            p99, p50 = (self.known(one).latency_ms(quantile) for quantile in (0.99, 0.5))
            return inf if p99 is None else p99, inf if p50 is None else p50

        return min(measured, key=distance, default=None)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Measures candidates until the time is over."""

    profile: Profile
    costs: SessionCosts
    start: Callable[[Shape], AbstractContextManager[Any]]
    run: Callable[[Any, Candidate, float, int], Run]
    """With what `start` returned, the seconds, and the number of this run of the candidate."""
    clock: Clock
    progress: Callable[[str, Race], None] = lambda _text, _race: None

    def race(self, candidates: Sequence[Candidate], deadline: float) -> Race:
        """Return what was measured until `deadline`, by `clock`; the first service is measured in any case."""
        race = Race(candidates)
        end = self.clock() + SHARE_OF_FIRST_RUNG * (deadline - self.clock())
        seconds = min(LONGEST_S, max(SHORTEST_S, (end - self.clock()) / 2 / len(candidates)))
        for shape, several in _by_shape(candidates).items():
            possible = list(self._possible(race, shape, several))
            if race.runs and self.clock() + START_S + seconds > end:
                race.states |= dict.fromkeys(possible, "no time")
            elif possible:
                with self.start(shape) as service:
                    self._measure_shape(race, service, possible, seconds)
        for rung in count(1):
            left = race.cheapest()
            left = left[: max(FINALISTS, ceil(len(left) / KEPT**rung))]
            seconds *= KEPT
            if len(left) <= FINALISTS and rung > 1:
                break
            for shape, several in _by_shape(left).items():
                if self.clock() + START_S + seconds * len(several) > deadline:
                    return race
                with self.start(shape) as service:
                    for candidate in several:
                        self._measure(race, service, candidate, seconds, rung)
            if len(left) <= FINALISTS:
                break
        return race

    def _measure_shape(
        self, race: Race, service: Any, candidates: Sequence[Candidate], seconds: float
    ) -> None:
        """Measure the models of a service, the cheapest first, until the next one must cost too much."""
        overhead = None
        for candidate in candidates:
            alone = 1e6 * self.costs.seconds(candidate, self.profile.images)
            best = next(iter(race.cheapest()), None)
            if overhead is not None and best and overhead + alone > MARGIN * race.known(best).cpu_us:
                race.states[candidate] = "expensive"
                continue
            self._measure(race, service, candidate, seconds, 0)
            overhead = max(0.0, race.known(candidate).cpu_us - alone)

    def _possible(self, race: Race, shape: Shape, candidates: Sequence[Candidate]) -> Iterator[Candidate]:
        """Yield the candidates, cheapest model first, whose model alone does not need more cores than they may use."""
        seconds = {one: self.costs.seconds(one, self.profile.images) for one in candidates}
        for candidate in sorted(candidates, key=lambda one: seconds[one]):
            if seconds[candidate] * self.profile.rate > shape.api_servers * shape.threads:
                race.states[candidate] = "overloaded"
            else:
                yield candidate

    def _measure(self, race: Race, service: Any, candidate: Candidate, seconds: float, rung: int) -> None:
        race.states[candidate] = "measured"
        for attempt in range(TRIES):
            self.progress(f"round {rung + 1}, {candidate}", race)
            race.runs[candidate].append(self.run(service, candidate, seconds, rung * TRIES + attempt))
            if not race.runs[candidate][-1].missed or race.known(candidate).hopeless:
                break


def _by_shape(candidates: Sequence[Candidate]) -> Mapping[Shape, list[Candidate]]:
    """Return the candidates by service, in the order of the first one of each."""
    found: dict[Shape, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        found[candidate.shape].append(candidate)
    return found
