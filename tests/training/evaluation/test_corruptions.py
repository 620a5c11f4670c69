"""Corruptions: amounts as in the table, reproducible by seed, increasing with strength."""

import math

import pytest
import torch
from torch import Tensor

from distillery import DistilleryError
from tests.support.training.samples import sample_test
from training.evaluation.corruptions import CHUNK, CORRUPTIONS, SIDE, corrupt

MIDDLE = (SIDE - 1) / 2
STRENGTHS = range(1, 6)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return sample_test().images


def applied(name: str, images: Tensor, strength: int) -> tuple[Tensor, float]:
    """The corrupted ink before it is rounded, and the amount in the table."""
    apply, amounts, _ = CORRUPTIONS[name]
    return apply(images, amounts[strength - 1], torch.Generator().manual_seed(0)), amounts[strength - 1]


def blob(row: float, column: float, *, width: float = 1.5) -> Tensor:
    """A round spot of ink at a position; `float32 [28, 28]`."""
    places = torch.arange(SIDE)
    rows, columns = (places[:, None] - row) ** 2, (places - column) ** 2
    return 255 * torch.exp(-(rows + columns) / (2 * width**2))


def centres(images: Tensor) -> Tensor:
    """Centre of the ink, `[N, 2]`: row and column from the image centre."""
    places = torch.arange(SIDE) - MIDDLE
    ink = images.sum(dim=(1, 2))
    return torch.stack(
        [(images.sum(dim=2) * places).sum(dim=1) / ink, (images.sum(dim=1) * places).sum(dim=1) / ink], dim=1
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_seed_gives_the_same_images_whatever_was_drawn_between(name: str, images: Tensor) -> None:
    before = images.clone()
    first = corrupt(images, name, 3, 7)
    torch.manual_seed(1)
    torch.rand(1)
    assert torch.equal(corrupt(images, name, 3, 7), first)
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["noise", "rotation", "translation", "scale", "occlusion"])
def test_other_seeds_and_other_digits_get_other_draws(name: str, images: Tensor) -> None:
    same = images[:1].expand(CHUNK + 40, SIDE, SIDE)
    corrupted = corrupt(same, name, 3, 0)
    assert not torch.equal(corrupted, corrupt(same, name, 3, 1))
    assert len(corrupted[:40].flatten(1).unique(dim=0)) > 1
    assert not torch.equal(corrupted[:40], corrupted[CHUNK:])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_strength_changes_more_than_the_previous_one(name: str, images: Tensor) -> None:
    amounts = [
        (corrupt(images, name, strength, 0).float() - images.float()).square().mean().item()
        for strength in STRENGTHS
    ]
    assert amounts[0] > 0
    assert amounts == sorted(set(amounts))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_noise_has_the_deviation_of_the_table(strength: int) -> None:
    noisy, deviation = applied("noise", torch.full((20, SIDE, SIDE), 128.0), strength)
    assert noisy.mean().item() == pytest.approx(128, abs=2)
    assert noisy.std().item() == pytest.approx(255 * deviation, rel=0.02)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_blur_spreads_a_dot_to_a_gaussian_and_keeps_its_ink(strength: int) -> None:
    dot = torch.zeros(1, SIDE, SIDE)
    dot[0, 14, 13] = 255
    spread, deviation = applied("blur", dot, strength)
    assert spread.sum().item() == pytest.approx(255, rel=1e-4)
    assert torch.equal(spread.argmax(), torch.tensor(14 * SIDE + 13))
    # Of sampled Gaussians of neighbouring pixels: exp(−1/(2σ²)).
    assert (spread[0, 14, 14] / spread[0, 14, 13]).item() == pytest.approx(math.exp(-1 / (2 * deviation**2)))
    assert (spread[0, 15, 13] / spread[0, 14, 13]).item() == pytest.approx(math.exp(-1 / (2 * deviation**2)))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_rotation_has_the_angle_of_the_table_in_both_directions(strength: int) -> None:
    turned, degrees = applied("rotation", blob(MIDDLE - 6, MIDDLE).repeat(40, 1, 1), strength)
    rows, columns = centres(turned).unbind(dim=1)
    angles = torch.rad2deg(torch.atan2(columns, -rows))
    torch.testing.assert_close(angles.abs(), torch.full((40,), float(degrees)), atol=0.2, rtol=0)
    assert 0 < int((angles > 0).sum()) < 40


@pytest.mark.parametrize("strength", STRENGTHS)
def test_translation_has_the_distance_of_the_table_in_all_directions(strength: int) -> None:
    moved, pixels = applied("translation", blob(MIDDLE, MIDDLE).repeat(40, 1, 1), strength)
    shifts = centres(moved)
    torch.testing.assert_close(shifts.norm(dim=1), torch.full((40,), float(pixels)), atol=0.05, rtol=0)
    quadrants = {(bool(row > 0), bool(column > 0)) for row, column in shifts.tolist()}
    assert len(quadrants) == 4


@pytest.mark.parametrize("strength", STRENGTHS)
def test_scale_enlarges_and_shrinks(strength: int) -> None:
    spot = blob(MIDDLE, MIDDLE, width=3)
    scaled, factor = applied("scale", spot.repeat(40, 1, 1), strength)
    areas = scaled.sum(dim=(1, 2)) / spot.sum()
    larger = areas > 1
    assert 0 < int(larger.sum()) < 40
    torch.testing.assert_close(areas[larger], torch.full_like(areas[larger], factor**2), rtol=0.02, atol=0)
    torch.testing.assert_close(areas[~larger], torch.full_like(areas[~larger], factor**-2), rtol=0.02, atol=0)


def test_occlusion_empties_a_whole_square_within_that_of_the_next_strength() -> None:
    white = torch.full((40, SIDE, SIDE), 255, dtype=torch.uint8)
    covered = torch.zeros(40, SIDE, SIDE, dtype=torch.bool)
    for strength, side in zip(STRENGTHS, CORRUPTIONS["occlusion"].amounts, strict=True):
        gone = corrupt(white, "occlusion", strength, 0) == 0
        assert gone.sum(dim=(1, 2)).tolist() == [side**2] * 40
        assert gone.any(dim=1).sum(dim=1).tolist() == [side] * 40
        assert not (covered & ~gone).any()
        covered = gone


@pytest.mark.parametrize("strength", STRENGTHS)
def test_contrast_preserves_each_images_mean(strength: int, images: Tensor) -> None:
    paler, share = applied("contrast", images.float(), strength)
    torch.testing.assert_close(paler.mean(dim=(1, 2)), images.float().mean(dim=(1, 2)))
    torch.testing.assert_close(paler.std(dim=(1, 2)), share * images.float().std(dim=(1, 2)))


def test_invalid_arguments_are_rejected(images: Tensor) -> None:
    with pytest.raises(DistilleryError, match="there is no corruption 'fog'; known: noise, blur, "):
        corrupt(images, "fog", 1, 0)
    for strength in (0, 6):
        with pytest.raises(DistilleryError, match=f"strength of blur must be 1 to 5, not {strength}"):
            corrupt(images, "blur", strength, 0)
    with pytest.raises(DistilleryError, match=r"not torch.float32 \[200, 28, 28\]"):
        corrupt(images.float(), "blur", 1, 0)
    with pytest.raises(DistilleryError, match=r"not torch.uint8 \[200, 784\]"):
        corrupt(images.flatten(1), "blur", 1, 0)
