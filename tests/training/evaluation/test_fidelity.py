"""Fidelity to the teacher against hand-computed values."""

import math

import pytest
import torch

from training.evaluation.fidelity import agreement, mean_kl


def test_agreement_compares_predictions_only() -> None:
    first = torch.tensor([[2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 0.0, 9.0], [1.0, 0.0, 0.0]])
    second = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert agreement(first, second) == agreement(second, first) == 0.75
    assert agreement(first, 3 * first + 1) == 1


def test_divergence_equals_hand_computed_values_in_both_directions() -> None:
    # p = (0.9, 0.1), q = (0.5, 0.5); and a second digit on which they agree.
    teacher = torch.tensor([[math.log(9), 0.0], [1.0, 2.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 0.0], [2.0, 3.0]], dtype=torch.float64)
    assert mean_kl(teacher, student) == pytest.approx((0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 2)
    assert mean_kl(student, teacher) == pytest.approx((0.5 * math.log(5 / 9) + 0.5 * math.log(5)) / 2)
    assert mean_kl(teacher, teacher) == 0


def test_divergence_of_certain_networks_is_finite() -> None:
    assert mean_kl(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])) == pytest.approx(1e4)
