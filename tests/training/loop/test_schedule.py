"""Learning rate schedules, and the distributions of the augmentation."""

import math

import pytest
import torch
from torch import Tensor

from tests.support.training.samples import sample_test
from training.data.augmentation import augment, draw_affine
from training.loop.schedule import WARM_UP, one_cycle, plateau
from training.recipe.schema import Augmentation


def test_one_cycle_rises_once_and_falls_to_zero() -> None:
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


def dots(*places: tuple[int, int], count: int = 500) -> Tensor:
    """Black images, uint8 `[count, 28, 28]`, with a white pixel at each of these rows and columns."""
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    for row, column in places:
        images[:, row, column] = 255
    return images


def centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the centre of the ink of each image."""
    ink, places = images.float(), torch.arange(28.0)
    total = ink.sum((1, 2))
    return (ink.sum(2) @ places) / total, (ink.sum(1) @ places) / total


def test_without_augmentation_digits_are_unchanged() -> None:
    images = sample_test().images
    assert not Augmentation().enabled
    assert torch.equal(augment(images, Augmentation()), images)


def test_a_shift_moves_the_whole_image() -> None:
    torch.manual_seed(0)
    moved = augment(dots((14, 14)), Augmentation(shift=2))
    for place in centres(moved):
        assert 11.98 <= place.min() < 12.2
        assert 15.8 < place.max() <= 16.02
        assert place.unique().numel() > 300  # every digit has a transform of its own
    # Bilinear: a pixel becomes at most four, each rounded to whole ink.
    torch.testing.assert_close(moved.sum((1, 2)), torch.full((500,), 255), rtol=0, atol=2)


def test_elastic_displacements_correlate_nearby_only() -> None:
    settings = Augmentation(elastic=1)
    rows = {}
    for place in ((14, 14), (14, 15), (20, 20), (14, 3)):
        moved = augment(dots(place), settings, random=torch.Generator().manual_seed(0))
        rows[place] = centres(moved)[0] - place[0]
    # Place (13.5, 13.5) is a control point: its displacement has the standard deviation of the setting.
    assert rows[14, 14].std().item() == pytest.approx(1, rel=0.2)

    def correlation(one: tuple[int, int], other: tuple[int, int]) -> float:
        return float(torch.corrcoef(torch.stack([rows[one], rows[other]]))[0, 1])

    assert correlation((14, 14), (14, 15)) > 0.9
    assert abs(correlation((14, 14), (20, 20))) < 0.25
    assert abs(correlation((14, 14), (14, 3))) < 0.25


def test_mixup_adds_at_most_its_share_of_one_other_digit() -> None:
    images = torch.zeros(500, 28, 28, dtype=torch.uint8)
    images[torch.arange(500), torch.arange(500) // 28, torch.arange(500) % 28] = 200  # each its own pixel
    mixed = augment(images, Augmentation(mixup=0.4), random=torch.Generator().manual_seed(0)).float()
    own = mixed[torch.arange(500), torch.arange(500) // 28, torch.arange(500) % 28] / 200
    assert (own.min() >= 0.6) & (own.min() < 0.61)
    assert own.max() > 0.99
    torch.testing.assert_close(mixed.sum((1, 2)), torch.full((500,), 200.0), rtol=0, atol=1.1)
    assert (mixed > 0).sum((1, 2)).max() == 2


def test_equal_generators_give_equal_views() -> None:
    images, settings = sample_test().images, Augmentation(shift=2, rotation=10, elastic=1, mixup=0.5)
    one, again, other = (
        augment(images, settings, random=torch.Generator().manual_seed(n)) for n in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.dtype == torch.uint8
    assert not augment(torch.zeros_like(images), settings).any()  # background comes in from outside


def test_rotation_scale_and_shear_stay_within_their_bounds() -> None:
    torch.manual_seed(0)
    linear = draw_affine(2000, Augmentation(rotation=30))[:, :, :2]
    angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert (29 < angles.abs().max() <= 30.001) & (angles.min() < -29) & (angles.max() > 29)
    torch.testing.assert_close(linear @ linear.mT, torch.eye(2).expand(2000, 2, 2))
    zooms = 1 / draw_affine(2000, Augmentation(scale=0.2))[:, 0, 0]
    assert 0.8 <= zooms.min() < 0.81
    assert 1.19 < zooms.max() <= 1.2001
    sheared = draw_affine(2000, Augmentation(shear=20))
    assert sheared[:, 0, 1].abs().max() <= math.tan(math.radians(20)) + 1e-6
    torch.testing.assert_close(sheared[:, :, :2].det(), torch.ones(2000))  # shear keeps the area
