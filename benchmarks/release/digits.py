"""Digits on which a stable model and a candidate have chosen error rates: real ones, drawn by what both predict."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from serving.model.session import Session
from serving.model.tensors import Images

Ints = NDArray[np.int64]
MIN_DIGITS = 10
"""Different digits that a part of the traffic is drawn from, at least."""
BATCH = 256


def predicted(content: bytes, images: Images) -> Ints:
    """Return the digits that a model's file predicts for `images`, `uint8 [N, 28, 28]`."""
    session = Session(content)
    parts = [session.run(images[start : start + BATCH]).digits for start in range(0, len(images), BATCH)]
    return np.concatenate([np.asarray(part, np.int64) for part in parts])


class Groups(NamedTuple):
    """Places of digits by which of the two models is right."""

    right: Ints
    """Both."""
    candidate_wrong: Ints
    """The candidate alone."""
    stable_wrong: Ints
    """The stable model alone."""
    wrong: Ints
    """Both."""

    @classmethod
    def of(cls, labels: Ints, stable: Ints, candidate: Ints) -> "Groups":
        """Divide digits by two models' predictions, int64 [N] each."""
        wrong, other = stable != labels, candidate != labels
        parts = (~wrong & ~other, ~wrong & other, wrong & ~other, wrong & other)
        return cls(*map(np.flatnonzero, parts))

    def weights(self, stable: float, candidate: float) -> NDArray[np.float64]:
        """Return the share of the traffic that each group is, float64 [4], for these error rates.

        The stable model's errors are divided like those on all digits between the ones that the candidate shares and
        the others; groups of fewer than `MIN_DIGITS` are left out. Raises `BenchmarkError` if too few digits remain.
        """
        usable = [len(group) if len(group) >= MIN_DIGITS else 0 for group in self]
        alone, both = usable[2:]
        if not alone + both:
            raise BenchmarkError(
                f"the stable model is wrong about {len(self.stable_wrong) + len(self.wrong)} of the test digits, "
                f"at least {MIN_DIGITS} are needed; name a weaker one with --models"
            )
        shared = stable * both / (alone + both)
        if candidate < shared or (candidate > shared and not usable[1]):
            raise BenchmarkError(
                f"the candidate alone is wrong about {len(self.candidate_wrong)} of the test digits, at least "
                f"{MIN_DIGITS} are needed; name two models that differ more with --models"
            )
        weights = np.array([0.0, candidate - shared, stable - shared, shared])
        weights[0] = 1 - weights.sum()
        if weights[0] < 0:
            raise BenchmarkError(f"error rates of {stable:g} and {candidate:g} are too high together")
        return weights

    def draw(self, stable: float, candidate: float, count: int, random: np.random.Generator) -> Ints:
        """Return the places of `count` digits, drawn independently, int64 [count]. Raises `BenchmarkError`."""
        chosen = random.choice(len(self), size=count, p=self.weights(stable, candidate))
        places = np.empty(count, np.int64)
        for number, group in enumerate(self):
            mine = chosen == number
            places[mine] = random.choice(group, mine.sum()) if mine.any() else 0
        return places
