"""Learning rates and augmentation do what their names say."""

import math

import pytest
import torch
from samples import sample_test

from training.augmentation import draw_transforms, jitter
from training.recipe import Augmentation
from training.schedule import WARM_UP, one_cycle, plateau

CPU = torch.device("cpu")


def test_one_cycle_rises_once_and_falls_to_nothing() -> None:
    rates = [one_cycle(step / 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[round(1000 * WARM_UP)] == pytest.approx(1)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("patience", [0, 2, 10])
def test_plateau_is_torchs_reduce_lr_on_plateau(patience: int) -> None:
    noise = torch.rand(60, generator=torch.Generator().manual_seed(patience)).tolist()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience, eps=0)
    losses: list[float] = []
    for epoch in range(60):
        losses.append(1 / (1 + epoch / 10) + noise[epoch] / 5)
        theirs.step(losses[-1])
        assert plateau(losses, patience) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_without_augmentation_digits_stay_as_they_are() -> None:
    images = sample_test().images.float()
    assert not Augmentation().enabled
    torch.testing.assert_close(jitter(images, Augmentation()), images, atol=0.01, rtol=0)


def test_a_shift_moves_the_whole_picture() -> None:
    images = torch.zeros(500, 28, 28)
    images[:, 14, 14] = 255
    torch.manual_seed(0)
    moved = jitter(images, Augmentation(shift=2))
    places = torch.arange(28.0)
    rows = (moved.sum(2) @ places) / moved.sum((1, 2))
    columns = (moved.sum(1) @ places) / moved.sum((1, 2))
    for place in (rows, columns):
        assert 12 <= place.min() < 12.2
        assert 15.8 < place.max() <= 16
        assert place.unique().numel() > 400  # every digit has a transform of its own
    torch.testing.assert_close(moved.sum((1, 2)), torch.full((500,), 255.0), rtol=1e-4, atol=0)


def test_rotation_scale_and_shear_stay_within_their_bounds() -> None:
    torch.manual_seed(0)
    linear = draw_transforms(2000, Augmentation(rotation=30), CPU)[:, :, :2]
    angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert (29 < angles.abs().max() <= 30.001) & (angles.min() < -29) & (angles.max() > 29)
    torch.testing.assert_close(linear @ linear.mT, torch.eye(2).expand(2000, 2, 2))
    zooms = 1 / draw_transforms(2000, Augmentation(scale=0.2), CPU)[:, 0, 0]
    assert 0.8 <= zooms.min() < 0.81
    assert 1.19 < zooms.max() <= 1.2001
    sheared = draw_transforms(2000, Augmentation(shear=20), CPU)
    assert sheared[:, 0, 1].abs().max() <= math.tan(math.radians(20)) + 1e-6
    torch.testing.assert_close(sheared[:, :, :2].det(), torch.ones(2000))  # shear keeps the area
