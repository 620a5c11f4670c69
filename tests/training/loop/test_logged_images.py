"""The images of a request log in the epochs of a student: how many, which, with which loss."""

import pytest
import torch

from distillery.request_log.distinct import UNLABELLED
from tests.support.training.trainings import CPU, FEW, RECURRING, SMALL, new, taught, train
from training.data.mnist import Digits
from training.loop.logged_images import LoggedImages, Trust, images_per_epoch
from training.loop.losses import distillation_loss, mixed_loss
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Observer, Training
from training.recipe.schema import Distillation, Model

DISTILLATION = Distillation(temperature=4, alpha=0.7, log_share=0.2, log_repeats=20)
STUDENT = taught(SMALL, DISTILLATION)


def logged(count: int, model: Model = STUDENT, *, mnist: int = 120, labels: int = UNLABELLED) -> LoggedImages:
    images = torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1).expand(count, 28, 28).contiguous()
    digits = Digits(images, torch.full([count], labels))
    found = LoggedImages(digits, model, 0, mnist=mnist, device=CPU)
    found.teacher = SoftTargets(new(SMALL, name="teacher").network, CPU)
    return found


@pytest.mark.parametrize(
    ("count", "shown"),
    [(1, 20), (50, 1_000), (687, 13_740), (688, 13_750), (10_000, 13_750), (10**6, 13_750)],
)
def test_a_small_log_is_repeated_and_a_large_one_does_not_displace_mnist(count: int, shown: int) -> None:
    assert images_per_epoch(count, 55_000, share=0.2, repeats=20) == shown


@pytest.mark.parametrize("count", [2, 30, 47, 100])
def test_every_image_is_shown_before_any_is_shown_again(count: int) -> None:
    images = logged(count)
    assert images.size == min(30, 20 * count)  # a fifth of 150
    shown = torch.cat([images.places(number) for number in range(1, 9)])
    for start in range(0, len(shown) - count + 1, count):
        assert shown[start : start + count].sort().values.tolist() == list(range(count))
    assert images.places(2).tolist() == logged(count).places(2).tolist()


def test_there_are_as_many_samples_as_views_or_more_if_the_log_is_larger() -> None:
    recurring = taught(RECURRING, DISTILLATION)  # 2 views, 4 epochs
    assert logged(30, recurring).different == 2
    assert logged(80, recurring).different == 3
    assert logged(200, recurring).different == 4
    few = logged(80, recurring)
    assert torch.equal(few.sample(1).images, few.sample(4).images)
    assert not torch.equal(few.sample(1).images, few.sample(2).images)


def test_the_teacher_decides_which_loss_an_image_gets() -> None:
    for alpha, expected in ((0.7, {1.0, 0.7, 0.0}), (1.0, {1.0, 0.0})):
        model = taught(SMALL, DISTILLATION.model_copy(update={"alpha": alpha}))
        images = logged(30, model)
        targets = torch.eye(10)[torch.tensor([4] * 30)]
        labels = torch.tensor([UNLABELLED] * 10 + [4] * 10 + [5] * 10)
        alphas = images._alphas(labels, targets)
        assert {round(value, 6) for value in alphas.tolist()} == expected
        if alpha < 1:
            assert [round(alphas[row].item(), 6) for row in (0, 10, 20)] == [1, 0.7, 0]


def test_a_teacher_that_is_wrong_on_labelled_images_does_not_label_others() -> None:
    teacher = SoftTargets(new(SMALL, name="teacher").network, CPU)
    images = new(SMALL).digits.images[:200]
    predicted = teacher._compute(images).argmax(1)
    for wrong, count, unlabelled in ((0, 200, True), (10, 200, True), (11, 200, False), (49, 49, True)):
        labels = predicted.clone()
        labels[:wrong] = (labels[:wrong] + 1) % 10
        trust = Trust.of(teacher, Digits(images[:count], labels[:count]), 0.95)
        assert trust == (count, wrong, unlabelled)


def test_the_mixed_loss_is_the_mean_of_each_images_own_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 10, dtype=torch.float64, generator=generator)
    labels = torch.tensor([1, 2, 3, UNLABELLED, UNLABELLED, 6])
    alphas = torch.tensor([0.7, 0.7, 0.0, 1.0, 1.0, 0.0])
    rows = [
        distillation_loss(student[[i]], teacher[[i]], labels[[i]], alpha=alpha, temperature=4)
        for i, alpha in enumerate([0.7, 0.7, 0, 1, 1, 0])
    ]
    found = mixed_loss(student, teacher, labels, alphas, loss="kl", temperature=4, beta=1)
    assert found.item() == pytest.approx(torch.stack(rows).mean().item())


def test_a_student_learns_the_kind_of_images_in_a_log() -> None:
    digits, validation = new(SMALL).digits, new(SMALL).validation
    inverted = Digits(255 - digits.images, digits.labels)
    model = taught(SMALL.model_copy(update={"epochs": 8}), DISTILLATION.model_copy(update={"log_share": 0.5}))
    teacher = train(new(SMALL, name="teacher")).network
    errors = {}
    for with_log in (False, True):
        training = new(model, teacher=teacher)
        if with_log:
            training.logged = LoggedImages(inverted, model, 0, mnist=len(digits), device=CPU)
            training.logged.teacher = SoftTargets(teacher, CPU)
        training.logged_validation = Digits(255 - validation.images, validation.labels)
        train(training)
        errors[with_log] = training.history[-1]["log_errors"]
        assert training.history[-1]["accuracy"] <= 1
    # Of 100; the margin is ten standard deviations of what chance would give.
    assert errors[True] < errors[False] - 20


def test_an_epoch_after_a_resume_is_the_epoch_without_one() -> None:
    def start() -> Training:
        training = new(STUDENT, teacher=new(SMALL, name="teacher").network, digits=FEW)
        training.logged = logged(40, labels=3)
        return training

    first = train(start())
    second = train(start(), epochs=2)
    resumed = start()
    resumed.restore(*second.state())
    while not resumed.done:
        resumed.train_epoch(Observer())
    assert all(
        torch.equal(value, resumed.network.state_dict()[name])
        for name, value in first.network.state_dict().items()
    )
