"""Random affine and elastic transforms, mixup, neighbours and photometric changes, drawn for every digit.

torchvision's `RandomAffine` draws one transform for a whole batch; here every digit has its own.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from training.data.neighbours import Neighbours, add_neighbours
from training.data.photometric import Drawn, apply_changes, draw_changes
from training.model.network import SIDE
from training.recipe.schema import Augmentation

CHUNK = 500
"""Digits transformed at once: their images and grids fit into a core's cache."""
CONTROL_POINTS = 5
"""Elastic displacements are drawn at 5x5 points of the image, with bicubic interpolation between them."""


class Transforms(NamedTuple):
    """The random parameters of N digits."""

    affine: Tensor
    """`float32 [N, 2, 3]`: see `draw_affine`."""
    field: Tensor | None
    """`float32 [N, 2, 5, 5]`: displacements of the control points."""
    mixture: tuple[Tensor, Tensor] | None
    """Mixup: indices of the other digits, `int64 [N]`, and their weights, `float32 [N, 1, 1, 1]`."""
    neighbours: Neighbours | None
    changes: list[Drawn]
    """Photometric changes."""


def augment(
    images: Tensor, settings: Augmentation, *, random: torch.Generator | None = None, after: int = 0
) -> Tensor:
    """Return `images` (uint8 `[N, 28, 28]`, background 0), each with a random transform within `settings`.

    Rotation, shear, scale, shift, elastic displacement (Simard, Steinkraus, Platt 2003, with few control points instead
    of a blurred field), mixup with another digit (Zhang et al. 2018, arXiv:1710.09412, with a uniform weight), the
    remains of a neighbour (`training.data.neighbours`), and then the changes of `training.data.photometric`.
    Bilinear, with background outside the image. The random numbers are drawn on the CPU, from `random` or torch's
    global generator, so that views are the same on every device.
    `after`: the number of preceding images (whole chunks), whose random numbers are skipped.
    """
    for _ in range(after // CHUNK):
        _draw(CHUNK, settings, random)
    chunks = torch.split(images, CHUNK)
    return torch.cat([_apply(_draw(len(chunk), settings, random), chunk) for chunk in chunks])


def _draw(count: int, settings: Augmentation, random: torch.Generator | None) -> Transforms:
    affine = draw_affine(count, settings, random)
    field = mixture = neighbours = None
    if settings.elastic:
        field = torch.randn(count, 2, CONTROL_POINTS, CONTROL_POINTS, generator=random)
        field *= 2 * settings.elastic / SIDE  # the unit of the grid is half an image
    if settings.mixup:
        others = torch.randperm(count, generator=random)
        mixture = others, torch.rand(count, 1, 1, 1, generator=random) * settings.mixup
    if settings.neighbour:
        neighbours = Neighbours.draw(count, settings.neighbour, random)
    return Transforms(affine, field, mixture, neighbours, draw_changes(count, settings.photometric, random))


def _apply(transforms: Transforms, images: Tensor) -> Tensor:
    device = images.device
    shape = [len(images), 1, SIDE, SIDE]
    grid = functional.affine_grid(transforms.affine.to(device), shape, align_corners=False)
    if transforms.field is not None:
        smooth = functional.interpolate(
            transforms.field.to(device), size=(SIDE, SIDE), mode="bicubic", align_corners=True
        )
        grid = grid + smooth.permute(0, 2, 3, 1)
    moved = functional.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False)
    if transforms.mixture is not None:
        others, shares = (part.to(device) for part in transforms.mixture)
        moved = moved.lerp(moved[others], shares)
    moved = moved.squeeze(1)
    if transforms.neighbours is not None:
        moved = add_neighbours(moved, transforms.neighbours)
    return apply_changes(transforms.changes, moved).round_().to(torch.uint8)


def draw_affine(count: int, settings: Augmentation, random: torch.Generator | None = None) -> Tensor:
    """Return `float32 [count, 2, 3]`: maps from output to input coordinates, both in -1..1 (`affine_grid`)."""

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
