"""The proof: the cheapest candidates of the search, once more, in longer and interleaved rounds."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.advise.candidates import Candidate, Shape
from benchmarks.advise.measure import Known, Run
from benchmarks.load.interleave import interleave
from benchmarks.results.ratio import Ratio

ROUNDS = 6
"""With five or more, the interval of a ratio exists."""
SMALL = 1.05
"""Below this factor, a difference in cost that is not decided decides nothing."""


@dataclass(frozen=True)
class Verified:
    """Two candidates, or one, measured in the same rounds."""

    rounds: dict[Candidate, list[Run]]

    def known(self, candidate: Candidate) -> Known:
        """Return what the rounds have shown of one of them."""
        return Known(self.rounds[candidate])

    @property
    def passed(self) -> list[Candidate]:
        """Those that meet the target with 95 % confidence, by the median CPU time per request of the rounds."""
        passed = [one for one in self.rounds if self.known(one).meets_target]
        return sorted(passed, key=lambda one: median(self.costs(one)))

    def choose(self, preference: Callable[[Candidate], Any]) -> Candidate:
        """Return the cheapest that meets the target, or one whose difference from it is small and not decided.

        Of these, the one with the least `preference`: the difference may be noise, and the preference is not.
        """
        cheapest, *others = self.passed
        savings = {one: self.saving(cheapest, one) for one in others}
        equal = [one for one, saving in savings.items() if saving.median < SMALL and not saving.decided]
        return min([cheapest, *equal], key=preference)

    def costs(self, candidate: Candidate) -> list[float]:
        """Return the CPU time per request of every round, in microseconds."""
        return [Known([run]).cpu_us for run in self.rounds[candidate]]

    def saving(self, candidate: Candidate, other: Candidate) -> Ratio:
        """Return the factor by which a candidate takes less CPU time per request than another."""
        return Ratio.within_rounds(self.costs(candidate), self.costs(other), lower_is_better=True)


def verify(
    finalists: Sequence[Candidate],
    *,
    start: Callable[[Shape], AbstractContextManager[Any]],
    run: Callable[[Any, Candidate, int], Run],
) -> Verified:
    """Measure the finalists in interleaved rounds, with all their services running; `run` gets the round."""
    numbers = dict.fromkeys(finalists, 0)
    with ExitStack() as stack:
        services = {shape: stack.enter_context(start(shape)) for shape in {one.shape for one in finalists}}

        def measure(candidate: Candidate) -> Run:
            numbers[candidate] += 1
            return run(services[candidate.shape], candidate, numbers[candidate])

        rounds = interleave(finalists, ROUNDS, measure)
    return Verified(dict(zip(finalists, rounds, strict=True)))
