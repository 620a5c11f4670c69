"""Photometric changes: amounts within the recipe's ranges, a share of the digits each, reproducible by seed."""

import math

import pytest
import torch
from torch import Tensor

from training.data.augmentation import augment
from training.data.photometric import CHANGES, blur, change_stroke, cut_out, draw_changes, raise_paper
from training.recipe.schema import Augmentation, Photometric

LIMITS = {
    "stroke": 0.5,
    "cutout": 10,
    "blur": 2,
    "contrast": 0.6,
    "background": 0.3,
    "gradient": 0.4,
    "noise": 0.3,
}
ALL = Photometric(probability=0.25, **LIMITS)
NONE = dict.fromkeys(LIMITS, 0)


def only(name: str, probability: float) -> Photometric:
    """One change, of that share of the digits."""
    return Photometric(probability=probability, **(NONE | {name: LIMITS[name]}))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(count: int = 1) -> Tensor:
    """Full ink in the middle 10x10 pixels; `float32 [count, 28, 28]`."""
    images = torch.zeros(count, 28, 28)
    images[:, 9:19, 9:19] = 255
    return images


def test_every_range_of_a_recipe_has_a_change() -> None:
    assert {*CHANGES, "probability"} == set(Photometric.model_fields)
    assert set(CHANGES) == set(LIMITS)


def test_without_ranges_nothing_is_changed_or_drawn() -> None:
    for off in (Photometric(**LIMITS), Photometric(probability=1, **NONE)):
        assert not Augmentation(photometric=off).enabled
    assert Augmentation(photometric=only("blur", 0.1)).enabled
    state = (random := seeded(0)).get_state()
    assert draw_changes(500, Photometric(**LIMITS), random) == []
    assert torch.equal(random.get_state(), state)  # so the views of recipes without it are unchanged


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_applies_to_its_share_of_the_digits_and_by_seed(name: str) -> None:
    images = square(2000).to(torch.uint8)
    settings = Augmentation(photometric=only(name, 0.25))
    one, again, other = (augment(images, settings, random=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    changed = one[(one != images).flatten(1).any(1)]
    # 0.25 ± 5 standard deviations of a binomial share; small amounts and cutouts beside the square change nothing.
    assert (0.15 if name == "cutout" else 0.2) < len(changed) / len(images) < 0.3
    assert len(changed.flatten(1).unique(dim=0)) > 50  # each digit by its own amount


def test_views_do_not_depend_on_threads_or_on_where_a_part_starts() -> None:
    images, settings = square(1500).to(torch.uint8), Augmentation(rotation=9, photometric=ALL)
    threads = torch.get_num_threads()
    try:
        views = []
        for count in (1, 2):
            torch.set_num_threads(count)
            views.append(augment(images, settings, random=seeded(3)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*views)
    assert torch.equal(augment(images[1000:], settings, random=seeded(3), after=1000), views[0][1000:])


def amounts(name: str, count: int = 4000) -> Tensor:
    """Drawn amounts of one change."""
    [drawn] = draw_changes(count, only(name, 1), seeded(0))
    return drawn.amounts


def test_amounts_are_uniform_up_to_their_limits() -> None:
    for name, low, high in (
        ("stroke", -0.5, 0.5),
        ("blur", 0, 2),
        ("contrast", 0.4, 1),
        ("background", 0, 0.3 * 255),
    ):
        drawn = amounts(name)
        assert low <= drawn.min() < low + 0.06 * (high - low)
        assert high - 0.03 * (high - low) < drawn.max() <= high + 1e-4
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    sides, rows, columns = amounts("cutout").unbind(1)
    assert (sides.min() >= 0) & (9.9 < sides.max() <= 10)
    for centres in (rows, columns):
        assert (6.5 <= centres.min() < 6.7) & (20.3 < centres.max() <= 20.5)
    deviations = amounts("noise").flatten(1).std(1) / 255
    assert (deviations.min() < 0.01) & (0.28 < deviations.max() < 0.33)


def test_a_gradient_rises_from_0_on_one_side_in_any_direction() -> None:
    ramps = amounts("gradient")
    torch.testing.assert_close(ramps.amin((1, 2)), torch.zeros(len(ramps)), atol=1e-3, rtol=0)
    assert 0.39 * 255 < ramps.amax((1, 2)).max() <= 0.4 * 255 + 1e-3
    steps = ramps.diff(dim=2)
    torch.testing.assert_close(steps, steps[:, :1, :1].expand_as(steps), atol=1e-3, rtol=0)  # linear
    corners = ramps[:, [0, 0, 27, 27], [0, 27, 0, 27]].argmax(1)
    assert corners.bincount(minlength=4).min() > 800


@pytest.mark.parametrize(("amount", "side"), [(1.0, 12), (-1.0, 8), (0.5, 11), (-0.5, 9)])
def test_a_stroke_grows_and_shrinks_by_pixels_on_each_side(amount: float, side: int) -> None:
    changed = change_stroke(square(), torch.full((1, 1, 1), amount))
    middle_row = changed[0, 14] / 255
    assert middle_row.sum().item() == pytest.approx(side)
    assert torch.equal(changed, changed.mT)


def test_a_cutout_removes_a_square_of_ink() -> None:
    ink = cut_out(torch.full((2, 28, 28), 255.0), torch.tensor([[6.0, 9.5, 20.5], [0.0, 14.0, 14.0]]))
    assert (ink[0] == 0).nonzero().amin(0).tolist() == [7, 18]
    assert (ink[0] == 0).nonzero().amax(0).tolist() == [12, 23]
    assert (ink[1] == 255).all()


def test_blur_keeps_the_ink_and_has_the_drawn_deviation() -> None:
    dot = torch.zeros(2, 28, 28)
    dot[:, 14, 14] = 255
    spread = blur(dot, torch.tensor([[1.0], [0.1]]))
    torch.testing.assert_close(spread.sum((1, 2)), torch.full((2,), 255.0), rtol=1e-4, atol=0)
    assert (spread[0, 14, 15] / spread[0, 14, 14]).item() == pytest.approx(math.exp(-0.5))
    torch.testing.assert_close(spread[1], dot[1])


def test_paper_rises_without_covering_ink() -> None:
    lifted = raise_paper(square(), torch.full((1, 1, 1), 51.0))
    assert (lifted[0, 0, 0], lifted[0, 14, 14]) == (51, 255)


def test_views_stay_within_bytes() -> None:
    images = square(500).to(torch.uint8)
    strong = Photometric(probability=1, **(LIMITS | {"noise": 1}))
    view = augment(images, Augmentation(photometric=strong), random=seeded(0))
    assert (view.dtype, view.shape) == (images.dtype, images.shape)
    assert (view == 255).any() & (view == 0).any()  # clipped, not wrapped: mean and paper stay in order
    assert view[:, 9:19, 9:19].float().mean() > view[:, :5].float().mean() + 40
