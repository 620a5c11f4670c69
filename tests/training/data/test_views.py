"""Views depend only on the recipe's seed and their number."""

import pytest
import torch

from tests.support.training.trainings import DIGITS, JITTERED, RECURRING, SMALL, new, taught, train
from training.data.views import PLAIN, Views
from training.model.network import build
from training.recipe.schema import Augmentation, Model

IMAGES = DIGITS[0].images
MOVED = Augmentation(shift=2, rotation=10, scale=0.1, shear=5, elastic=0.5)


def test_a_view_depends_on_seed_and_number_only() -> None:
    one, other = (
        Model(hidden=[8], augmentation=MOVED),
        Model(stages=[[4]], epochs=3, augmentation=MOVED, views=2),
    )
    state = torch.get_rng_state()
    first = Views(IMAGES, one, seed=4).show(2)
    torch.rand(5)
    again = Views(IMAGES, other, seed=4).show(2)  # other weights, other epochs, drawn at another time
    assert torch.equal(first, again)
    assert (first.dtype, first.shape) == (torch.uint8, IMAGES.shape)
    for different in (Views(IMAGES, one, seed=4).show(1), Views(IMAGES, one, seed=5).show(2), IMAGES):
        assert (different != first).flatten(1).any(1).all()  # every digit, not only some
    torch.set_rng_state(state)
    expected = torch.rand(3)
    torch.set_rng_state(state)
    Views(IMAGES, one, seed=4).show(3)
    assert torch.equal(torch.rand(3), expected)  # order of digits and dropout do not change with the views


def test_views_recur_in_order() -> None:
    def numbers(model: Model) -> list[int]:
        return [Views(IMAGES, model, seed=0).number(epoch) for epoch in range(1, 8)]

    assert numbers(Model(epochs=7, augmentation=MOVED, views=3)) == [1, 2, 3, 1, 2, 3, 1]
    assert numbers(Model(epochs=7, augmentation=MOVED, views=9)) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(Model(epochs=7, augmentation=MOVED)) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(Model(epochs=7, views=3)) == [PLAIN] * 7
    views = Views(IMAGES, Model(epochs=7, augmentation=MOVED, views=3), seed=0)
    assert torch.equal(views.show(2), views.show(2))
    assert torch.equal(views.show(PLAIN), IMAGES)


def test_teacher_student_and_control_are_trained_on_the_same_views() -> None:
    student = taught(RECURRING.model_copy(update={"hidden": [8], "batch_size": 50}))
    teacher = new(JITTERED, name="teacher")
    others = [new(student, teacher=build(SMALL)), new(student.without_teacher, name="student-alone")]
    for epoch in (1, 2):
        (seen, *also) = [training.views.show(training.views.number(epoch)) for training in (teacher, *others)]
        assert all(torch.equal(seen, view) for view in also)


def test_a_training_uses_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, torch.Tensor]] = []
    training = new(taught(RECURRING), teacher=build(SMALL))
    assert training.teacher
    ask = training.teacher.logits

    def logits(view: int, images: torch.Tensor) -> torch.Tensor:
        shown.append((view, images))
        return ask(view, images)

    monkeypatch.setattr(training.teacher, "logits", logits)
    train(training)
    assert [view for view, _ in shown] == [1, 2, 1, 2]
    for view, images in shown:
        assert torch.equal(images, Views(IMAGES, RECURRING, seed=0).show(view))


def test_other_images_have_the_same_transforms() -> None:
    views = Views(IMAGES, JITTERED, seed=0)
    other = views.of(IMAGES.clone())
    assert torch.equal(other.show(1), views.show(1))
    assert torch.equal(views.of(IMAGES.flip(0)).images[0], IMAGES[-1])
