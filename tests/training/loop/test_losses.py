"""The losses on soft targets against their closed forms; the papers are named in `training/loop/losses.py`."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.loop.losses import SOFT_LOSSES, distillation_loss
from training.recipe.schema import LossName

Logits = tuple[Tensor, Tensor, Tensor]
LOSSES = get_args(LossName)
every_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture
def logits() -> Logits:
    """Student's and teacher's logits of 6 digits, float64, and labels."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 4 * torch.randn(2, 6, 10, dtype=torch.float64, generator=generator)
    return student.requires_grad_(), teacher, torch.arange(6)


def soft(logits: Logits, loss: LossName, *, temperature: float = 4, beta: float = 1) -> Tensor:
    return distillation_loss(*logits, loss=loss, temperature=temperature, alpha=1, beta=beta)


def gradient(logits: Logits, loss: LossName, *, temperature: float = 4, beta: float = 1) -> Tensor:
    (found,) = torch.autograd.grad(soft(logits, loss, temperature=temperature, beta=beta), logits[0])
    return found


def centred(values: Tensor, over: int = 1) -> Tensor:
    return values - values.mean(over, keepdim=True)


def test_every_loss_name_is_implemented() -> None:
    assert tuple(SOFT_LOSSES) == LOSSES


@every_loss
@pytest.mark.parametrize("temperature", [0.5, 1, 20])
def test_equal_logits_have_loss_0(logits: Logits, loss: LossName, temperature: float) -> None:
    student, _, labels = logits
    same = student, student.detach().clone(), labels
    assert soft(same, loss, temperature=temperature, beta=2).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradient(same, loss, temperature=temperature), torch.zeros_like(student))


@every_loss
def test_a_gradient_step_lowers_the_loss(logits: Logits, loss: LossName) -> None:
    student, teacher, labels = logits
    nearer = student - 0.01 * gradient(logits, loss)
    assert 0 < soft((nearer, teacher, labels), loss) < soft(logits, loss)


@every_loss
def test_gradients_are_the_slope_of_the_loss(logits: Logits, loss: LossName) -> None:
    student, teacher, labels = logits
    assert torch.autograd.gradcheck(lambda z: soft((z, teacher, labels), loss, beta=3), [student])


@every_loss
def test_the_teacher_gets_no_gradient(logits: Logits, loss: LossName) -> None:
    student, teacher, labels = logits
    teacher.requires_grad_()
    distillation_loss(student, teacher, labels, loss=loss, temperature=2, alpha=0.5).backward()
    assert teacher.grad is None
    assert student.grad is not None


@every_loss
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_huge_logits_stay_finite(loss: LossName, size: float) -> None:
    student = torch.tensor([[size, -size, 0.0], [size, -size, 0.0], [size, size, -size]], requires_grad=True)
    teacher, labels = -student.detach(), torch.tensor([0, 1, 2])
    value = distillation_loss(student, teacher, labels, loss=loss, temperature=1, alpha=0.5)
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


@every_loss
def test_equal_classes_equal_digits_and_a_single_digit_stay_finite(logits: Logits, loss: LossName) -> None:
    _, teacher, labels = logits
    for student in (torch.zeros(6, 10), torch.arange(10.0).repeat(6, 1)):
        student.requires_grad_()
        for digits in (slice(0, 6), slice(0, 1)):
            some = student[digits], teacher[digits].float(), labels[digits]
            assert soft(some, loss).isfinite()
            (found,) = torch.autograd.grad(soft(some, loss), student)
            assert found.isfinite().all()


@every_loss
def test_float32_gives_a_float32_scalar_of_the_same_value(logits: Logits, loss: LossName) -> None:
    student, teacher, labels = logits
    value = soft((student.float(), teacher.float(), labels), loss)
    assert (value.shape, value.dtype) == ((), torch.float32)
    torch.testing.assert_close(value.double(), soft(logits, loss), rtol=1e-5, atol=0)


@every_loss
def test_the_mean_is_over_digits_alone(logits: Logits, loss: LossName) -> None:
    # beta 0: the second term of DIST compares the digits of a batch with one another.
    beta = 0 if loss == "dist" else 2
    each = [
        soft((logits[0][i : i + 1], logits[1][i : i + 1], logits[2][i : i + 1]), loss, beta=beta)
        for i in range(6)
    ]
    torch.testing.assert_close(soft(logits, loss, beta=beta), torch.stack(each).mean())


@every_loss
def test_alpha_is_the_share_of_the_soft_targets(logits: Logits, loss: LossName) -> None:
    student, _, labels = logits
    hard = functional.cross_entropy(student, labels)
    mixed = distillation_loss(*logits, loss=loss, temperature=4, alpha=0.7, beta=1)
    torch.testing.assert_close(mixed, 0.7 * soft(logits, loss) + 0.3 * hard)
    assert distillation_loss(*logits, loss=loss, temperature=4, alpha=0).item() == hard.item()


def test_a_term_without_weight_is_not_computed(logits: Logits) -> None:
    student, teacher, labels = logits
    nothing = torch.full_like(teacher, math.nan)
    assert distillation_loss(student, nothing, labels, temperature=4, alpha=0).isfinite()
    no_labels = torch.full_like(labels, 10)  # cross entropy would refuse the class
    assert distillation_loss(student, teacher, no_labels, temperature=4, alpha=1).isfinite()


@pytest.mark.parametrize("loss", ["kl", "dkd", "lskd", "dist"])
def test_a_constant_added_to_the_logits_changes_nothing(logits: Logits, loss: LossName) -> None:
    student, teacher, labels = logits
    torch.testing.assert_close(soft((student + 3, teacher - 5, labels), loss), soft(logits, loss))


def test_kl_of_two_classes_by_hand() -> None:
    # T = 2: p = softmax(ln 9, 0) = (0.9, 0.1), q = softmax(0, 0) = (0.5, 0.5).
    teacher = torch.tensor([[2 * math.log(9), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    loss = distillation_loss(student, teacher, torch.tensor([1]), temperature=2, alpha=0.7)
    assert loss.item() == pytest.approx(0.7 * 4 * kl + 0.3 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_gradient_is_q_minus_p_over_temperature_times_its_square(
    logits: Logits, temperature: float
) -> None:
    q, p = ((side / temperature).softmax(1) for side in logits[:2])
    expected = temperature**2 * (q - p) / temperature / 6
    torch.testing.assert_close(gradient(logits, "kl", temperature=temperature), expected)


def test_kl_at_infinite_temperature_matches_centred_logits(logits: Logits) -> None:
    difference = centred(logits[0] - logits[1])
    limit = difference.square().sum(1).mean() / (2 * 10)  # section 2 of the paper
    torch.testing.assert_close(soft(logits, "kl", temperature=1e4), limit, rtol=1e-3, atol=0)


def test_mse_is_that_limit_and_half_the_squared_difference_of_the_means(logits: Logits) -> None:
    difference = logits[0] - logits[1]
    limit = centred(difference).square().sum(1).mean() / (2 * 10)
    torch.testing.assert_close(soft(logits, "mse"), limit + difference.mean(1).square().mean() / 2)
    torch.testing.assert_close(gradient(logits, "mse"), difference.detach() / 10 / 6)


def test_mse_has_no_temperature(logits: Logits) -> None:
    assert soft(logits, "mse", temperature=1).item() == soft(logits, "mse", temperature=20).item()


@pytest.mark.parametrize("loss", ["kl", "mse", "lskd"])
def test_losses_of_one_term_have_no_beta(logits: Logits, loss: LossName) -> None:
    assert soft(logits, loss, beta=0).item() == soft(logits, loss, beta=8).item()


def test_dkd_of_three_classes_by_hand() -> None:
    # T = 2, label 1: p = (0.3, 0.6, 0.1), q = (0.25, 0.25, 0.5); the others are (3/4, 1/4) and (1/3, 2/3).
    teacher = 2 * torch.tensor([[0.3, 0.6, 0.1]], dtype=torch.float64).log()
    student = 2 * torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log()
    tckd = 0.6 * math.log(0.6 / 0.25) + 0.4 * math.log(0.4 / 0.75)
    nckd = 3 / 4 * math.log(3 / 4 * 3) + 1 / 4 * math.log(1 / 4 * 3 / 2)
    loss = soft((student, teacher, torch.tensor([1])), "dkd", temperature=2, beta=8)
    assert loss.item() == pytest.approx(4 * (tckd + 8 * nckd), rel=1e-12)


@pytest.mark.parametrize("target", [0.2, 0.9])
def test_dkd_is_kl_where_beta_is_what_the_teacher_leaves_to_the_others(logits: Logits, target: float) -> None:
    student, teacher, labels = logits
    temperature = 4.0
    # Give each label's logit the value at which its probability is `target`; then one beta serves all digits.
    label = functional.one_hot(labels, 10).bool()
    others = (teacher / temperature).masked_fill(label, -math.inf).logsumexp(1, keepdim=True)
    sure = torch.where(label, temperature * (others + math.log(target / (1 - target))), teacher)
    torch.testing.assert_close(
        (sure / temperature).softmax(1)[label], torch.full((6,), target, dtype=torch.float64)
    )
    decoupled = student, sure, labels
    torch.testing.assert_close(soft(decoupled, "dkd", beta=1 - target), soft(decoupled, "kl"))  # equation 6
    torch.testing.assert_close(gradient(decoupled, "dkd", beta=1 - target), gradient(decoupled, "kl"))


def test_dkd_gradient_of_each_term(logits: Logits) -> None:
    student, teacher, labels = logits
    label = functional.one_hot(labels, 10).bool()
    q, p = ((side.detach() / 4).softmax(1) for side in (student, teacher))
    q_others, p_others = (
        (side.detach() / 4).masked_fill(label, -math.inf).softmax(1) for side in (student, teacher)
    )
    missing = (p - q)[label].unsqueeze(
        1
    )  # what the student's label lacks in probability is spread over the others
    tckd = torch.where(label, -missing, missing * q_others)
    torch.testing.assert_close(gradient(logits, "dkd", beta=0), 4 * tckd / 6)
    torch.testing.assert_close(gradient(logits, "dkd", beta=3), 4 * (tckd + 3 * (q_others - p_others)) / 6)


def test_lskd_reproduces_figure_2_of_its_paper() -> None:
    # Figure 2 prints the z-scores ±1.162 ±0.387 of the teacher and −1.320 0.660 0.880 −0.220 of the first student,
    # whose loss is 0.0995, and 0 for a second student with the teacher's z-scores. They are made with a deviation
    # over C − 1 = 3 and T = 1, hence T = √(4/3) here.
    teacher = torch.tensor([[-3.0, 3.0, 1.0, -1.0]], dtype=torch.float64)
    first = torch.tensor([[-6.0, 3.0, 4.0, -1.0]], dtype=torch.float64)
    printed = torch.tensor([[-1.320, 0.660, 0.880, -0.220]], dtype=torch.float64)
    torch.testing.assert_close(first / first.std(1), printed, atol=5e-4, rtol=0)
    temperature, label = math.sqrt(4 / 3), torch.tensor([1])
    loss = soft((first, teacher, label), "lskd", temperature=temperature)
    assert loss.item() / temperature**2 == pytest.approx(0.0995, abs=5e-5)
    second = 0.3 * teacher + 2
    assert soft((second, teacher, label), "lskd", temperature=temperature).item() == pytest.approx(
        0, abs=1e-9
    )


def test_lskd_is_invariant_to_shift_and_scale(logits: Logits) -> None:
    student, teacher, labels = logits
    scales = torch.linspace(0.5, 20, 6, dtype=torch.float64).unsqueeze(1)  # each digit has one of its own
    scaled = scales * student + 7, 3 * teacher - 2, labels
    torch.testing.assert_close(soft(scaled, "lskd"), soft(logits, "lskd"), rtol=1e-5, atol=0)
    found = gradient(logits, "lskd")
    for direction in (
        torch.ones_like(student),
        student.detach(),
    ):  # so the gradient is at right angles to both
        torch.testing.assert_close(
            (found * direction).sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-5, rtol=0
        )


def test_lskd_is_kl_of_z_scores(logits: Logits) -> None:
    student, teacher = (centred(side) / side.std(1, correction=0, keepdim=True) for side in logits[:2])
    z_scores = student, teacher, logits[2]
    torch.testing.assert_close(soft(logits, "lskd"), soft(z_scores, "kl"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_one_minus_the_correlations(logits: Logits, temperature: float) -> None:
    q, p = ((side.detach() / temperature).softmax(1) for side in logits[:2])
    digits = [1 - torch.corrcoef(torch.stack([q[i], p[i]]))[0, 1] for i in range(6)]
    classes = [1 - torch.corrcoef(torch.stack([q[:, i], p[:, i]]))[0, 1] for i in range(10)]
    expected = temperature**2 * (torch.stack(digits).mean() + 3 * torch.stack(classes).mean())
    torch.testing.assert_close(soft(logits, "dist", temperature=temperature, beta=3).detach(), expected)


def test_dist_at_infinite_temperature_is_invariant_to_shift_and_scale(logits: Logits) -> None:
    # There the probabilities are the centred logits, up to one shift and one scale.
    student, teacher, labels = logits
    for beta in (0, 1):
        loss = soft((5 * teacher + 3, teacher, labels), "dist", temperature=1e5, beta=beta)
        assert loss.item() / 1e5**2 == pytest.approx(0, abs=1e-6)
    directions = [functional.normalize(centred(side.detach())) for side in (student, teacher)]
    correlations = (directions[0] * directions[1]).sum(1)
    loss = soft(logits, "dist", temperature=1e5, beta=0) / 1e5**2
    torch.testing.assert_close(loss.detach(), 1 - correlations.mean(), rtol=1e-3, atol=0)


def test_dist_without_variance(logits: Logits) -> None:
    student, teacher, labels = (side[:1] for side in logits)
    one = student, teacher, labels
    assert (
        soft(one, "dist", beta=5).item() == soft(one, "dist", beta=0).item()
    )  # one digit: columns of one value
    uniform = torch.zeros(6, 10, dtype=torch.float64)
    flat = soft(
        (uniform, logits[1], logits[2]), "dist", temperature=2
    )  # the student alone has no variance at all
    assert flat.item() == pytest.approx(2**2 * (0.5 + 0.5))
