"""Ratios of interleaved measurements, and whether they are decided.

Background load slows all cases of a round, so a ratio is taken within each round. Reported are the median over the
rounds and its confidence interval, without an assumption on the distribution.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import median
from typing import Any, Self

CONFIDENCE = 0.9
LEAST_ROUNDS = 5
"""With fewer, not even the range of the ratios covers the median with that probability."""
LEGEND = (
    "× = improvement over the teacher, taken within each round: median (90 % interval by the sign test); "
    "≈ = undecided: the interval includes 1, or there are fewer than five rounds"
)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Improvement of one case over another, as a factor."""

    median: float
    """Over the rounds."""
    low: float
    """Lower end of the 90 % interval of the median; with fewer than five rounds the lowest ratio."""
    high: float
    rounds: int

    @classmethod
    def within_rounds(
        cls, case: Sequence[float], reference: Sequence[float], *, lower_is_better: bool = False
    ) -> Self:
        """Compare a figure of two cases, one value per round each; `ValueError` for unequal numbers of rounds."""
        pairs = zip(case, reference, strict=True)
        ratios = sorted(theirs / ours if lower_is_better else ours / theirs for ours, theirs in pairs)
        outside = _ranks_outside(len(ratios))
        return cls(median=median(ratios), low=ratios[outside], high=ratios[-1 - outside], rounds=len(ratios))

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Self:
        """Read what `as_json` returned."""
        return cls(**{name: kept[name] for name in cls.__annotations__})

    @property
    def decided(self) -> bool:
        """True if the rounds show a difference."""
        return self.rounds >= LEAST_ROUNDS and not self.low <= 1 <= self.high

    @property
    def short(self) -> str:
        """The ratio without its interval, for tables with many of them."""
        return f"{'' if self.decided else '≈ '}{_digits(self.median)}×"

    @property
    def interval(self) -> str:
        """Both ends of the interval."""
        return f"{_digits(self.low)}–{_digits(self.high)}"

    def __str__(self) -> str:
        return f"{self.short} ({self.interval})"

    def as_json(self) -> dict[str, Any]:
        """Return what a result file keeps of it, besides the rounds themselves."""
        return {name: round(value, 5) for name, value in asdict(self).items()} | {"decided": self.decided}


def _ranks_outside(rounds: int) -> int:
    """Return how many of the ordered rounds lie outside of the interval on each side (Conover 1999, section 3.2).

    The median lies below the k-th smallest of n values when fewer than k of them are below it: the binomial
    distribution of n fair coins gives the probability, which both tails share. From five rounds on there is such an
    interval: the range covers the median with a probability of 1 − 2/2ⁿ.
    """
    tails = [sum(comb(rounds, below) for below in range(k + 1)) / 2.0**rounds for k in range(rounds)]
    return max(0, sum(2 * tail <= 1 - CONFIDENCE for tail in tails) - 1)


def _digits(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
