"""Intervals and tests against published examples and against counting by hand."""

import math
from itertools import product
from statistics import StatisticsError, stdev

import pytest
import torch
from torch import Tensor

from training.evaluation.significance import mcnemar, mean_interval, paired_over_seeds, sign_flip


def wrong(*places: int, digits: int = 20) -> Tensor:
    """Errors of a network that misclassifies the digits at `places`."""
    return torch.isin(torch.arange(digits), torch.tensor(places, dtype=torch.int64))


# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, column 0.975.
@pytest.mark.parametrize(
    ("seeds", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (11, 2.228), (101, 1.984)]
)
def test_the_interval_has_the_width_of_students_t(seeds: int, quantile: float) -> None:
    values = [*range(seeds)]
    _, half = mean_interval(values)
    assert half == pytest.approx(quantile * stdev(values) / seeds**0.5, rel=2e-4)


def test_the_interval_in_closed_form() -> None:
    # One degree of freedom is Cauchy's distribution: tan(0.475 π). Two: p √(2 / (1 − p²)) with p = 0.95.
    assert mean_interval([1, 3])[1] == pytest.approx(math.tan(0.475 * math.pi), rel=1e-9)
    assert mean_interval([0, 1, 2])[1] == pytest.approx(0.95 * (2 / (1 - 0.95**2)) ** 0.5 / 3**0.5, rel=1e-9)


def test_the_interval_reproduces_students_own_example() -> None:
    # Hours of sleep gained (Student 1908); R's t.test(extra ~ group, paired = TRUE): 0.7001142 to 2.4598858.
    centre, spread = mean_interval([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert spread is not None
    assert (centre - spread, centre + spread) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


def test_the_interval_of_few_values() -> None:
    assert mean_interval([7]) == (7, None)
    assert mean_interval([7, 7, 7]) == (7, 0)
    assert mean_interval([1, 3]) == pytest.approx((2, 12.706204736174698))  # deviation √2, divided by √2
    with pytest.raises(StatisticsError):
        mean_interval([])


def test_sign_flip_reproduces_fishers_own_example() -> None:
    # Darwin's plants, eighths of an inch: 1,726 of 32,768 arrangements (The Design of Experiments, section 21).
    differences = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert sign_flip(differences) == pytest.approx(1726 / 32768, rel=1e-12)


@pytest.mark.parametrize("differences", [[], [0, 0], [1], [2, -1], [1, 1, 2, 2, -3, 0], [3, 3, 3, -1, -1, 2]])
def test_sign_flip_equals_enumeration(differences: list[int]) -> None:
    sums = [
        sum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    share = sum(abs(flipped) >= abs(sum(differences)) for flipped in sums) / len(sums)
    assert sign_flip(differences) == pytest.approx(share, rel=1e-12)
    assert sign_flip([-value for value in differences]) == pytest.approx(sign_flip(differences), rel=1e-12)


def test_sign_flip_is_exact_for_thousands_of_digits() -> None:
    assert sign_flip([1] * 3000 + [-1] * 3000) == 1
    assert sign_flip([2] * 1000) == pytest.approx(2.0**-999, rel=1e-12)  # only all heads or all tails


def test_mcnemar_of_a_published_table() -> None:
    # Two culture media on 50 specimens, 12 and 2 differ (Armitage and Berry 1994, p. 127): P = 0.0129.
    medium_a, medium_b = torch.zeros(2, 50, dtype=torch.bool)
    medium_a[:20] = medium_b[:20] = True
    medium_a[20:32], medium_b[32:34] = True, True
    only_a, only_b, p = mcnemar(medium_a, medium_b)
    assert (only_a, only_b) == (12, 2)
    assert p == pytest.approx(2 * (1 + 14 + 91) / 2**14, rel=1e-12)
    assert round(p, 4) == 0.0129
    assert mcnemar(medium_b, medium_a) == pytest.approx((2, 12, p))


def test_mcnemar_counts_only_digits_that_differ() -> None:
    assert mcnemar(wrong(1, 2, 3), wrong(1, 2, 3)) == (0, 0, 1)
    assert mcnemar(wrong(1, 2), wrong(2, 3)) == (1, 1, 1)
    assert mcnemar(wrong(0, 1, 2, 3, 4), wrong()) == pytest.approx((5, 0, 2 / 32))


def test_for_one_seed_the_paired_test_is_mcnemars() -> None:
    pair = wrong(0, 1, 2, 3, 4, 5), wrong(5, 6)
    result = paired_over_seeds([pair])
    assert result["seeds"] == [{"only_a": 5, "only_b": 1, "p": pytest.approx(14 / 64)}]
    assert result["digits"] == {"a_errs_more": 5, "b_errs_more": 1, "p": pytest.approx(14 / 64)}
    assert (result["saved"], result["mean"], result["interval_95"]) == ([4], 4, None)


def test_the_same_errors_in_every_seed_count_once() -> None:
    pair = wrong(0, 1, 2, 3, 4, 5), wrong(5, 6)
    result = paired_over_seeds([pair] * 5)
    assert result["digits"] == {"a_errs_more": 5, "b_errs_more": 1, "p": pytest.approx(14 / 64)}
    assert (result["mean"], result["interval_95"]) == (4, 0)  # though other seeds would bring the same


def test_different_errors_in_every_seed_add_up() -> None:
    pairs = [(wrong(*range(5 * seed, 5 * seed + 5)), wrong()) for seed in range(4)]
    assert paired_over_seeds(pairs)["digits"]["p"] == pytest.approx(2 / 2**20, rel=1e-12)


def test_a_digit_is_weighted_by_the_seeds_in_which_it_is_wrong() -> None:
    # Differences 2, 1 and −1 over two seeds: 2 of the 8 flips reach the sum 4, 4 the sum 2.
    pairs = [(wrong(0, 1), wrong(2)), (wrong(0), wrong())]
    result = paired_over_seeds(pairs)
    assert result["saved"] == [1, 1]
    assert result["digits"] == {"a_errs_more": 2, "b_errs_more": 1, "p": pytest.approx(6 / 8)}


def test_results_on_different_digits_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"must be tested on the same digits; found results of \[20, 30\]"):
        paired_over_seeds([(wrong(1), wrong(2)), (wrong(1, digits=30), wrong(2, digits=30))])
    with pytest.raises(ValueError, match="no seeds to compare"):
        paired_over_seeds([])
