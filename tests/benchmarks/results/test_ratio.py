"""Ratios within rounds, their intervals, and when they are undecided; all from given numbers."""

from itertools import product
from statistics import median

import numpy as np
import pytest

from benchmarks.results.ratio import CONFIDENCE, Ratio


def test_the_median_is_of_the_ratios_within_a_round() -> None:
    student, teacher = [20.0, 4.0, 30.0, 8.0, 26.0], [10.0, 2.0, 10.0, 4.0, 20.0]
    assert Ratio.within_rounds(student, teacher) == Ratio(median=2.0, low=1.3, high=3.0, rounds=5)


def test_background_load_that_slows_a_whole_round_leaves_the_ratio_as_it_is() -> None:
    slow = [1.0, 0.2, 0.9, 0.1, 0.5, 1.0]
    ratio = Ratio.within_rounds([1500 * factor for factor in slow], [1000 * factor for factor in slow])
    assert ratio.low == pytest.approx(1.5)
    assert ratio.high == pytest.approx(1.5)
    assert ratio.decided


def test_an_improvement_of_latency_is_the_reference_by_the_case() -> None:
    assert Ratio.within_rounds([2.0] * 5, [3.0] * 5, lower_is_better=True).median == 1.5


@pytest.mark.parametrize(
    ("ratios", "interval"),
    [
        ([1.1, 1.2, 1.3, 1.4], (1.1, 1.4)),  # too few for a 90 % interval: their range
        ([1.1, 1.2, 1.3, 1.4, 1.5], (1.1, 1.5)),
        ([1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], (1.1, 1.7)),
        ([0.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 9.0], (1.2, 1.7)),  # one round on each side may be far off
        ([0.1, 0.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 9.0, 9.5, 9.9], (1.3, 9.0)),
    ],
)
def test_the_interval_has_the_ranks_of_the_sign_test(
    ratios: list[float], interval: tuple[float, float]
) -> None:
    shuffled = np.random.default_rng(0).permutation(ratios).tolist()
    ratio = Ratio.within_rounds(shuffled, [1.0] * len(ratios))
    assert (ratio.low, ratio.high) == interval
    assert ratio.median == median(ratios)


@pytest.mark.parametrize("rounds", [5, 6, 7, 8, 9, 10])
def test_the_interval_covers_the_true_median_at_least_as_often_as_it_says(rounds: int) -> None:
    """Counted over all ways in which the rounds can lie below (0.5) or above (2.0) a true ratio of 1."""
    covered = 0
    for ratios in product([0.5, 2.0], repeat=rounds):
        covered += not Ratio.within_rounds(ratios, [1.0] * rounds).decided
    assert covered / 2**rounds >= CONFIDENCE


@pytest.mark.parametrize(
    ("ratios", "text"),
    [
        ([1.4, 1.5, 1.6, 1.5, 1.5], "1.50× (1.40–1.60)"),
        ([0.9, 1.5, 1.6, 1.5, 1.5], "≈ 1.50× (0.90–1.60)"),
        ([0.5, 0.6, 0.7, 0.6, 0.6], "0.60× (0.50–0.70)"),
        ([1.5], "≈ 1.50× (1.50–1.50)"),  # one round decides nothing
        ([12.34, 12.34, 12.34, 12.34, 123.4], "12.3× (12.3–123)"),
    ],
)
def test_a_ratio_is_shown_with_its_interval_and_marked_where_it_is_undecided(
    ratios: list[float], text: str
) -> None:
    ratio = Ratio.within_rounds(ratios, [1.0] * len(ratios))
    assert str(ratio) == text
    assert str(Ratio.from_json(ratio.as_json())) == text
    assert ratio.as_json()["decided"] == (not text.startswith("≈"))


def test_unequal_numbers_of_rounds_are_rejected() -> None:
    with pytest.raises(ValueError, match="longer"):
        Ratio.within_rounds([1.0], [1.0, 2.0])
