"""Sequential tests of error rates: valid at any stopping time, powerful enough to decide, safe for every count."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, nchypergeom_fisher

from serving.release.sequential import MIN_BLOCK, Comparison, Counts, Limit, log_likelihood_ratios

ALPHA = 0.05
REPEATS = 200
Rates = NDArray[np.float64]


def crossings(
    seed: int,
    stable: float | Rates,
    candidate: float | Rates,
    *,
    share: float = 0.1,
    block: int = 200,
    blocks: int = 100,
    tolerance: float = 2.0,
) -> dict[str, int]:
    """Return the block at which each e-value first reached 1 / ALPHA, on streams with these error rates.

    A rate holds for all blocks, or there is one for every block.
    """
    rng = np.random.default_rng(seed)
    requests = rng.binomial(block, share, blocks)
    errors = rng.binomial(requests, candidate)
    others = rng.binomial(block - requests, stable)
    comparison = Comparison(ALPHA, tolerance)
    found: dict[str, int] = {}
    for index in range(blocks):
        comparison.update(
            (int(others[index]), block - int(requests[index])), (int(errors[index]), int(requests[index]))
        )
        for name, value in (("worse", comparison.worse), ("as_good", comparison.as_good)):
            if value >= 1 / ALPHA:
                found.setdefault(name, index)
    return found


def share_of(crossed: str, run: Callable[[int], dict[str, int]]) -> float:
    return float(np.mean([crossed in run(seed) for seed in range(REPEATS)]))


def at_most(rate: float) -> float:
    """Return the share that a true rate exceeds once in 10,000 sets of repeats."""
    return float(binom.ppf(1 - 1e-4, REPEATS, rate)) / REPEATS


@pytest.mark.parametrize(("rate", "share"), [(0.005, 0.5), (0.05, 0.1), (0.4, 0.5)])
def test_an_equal_candidate_is_stopped_at_most_with_probability_alpha_although_every_block_is_read(
    rate: float, share: float
) -> None:
    assert share_of("worse", lambda seed: crossings(seed, rate, rate, share=share)) <= at_most(ALPHA)


@pytest.mark.parametrize("tolerance", [1.5, 2.0])
def test_a_candidate_at_the_tolerance_passes_at_most_with_probability_alpha(tolerance: float) -> None:
    passes = share_of(
        "as_good", lambda seed: crossings(seed, 0.03, 0.03 * tolerance, share=0.5, tolerance=tolerance)
    )
    assert passes <= at_most(ALPHA)


def test_an_error_rate_that_drifts_in_both_arms_stops_nothing() -> None:
    drift = np.linspace(0.001, 0.2, 100)
    assert share_of("worse", lambda seed: crossings(seed, drift, drift)) <= at_most(ALPHA)


@pytest.mark.parametrize(("rate", "requests"), [(0.01, 45_000), (0.05, 9_000)])
def test_a_candidate_with_twice_the_errors_is_stopped(rate: float, requests: int) -> None:
    stopped = share_of("worse", lambda seed: crossings(seed, rate, 2 * rate, blocks=requests // 200))
    assert stopped > 0.9  # 0.99


def test_an_equal_candidate_passes_and_a_better_one_passes_sooner() -> None:
    runs = {
        rate: [crossings(seed, 0.05, rate, share=0.5, blocks=60) for seed in range(100)]
        for rate in (0.05, 0.025)
    }
    passed = {rate: [run["as_good"] for run in several if "as_good" in run] for rate, several in runs.items()}
    assert len(passed[0.05]) > 90  # 100 of 100
    assert np.mean(passed[0.025]) < np.mean(passed[0.05])


def test_a_candidate_that_always_fails_is_stopped_within_the_first_block() -> None:
    comparison = Comparison(ALPHA, 2.0)
    comparison.update((0, 90), (10, 10))
    assert comparison.verdict == "worse"
    assert comparison.worse > 1e6


def test_the_likelihood_ratios_are_those_of_the_noncentral_hypergeometric_distribution() -> None:
    rng = np.random.default_rng(0)
    ratios = (0.05, 0.7, 1.0, 3.0, 40.0)
    for _ in range(100):
        others, requests = (int(n) for n in rng.integers(1, 80, 2))
        errors = int(rng.integers(0, others + requests + 1))
        failed = int(rng.integers(max(0, errors - others), min(requests, errors) + 1))
        found = log_likelihood_ratios((errors - failed, others), (failed, requests), 2.0, ratios)
        expected = [
            nchypergeom_fisher.logpmf(failed, others + requests, requests, errors, ratio)
            - nchypergeom_fisher.logpmf(failed, others + requests, requests, errors, 2.0)
            for ratio in ratios
        ]
        assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("odds_ratio", [0.1, 0.6, 1.0])
def test_the_expected_e_value_of_a_block_is_at_most_one_for_every_odds_ratio_of_the_null(
    odds_ratio: float,
) -> None:
    others, requests, errors = 30, 12, 9
    expected = 0.0
    for failed in range(errors + 1):
        comparison = Comparison(ALPHA, 2.0)
        comparison.update((errors - failed, others), (failed, requests))
        probability = nchypergeom_fisher.pmf(failed, others + requests, requests, errors, odds_ratio)
        expected += float(probability) * comparison.worse
    assert expected <= 1 + 1e-9
    if odds_ratio == 1:
        assert expected == pytest.approx(1)  # nothing is given away at the bound


@given(
    blocks=st.lists(
        st.tuples(*[st.integers(0, 10**9)] * 4).map(
            lambda n: ((min(n[:2]), max(n[:2])), (min(n[2:]), max(n[2:])))
        ),
        max_size=5,
    )
)
@settings(max_examples=50, deadline=None)
def test_every_count_gives_a_finite_e_value_and_a_state_that_continues(
    blocks: list[tuple[Counts, Counts]],
) -> None:
    comparison, limit = Comparison(ALPHA, 2.0, negligible=1e-3), Limit(ALPHA, 0.01)
    for stable, candidate in blocks:
        comparison.update(stable, candidate)
        limit.update(*candidate)
        restored = Comparison(ALPHA, 2.0, negligible=1e-3)
        restored.restore(json.loads(json.dumps(comparison.state())))
        values = (comparison.worse, comparison.as_good, limit.above, limit.below)
        assert np.isfinite(values).all()
        assert min(values) >= 0
        assert (restored.worse, restored.as_good, restored.verdict) == (
            comparison.worse,
            comparison.as_good,
            comparison.verdict,
        )
        comparison = restored


def test_blocks_without_errors_or_without_requests_are_no_evidence() -> None:
    comparison = Comparison(ALPHA, 2.0)
    for stable, candidate in [((0, 0), (0, 0)), ((0, 500), (0, 500)), ((5, 900), (0, 0)), ((0, 0), (3, 70))]:
        comparison.update(stable, candidate)
    assert comparison.worse == pytest.approx(1)
    assert comparison.as_good == pytest.approx(1)
    assert comparison.verdict is None


def test_small_blocks_are_joined_until_they_inform() -> None:
    comparison, whole = Comparison(ALPHA, 2.0), Comparison(ALPHA, 2.0)
    for _ in range(MIN_BLOCK // 2):
        comparison.update((0, 1), (0, 0))
        comparison.update((0, 0), (1, 1))
    whole.update((0, MIN_BLOCK // 2), (MIN_BLOCK // 2, MIN_BLOCK // 2))
    assert comparison.worse == pytest.approx(whole.worse)
    assert comparison.verdict == "worse"


def test_two_models_without_errors_are_as_good_as_each_other_below_a_negligible_rate() -> None:
    comparison, without = Comparison(ALPHA, 2.0, negligible=1e-3), Comparison(ALPHA, 2.0)
    for _ in range(20):
        comparison.update((0, 4000), (0, 1000))
        without.update((0, 4000), (0, 1000))
    assert comparison.verdict == "as_good"
    assert without.verdict is None


def test_a_negligible_error_rate_stops_nothing_although_it_is_higher() -> None:
    comparison, without = Comparison(ALPHA, 2.0, negligible=1e-2), Comparison(ALPHA, 2.0)
    for _ in range(20):
        comparison.update((0, 4000), (2, 1000))
        without.update((0, 4000), (2, 1000))
    assert comparison.verdict == "as_good"
    assert without.verdict == "worse"


def test_a_limit_is_crossed_by_a_higher_rate_and_not_by_its_own() -> None:
    def verdict(seed: int, rate: float) -> str | None:
        rng = np.random.default_rng(seed)
        limit = Limit(ALPHA, 0.01)
        for errors in rng.binomial(200, rate, 100):
            limit.update(int(errors), 200)
        return limit.verdict

    for rate, expected in ((0.02, "above"), (0.005, "below")):
        assert np.mean([verdict(seed, rate) == expected for seed in range(REPEATS)]) > 0.9
    for wrong in ("above", "below"):
        assert np.mean([verdict(seed, 0.01) == wrong for seed in range(REPEATS)]) <= at_most(ALPHA)


def test_a_verdict_stays() -> None:
    comparison = Comparison(ALPHA, 2.0)
    comparison.update((0, 90), (10, 10))
    comparison.update((0, 10), (0, 10**6))
    assert comparison.verdict == "worse"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Comparison(0.0, 2.0), "alpha: 0.0 is not a probability"),
        (lambda: Comparison(0.05, 1.0), "tolerance: 1.0 is not above 1"),
        (lambda: Comparison(0.05, float("nan")), "tolerance: nan"),
        (lambda: Comparison(0.05, 2.0, negligible=1.0), "negligible: 1.0"),
        (lambda: Limit(1.0, 0.1), "alpha: 1.0"),
        (lambda: Limit(0.05, 0.0), "limit: 0.0"),
        (lambda: Limit(0.05, 0.1).update(3, 2), "3 errors of 2 requests"),
        (lambda: Comparison(0.05, 2.0).update((0, 1), (-1, 1)), "candidate: -1 errors of 1 requests"),
    ],
)
def test_settings_and_counts_that_cannot_be_are_rejected(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
