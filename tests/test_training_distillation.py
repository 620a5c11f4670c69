"""The distillation loss against its closed forms (Hinton, Vinyals, Dean 2015, section 2)."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.distillation import distillation_loss


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits of 6 digits, float64, and labels."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 4 * torch.randn(2, 6, 10, dtype=torch.float64, generator=generator)
    return student.requires_grad_(), teacher, torch.arange(6)


def test_equal_logits_cost_nothing(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, labels = logits
    for temperature in (0.5, 1, 20):
        loss = distillation_loss(student, student.detach().clone(), labels, temperature=temperature, alpha=1)
        assert loss.item() == pytest.approx(0, abs=1e-12)


def test_logits_that_differ_by_a_constant_cost_nothing(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, labels = logits
    loss = distillation_loss(student, student.detach() + 3, labels, temperature=4, alpha=1)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_two_classes_by_hand() -> None:
    # T = 2: p = softmax(ln 9, 0) = (0.9, 0.1), q = softmax(0, 0) = (0.5, 0.5).
    teacher = torch.tensor([[2 * math.log(9), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    loss = distillation_loss(student, teacher, torch.tensor([1]), temperature=2, alpha=0.7)
    assert loss.item() == pytest.approx(0.7 * 4 * kl + 0.3 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_gradient_is_q_minus_p_over_temperature_times_its_square(
    logits: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    student, teacher, labels = logits
    distillation_loss(student, teacher, labels, temperature=temperature, alpha=1).backward()
    q, p = torch.softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1)
    expected = temperature**2 * (q - p) / temperature / len(labels)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected.detach())


def test_infinite_temperature_matches_centred_logits(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = logits
    loss = distillation_loss(student, teacher, labels, temperature=1e4, alpha=1)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(loss, difference.square().sum(1).mean() / (2 * 10), rtol=1e-3, atol=0)


def test_the_mean_is_over_digits_alone(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = logits
    together = distillation_loss(student, teacher, labels, temperature=3, alpha=0.4)
    each = [
        distillation_loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], temperature=3, alpha=0.4)
        for i in range(6)
    ]
    torch.testing.assert_close(together, torch.stack(each).mean())


def test_alpha_zero_is_cross_entropy(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = logits
    loss = distillation_loss(student, teacher, labels, temperature=20, alpha=0)
    assert loss.item() == functional.cross_entropy(student, labels).item()


def test_the_teacher_gets_no_gradient(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = logits
    teacher.requires_grad_()
    distillation_loss(student, teacher, labels, temperature=2, alpha=0.5).backward()
    assert teacher.grad is None


def test_huge_logits_stay_finite() -> None:
    student, teacher = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    assert distillation_loss(student, teacher, torch.tensor([0]), temperature=1, alpha=0.5).isfinite()
