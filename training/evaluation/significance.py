"""Significance of differences in errors: confidence intervals over seeds, tests over digits.

    mean_interval([103, 99, 110])                 104.0 ± 13.8
    mcnemar(wrong_a, wrong_b)                     one pair of networks; the digits are the sample
    paired_over_seeds([(wrong_a, wrong_b), …])    one pair of networks per seed, tested on the same digits

There are two sources of chance. Another test set would contain other digits: McNemar's and the sign-flip test cover
that, for the given networks. Another training would produce other networks: the interval over seeds covers that, on
the given digits. A difference worth reporting survives both.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import scipy  # loads scipy.stats at its first use: the import takes as long as half of torch's
import torch
from torch import Tensor


class McNemar(NamedTuple):
    """Difference of two networks, a and b, on the same digits."""

    only_a: int
    """Number of digits that only a misclassifies."""
    only_b: int
    p: float
    """Exact and two-sided: probability of a difference at least as large if each such digit were a fair coin."""


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % confidence interval (Student 1908), None for one value.

    Raises `statistics.StatisticsError` without a value.
    """
    if len(values) == 1:
        return float(values[0]), None
    t = float(scipy.stats.t.ppf(0.975, len(values) - 1))
    return float(mean(values)), t * stdev(values) / math.sqrt(len(values))


def mcnemar(wrong_a: Tensor, wrong_b: Tensor) -> McNemar:
    """Return McNemar's exact test of two networks on the same digits; `bool [N]` each, True for an error.

    Only the digits on which they differ count (McNemar 1947). Dietterich (1998, "Approximate statistical tests for
    comparing supervised classification learning algorithms") recommends it for networks trained once. It holds for
    these two networks and digits of this kind, not for other seeds.
    """
    only_a, only_b = int((wrong_a & ~wrong_b).sum()), int((wrong_b & ~wrong_a).sum())
    differing = only_a + only_b
    p = float(scipy.stats.binomtest(only_a, differing).pvalue) if differing else 1.0
    return McNemar(only_a, only_b, p)


def sign_flip(differences: Iterable[int]) -> float:
    """Return the two-sided p-value of Fisher's randomisation test for pairs (The Design of Experiments, 1935, § 21).

    It is the probability of a sum at least as far from 0 if every difference were as likely negative as positive.
    Exact: the distribution of the sum is the convolution of one binomial distribution per size of difference, where
    `scipy.stats.permutation_test` would enumerate 2ᴺ sign patterns or sample them. For differences of ±1 it equals the
    sign test, and so McNemar's.
    """
    values = np.array([value for value in differences if value], dtype=np.int64)
    sizes, counts = np.unique(np.abs(values), return_counts=True)
    distribution = np.ones(1)  # of the sum of the positive differences, from 0 to the sum of all sizes
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        stretched = np.zeros(size * count + 1)
        stretched[::size] = scipy.stats.binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.convolve(distribution, stretched)
    total = len(distribution) - 1
    at_least_as_far = np.abs(2 * np.arange(total + 1) - total) >= abs(values.sum())
    return min(1.0, float(distribution[at_least_as_far].sum()))


def paired_over_seeds(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Compare two kinds of network over seeds: `(wrong_a, wrong_b)` per seed, `bool [N]`, for the same N digits.

    Differing digits must not be pooled over seeds: a hard digit recurs with every seed and would count several times
    (Durkalski et al. 2003, "Analysis of clustered matched-pair data"). Returns, JSON-serialisable:

    - `saved`: errors of a minus errors of b, per seed; `mean` and `interval_95` (half the width, None for one seed)
      by Student's t over the seeds: the expected difference for new seeds on these digits. The sample size is the
      number of seeds, whatever N (Bouthillier et al. 2021, arXiv:2103.03098, on why seeds must vary).
    - `digits`: `sign_flip` over each digit's number of seeds in which a is wrong minus that of b, so that every digit
      counts once; `a_errs_more` and `b_errs_more` count digits. `p`: would these networks differ on new digits? For
      one seed it equals McNemar's.
    - `seeds`: McNemar's test per seed (`only_a`, `only_b`, `p`). They share their digits, so neither the smallest p
      nor their product is evidence; they show whether the seeds agree.

    Raises `ValueError` without a pair, or for tensors of different lengths.
    """
    if not pairs:
        raise ValueError("no seeds to compare: expected one pair of tensors per seed")
    if len(lengths := {len(wrong) for pair in pairs for wrong in pair}) > 1:
        raise ValueError(
            f"the networks must be tested on the same digits; found results of {sorted(lengths)} digits"
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
