"""Random affine and elastic transforms and mixtures, drawn for every digit of a resident set.

torchvision's `RandomAffine` draws one transform for a whole batch; here each digit gets its own.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from training.model.network import SIDE
from training.recipe.schema import Augmentation

CHUNK = 500
"""Digits moved at once: their pictures and grids stay in a core's cache."""
CONTROL_POINTS = 5
"""Elastic displacements are drawn at 5x5 places of the picture; bicubic between them."""


class Change(NamedTuple):
    """What is drawn for some digits: how each moves, and with which other one it is mixed."""

    transforms: Tensor
    """`float32 [N, 2, 3]`: see `draw_transforms`."""
    field: Tensor | None
    """`float32 [N, 2, 5, 5]`: displacements of the control points."""
    mixture: tuple[Tensor, Tensor] | None
    """The other digits, `int64 [N]`, and their shares of the ink, `float32 [N, 1, 1, 1]`."""


def jitter(
    images: Tensor, settings: Augmentation, *, random: torch.Generator | None = None, after: int = 0
) -> Tensor:
    """Return `images` (uint8 `[N, 28, 28]`, background 0), each changed at random as `settings` allow.

    Rotated, sheared, scaled, shifted, locally displaced (Simard, Steinkraus, Platt 2003, with few control points in
    place of a blurred field), and mixed with another digit (Zhang et al. 2018, with a uniform share). Bilinear; what
    comes from outside the picture is background. The random numbers are drawn on the CPU, from `random` or torch's
    global generator, so that every device sees the same views.
    `after`: how many images (whole chunks of them) came before these and have used random numbers of their own.
    """
    for _ in range(after // CHUNK):
        _draw(CHUNK, settings, random)
    changed = [_apply(_draw(len(chunk), settings, random), chunk) for chunk in torch.split(images, CHUNK)]
    return torch.cat(changed)


def _draw(count: int, settings: Augmentation, random: torch.Generator | None) -> Change:
    transforms, field, mixture = draw_transforms(count, settings, random), None, None
    if settings.elastic:
        field = torch.randn(count, 2, CONTROL_POINTS, CONTROL_POINTS, generator=random)
        field *= 2 * settings.elastic / SIDE  # the grid's unit is half a picture
    if settings.mixup:
        others = torch.randperm(count, generator=random)
        mixture = others, torch.rand(count, 1, 1, 1, generator=random) * settings.mixup
    return Change(transforms, field, mixture)


def _apply(change: Change, images: Tensor) -> Tensor:
    device = images.device
    shape = [len(images), 1, SIDE, SIDE]
    grid = functional.affine_grid(change.transforms.to(device), shape, align_corners=False)
    if change.field is not None:
        smooth = functional.interpolate(
            change.field.to(device), size=(SIDE, SIDE), mode="bicubic", align_corners=True
        )
        grid = grid + smooth.permute(0, 2, 3, 1)
    moved = functional.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False)
    if change.mixture is not None:
        others, shares = (part.to(device) for part in change.mixture)
        moved = moved.lerp(moved[others], shares)
    return moved.squeeze(1).round_().to(torch.uint8)


def draw_transforms(count: int, settings: Augmentation, random: torch.Generator | None = None) -> Tensor:
    """Return `float32 [count, 2, 3]`: from places in the new picture to places in the old one, in -1..1."""

    def uniform(limit: float) -> Tensor:
        return torch.empty(count).uniform_(-limit, limit, generator=random)

    angle = uniform(math.radians(settings.rotation))
    shear = torch.tan(uniform(math.radians(settings.shear)))
    zoom = 1 / (1 + uniform(settings.scale))
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift = 2 * settings.shift / SIDE
    return torch.stack(
        [
            torch.stack([cos, cos * shear - sin, uniform(shift)], dim=1),
            torch.stack([sin, sin * shear + cos, uniform(shift)], dim=1),
        ],
        dim=1,
    )
