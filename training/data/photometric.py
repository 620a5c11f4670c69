"""Random changes of ink and paper, drawn for every digit: stroke width, cutouts, blur, contrast, paper and noise.

Each digit gets each change with the recipe's probability, independently of the others, in the order of `CHANGES`, by an
amount that is uniform up to the recipe's setting. Ink is 255, paper 0, as in MNIST; the functions work on floats.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from training.model.network import SIDE
from training.recipe.schema import Photometric

OFF_CENTRE = 7
"""Maximum distance of a cutout's centre from the image's, pixels along each axis: the digit is there."""
MIN_BLUR = 0.1
"""Standard deviation of the narrowest kernel, pixels; it changes nothing."""

Random = torch.Generator | None
Draw = Callable[[int, float, Random], Tensor]
"""From a number of digits and a setting of the recipe to their random amounts, `float32 [N, …]`."""
Apply = Callable[[Tensor, Tensor], Tensor]
"""From ink `float32 [N, 28, 28]` and amounts to ink, possibly outside 0..255."""


class Drawn(NamedTuple):
    """One change of some of the digits."""

    apply: Apply
    digits: Tensor
    """`int64 [n]`: indices of the changed digits."""
    amounts: Tensor
    """`float32 [n, …]`."""


def draw_changes(count: int, settings: Photometric, random: Random = None) -> list[Drawn]:
    """Draw the changes of `count` digits; on the CPU, from `random` or torch's global generator."""
    drawn: list[Drawn] = []
    if not settings.enabled:
        return drawn
    for name, (draw, apply) in CHANGES.items():
        if limit := getattr(settings, name):
            digits = torch.nonzero(torch.rand(count, generator=random) < settings.probability).flatten()
            drawn.append(Drawn(apply, digits, draw(len(digits), limit, random)))
    return drawn


def apply_changes(changes: list[Drawn], images: Tensor) -> Tensor:
    """Return ink `float32 [N, 28, 28]` within 0..255, with the digits changed in place."""
    for apply, digits, amounts in changes:
        places = digits.to(images.device)
        images[places] = apply(images[places], amounts.to(images.device))
    return images.clamp_(0, 255)


def change_stroke(images: Tensor, amounts: Tensor) -> Tensor:
    """Move each pixel towards the maximum of its 3x3 neighbourhood, or the minimum where the amount is negative."""
    sign = torch.sign(amounts)
    signed = images * sign  # a minimum is the maximum of the negative
    rows = signed.clone()
    torch.maximum(rows[:, 1:], signed[:, :-1], out=rows[:, 1:])
    torch.maximum(rows[:, :-1], signed[:, 1:], out=rows[:, :-1])
    widest = rows.clone()
    torch.maximum(widest[:, :, 1:], rows[:, :, :-1], out=widest[:, :, 1:])
    torch.maximum(widest[:, :, :-1], rows[:, :, 1:], out=widest[:, :, :-1])
    return images.lerp(widest * sign, amounts.abs())


def cut_out(images: Tensor, amounts: Tensor) -> Tensor:
    """Remove all ink from a square: amounts are its side and its centre, pixels (DeVries and Taylor 2017)."""
    sides, rows, columns = amounts.unsqueeze(2).unbind(1)
    places = torch.arange(SIDE, device=images.device)
    inside_rows, inside_columns = ((places - centre).abs() < sides / 2 for centre in (rows, columns))
    return images.masked_fill(inside_rows[:, :, None] & inside_columns[:, None, :], 0)


def blur(images: Tensor, deviations: Tensor) -> Tensor:
    """Convolve with Gaussians, one per digit; outside the image there is no ink."""
    places = torch.arange(SIDE, device=images.device)
    profiles = torch.exp(-(places**2) / (2 * deviations**2))
    profiles /= 2 * profiles.sum(1, keepdim=True) - 1
    kernels = profiles[:, (places[:, None] - places).abs()]
    return kernels @ images @ kernels  # symmetric: the same for rows and columns


def lower_contrast(images: Tensor, shares: Tensor) -> Tensor:
    """Scale the ink: pale on black paper."""
    return images * shares


def raise_paper(images: Tensor, paper: Tensor) -> Tensor:
    """Lift the paper to `paper`, 0..255, and the ink in proportion to what remains up to 255."""
    return paper + images * (1 - paper / 255)


def add_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Add `noise`, ink per pixel."""
    return images + noise


def _uniform(count: int, limit: float, random: Random) -> Tensor:
    return torch.rand(count, 1, 1, generator=random) * limit


def _draw_stroke(count: int, limit: float, random: Random) -> Tensor:
    return _uniform(count, 2 * limit, random) - limit


def _draw_cutout(count: int, limit: float, random: Random) -> Tensor:
    sides = torch.rand(count, 1, generator=random) * limit
    centres = (SIDE - 1) / 2 + OFF_CENTRE * (2 * torch.rand(count, 2, generator=random) - 1)
    return torch.cat([sides, centres], dim=1)


def _draw_blur(count: int, limit: float, random: Random) -> Tensor:
    return (torch.rand(count, 1, generator=random) * limit).clamp_min_(MIN_BLUR)


def _draw_share(count: int, limit: float, random: Random) -> Tensor:
    return 1 - _uniform(count, limit, random)


def _draw_paper(count: int, limit: float, random: Random) -> Tensor:
    return 255 * _uniform(count, limit, random)


def _draw_gradient(count: int, limit: float, random: Random) -> Tensor:
    """Return paper that rises linearly from 0 on one side of the image, in a random direction."""
    directions = 2 * math.pi * _uniform(count, 1, random)
    places = torch.linspace(-1, 1, SIDE)
    ramp = torch.cos(directions) * places[:, None] + torch.sin(directions) * places
    lowest = -(torch.cos(directions).abs() + torch.sin(directions).abs())
    return (ramp - lowest) / (-2 * lowest) * _draw_paper(count, limit, random)


def _draw_noise(count: int, limit: float, random: Random) -> Tensor:
    deviations = 255 * _uniform(count, limit, random)
    return torch.randn(count, SIDE, SIDE, generator=random) * deviations


CHANGES: dict[str, tuple[Draw, Apply]] = {
    "stroke": (_draw_stroke, change_stroke),
    "cutout": (_draw_cutout, cut_out),
    "blur": (_draw_blur, blur),
    "contrast": (_draw_share, lower_contrast),
    "background": (_draw_paper, raise_paper),
    "gradient": (_draw_gradient, raise_paper),
    "noise": (_draw_noise, add_noise),
}
"""By their name in a recipe, in the order in which they are applied: as pen, lens, light and sensor act on a digit."""
