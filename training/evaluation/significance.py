"""Is a difference more than chance? Intervals over seeds, tests over digits.

    mean_interval([103, 99, 110])            104.0 ± 13.8
    mcnemar(wrong_a, wrong_b)                one pair of networks, the digits a sample
    paired_over_seeds([(wrong_a, wrong_b), …])    pairs of networks, one a seed, tested on the same digits

There are two kinds of chance. Another test set would have other digits: McNemar's and the sign-flip test ask
about that, for the networks at hand. Another training would give other networks: the interval over seeds asks
about that, on the digits at hand. A difference worth naming survives both.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HALVINGS = 60
"""Of a range 16 wide: float64 has no more."""


class McNemar(NamedTuple):
    """How two networks differ on the same digits."""

    only_a: int
    """Digits that only the first gets wrong."""
    only_b: int
    p: float
    """Exact, two-sided: how often a difference so large would come about if each such digit were a fair coin."""


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % interval (Student 1908), None for a single value.

    Raises `statistics.StatisticsError` without a value.
    """
    if len(values) == 1:
        return float(values[0]), None
    return float(mean(values)), t_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_95(freedom: int) -> float:
    """Return the t that Student's distribution with so many degrees of freedom stays within 95 % of the time."""
    low, high = 0.0, 16.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _share_within(middle, freedom) < 0.95:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mcnemar(wrong_a: Tensor, wrong_b: Tensor) -> McNemar:
    """Return McNemar's exact test of two networks on the same digits; `bool [N]` each, True where it errs.

    Only digits on which they differ count (McNemar 1947); Dietterich (1998, "Approximate statistical tests for
    comparing supervised classification learning algorithms") advises it for networks trained once. It speaks of
    these two networks and of digits like these, not of what another seed would bring.
    """
    only_a, only_b = int((wrong_a & ~wrong_b).sum()), int((wrong_b & ~wrong_a).sum())
    return McNemar(only_a, only_b, sign_flip([1] * only_a + [-1] * only_b))


def sign_flip(differences: Iterable[int]) -> float:
    """Return how often the sum is as far from 0 as it is, were each difference as likely negative as positive.

    Fisher's randomisation test for pairs (The Design of Experiments, 1935, section 21), two-sided, and exact: not
    drawn but counted. With differences of ±1 it is the sign test, and so McNemar's.
    """
    values = np.array([value for value in differences if value], dtype=np.int64)
    sizes, counts = np.unique(np.abs(values), return_counts=True)
    distribution = np.ones(1)  # of the sum of the positive ones, from 0 to the sum of all sizes
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        stretched = np.zeros(size * count + 1)
        stretched[::size] = _fair_coins(count)
        distribution = np.convolve(distribution, stretched)
    total = len(distribution) - 1
    as_far = np.abs(2 * np.arange(total + 1) - total) >= abs(values.sum())
    return min(1.0, float(distribution[as_far].sum()))


def paired_over_seeds(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Compare two kinds of network over seeds: `(wrong_a, wrong_b)` of each seed, `bool [N]`, the same N digits.

    The digits that differ must not be pooled over seeds: a hard digit comes back with every seed, and would count
    as so many witnesses (Durkalski et al. 2003, "Analysis of clustered matched-pair data"). So, as JSON:

    - `saved`: errors of a less errors of b, seed by seed; `mean` and `interval_95` (half its width, None for one
      seed) by Student's t over the seeds: what new seeds would save on these digits. It has as many values as
      seeds, however many digits there are (Bouthillier et al. 2021, arXiv:2103.03098, on why seeds must vary).
    - `digits`: `sign_flip` on each digit's number of seeds in which a errs less that of b, so each digit is one
      witness with all its seeds; `a_errs_more` and `b_errs_more` count digits. `p`: would these networks differ
      on new digits? With one seed it is McNemar's.
    - `seeds`: McNemar's test of each seed (`only_a`, `only_b`, `p`). They share their digits, so the smallest p
      of several is no evidence, nor may they be multiplied; they show whether the seeds say the same.

    Raises `ValueError` without a pair, or for tensors of different lengths.
    """
    if not pairs:
        raise ValueError("no seeds to compare: there must be one pair of tensors for each")
    if len(lengths := {len(wrong) for pair in pairs for wrong in pair}) > 1:
        raise ValueError(
            f"the networks were not tested on the same digits: there are {sorted(lengths)} of them"
        )
    saved = [int(wrong_a.sum()) - int(wrong_b.sum()) for wrong_a, wrong_b in pairs]
    by_digit = torch.stack([wrong_a.long() - wrong_b.long() for wrong_a, wrong_b in pairs]).sum(dim=0)
    centre, spread = mean_interval(saved)
    return {
        "saved": saved,
        "mean": centre,
        "interval_95": spread,
        "digits": {
            "a_errs_more": int((by_digit > 0).sum()),
            "b_errs_more": int((by_digit < 0).sum()),
            "p": sign_flip(by_digit.tolist()),
        },
        "seeds": [mcnemar(wrong_a, wrong_b)._asdict() for wrong_a, wrong_b in pairs],
    }


def _share_within(t: float, freedom: int) -> float:
    """Student's distribution between −t and t (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sin, cos = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cos if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cos**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sin * total) if odd else sin * total


def _fair_coins(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return how likely 0, 1, …, `count` heads are."""
    ways, shares = 1, []
    for heads in range(count + 1):
        shares.append(ways / (1 << count))  # of whole numbers, so exact to the last bit
        ways = ways * (count - heads) // (heads + 1)
    return np.array(shares)
