"""Calibration against hand-computed values, and against networks whose calibration is known."""

import math

import pytest
import torch
from torch import Tensor

from training.evaluation.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)

DIGITS = 20_000


def two_classes(*probabilities: float) -> Tensor:
    """Logits with these probabilities of class 0."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([torch.log(p), torch.log(1 - p)], dim=1)


def known_network() -> tuple[Tensor, Tensor]:
    """Logits of ten classes, and labels drawn from their softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(DIGITS, 10, generator=generator)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


def test_proper_scores_equal_hand_computed_values() -> None:
    logits, labels = two_classes(0.9, 0.6), torch.tensor([0, 1])
    # −(ln 0.9 + ln 0.4) / 2, and (2 · 0.1² + 2 · 0.6²) / 2
    assert negative_log_likelihood(logits, labels) == pytest.approx(-math.log(0.36) / 2)
    assert brier_score(logits, labels) == pytest.approx(0.37)


def test_scores_of_uniform_and_of_certain_predictions() -> None:
    labels = torch.arange(10)
    assert negative_log_likelihood(torch.zeros(10, 10), labels) == pytest.approx(math.log(10))
    assert brier_score(torch.zeros(10, 10), labels) == pytest.approx(0.9)
    sure = 1e4 * torch.eye(10)
    assert (negative_log_likelihood(sure, labels), brier_score(sure, labels)) == (0, 0)
    assert brier_score(sure.roll(1, dims=0), labels) == 2
    assert expected_calibration_error(sure, labels) == 0
    assert expected_calibration_error(sure.roll(1, dims=0), labels) == 1


def test_calibration_error_equals_a_hand_computed_value() -> None:
    # Two digits at confidence 0.9, both right; three at 0.6, one right: (2 · 0.1 + 3 · |1/3 − 0.6|) / 5.
    logits, labels = two_classes(0.9, 0.9, 0.6, 0.6, 0.4), torch.tensor([0, 0, 0, 1, 0])
    assert expected_calibration_error(logits, labels) == pytest.approx((2 * 0.1 + 3 * (0.6 - 1 / 3)) / 5)
    # In one bin the gaps cancel: accuracy 3/5, confidence (2 · 0.9 + 3 · 0.6) / 5.
    assert expected_calibration_error(logits, labels, bins=1) == pytest.approx(0.72 - 0.6)


def test_every_digit_is_in_its_bin() -> None:
    # 0.52 and 0.8 in fifteenths: (7/15, 8/15] and (11/15, 12/15], the edge belonging to the bin below it.
    bars = reliability(two_classes(0.52, 0.52, 0.79, 0.99), torch.tensor([0, 1, 0, 0]))
    assert len(bars) == 15
    assert {place: bar["digits"] for place, bar in enumerate(bars) if bar["digits"]} == {7: 2, 11: 1, 14: 1}
    assert (bars[7]["above"], bars[7]["up_to"]) == pytest.approx((7 / 15, 8 / 15))
    assert (bars[7]["confidence"], bars[7]["accuracy"]) == pytest.approx((0.52, 0.5))
    assert (bars[0]["confidence"], bars[0]["accuracy"]) == (None, None)


def test_an_edge_belongs_to_the_lower_bin() -> None:
    bars = reliability(torch.zeros(1, 2), torch.tensor([0]), bins=4)
    assert [bar["digits"] for bar in bars] == [0, 1, 0, 0]


def test_the_calibration_error_of_a_calibrated_network_is_noise() -> None:
    logits, labels = known_network()
    # Fifteen bins of about N/15 digits: |accuracy − confidence| is of the size √(p (1 − p) 15 / N) ≤ 0.014.
    assert expected_calibration_error(logits, labels) < 0.014
    assert expected_calibration_error(3 * logits, labels) > 0.1
    assert expected_calibration_error(logits / 3, labels) > 0.1


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_the_temperature_equals_the_scale_of_the_logits(scale: float) -> None:
    logits, labels = known_network()
    temperature = fit_temperature(scale * logits, labels)
    assert temperature == pytest.approx(scale, rel=0.02)
    assert temperature == fit_temperature(scale * logits, labels)
    assert expected_calibration_error(scale * logits / temperature, labels) < 0.014


def test_the_temperature_matches_the_closed_form() -> None:
    # Every digit has logits (4, 0) and nine of ten are right: softmax must say 0.9, so 4 / T = ln 9.
    logits, labels = torch.tensor([[4.0, 0.0]]).repeat(10, 1), torch.tensor([0] * 9 + [1])
    assert fit_temperature(logits, labels) == pytest.approx(4 / math.log(9), rel=1e-12)


def test_neighbouring_temperatures_are_less_likely() -> None:
    logits, labels = known_network()
    best = fit_temperature(2 * logits, labels)
    for other in (0.99 * best, 1.01 * best):
        assert negative_log_likelihood(2 * logits / best, labels) < negative_log_likelihood(
            2 * logits / other, labels
        )


def test_temperatures_are_bounded() -> None:
    logits = torch.tensor([[4.0, 0.0]]).repeat(10, 1)
    assert fit_temperature(logits, torch.zeros(10, dtype=torch.int64)) == 1  # all right
    assert fit_temperature(logits, torch.ones(10, dtype=torch.int64)) == pytest.approx(
        20
    )  # worse than chance
    nearly = torch.tensor([[0.01, 0.0]]).repeat(100, 1)
    assert fit_temperature(nearly, torch.tensor([0] * 99 + [1])) == pytest.approx(0.05)


def test_huge_logits_are_handled() -> None:
    logits, labels = torch.tensor([[1e5, 0.0], [1e5, 0.0]]), torch.tensor([0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(20)
    assert negative_log_likelihood(logits, labels) == pytest.approx(5e4)
