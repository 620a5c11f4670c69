"""Random affine transforms, one for every digit of a resident batch.

torchvision's `RandomAffine` draws one transform for a whole batch; here each digit gets its own.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import Augmentation

SIDE = 28


def jitter(images: Tensor, settings: Augmentation) -> Tensor:
    """Return `images` (float `[N, 28, 28]`, background 0), each rotated, sheared, scaled and shifted at random.

    Bilinear; what comes from outside the picture is background. Uses torch's global random numbers.
    """
    transforms = draw_transforms(len(images), settings, images.device)
    grid = functional.affine_grid(transforms, [len(images), 1, SIDE, SIDE], align_corners=False)
    moved = functional.grid_sample(images.unsqueeze(1), grid, align_corners=False)
    return moved.squeeze(1)


def draw_transforms(count: int, settings: Augmentation, device: torch.device) -> Tensor:
    """Return `float32 [count, 2, 3]`: from places in the new picture to places in the old one, in -1..1."""

    def uniform(limit: float) -> Tensor:
        return torch.empty(count, device=device).uniform_(-limit, limit)

    angle = uniform(math.radians(settings.rotation))
    shear = torch.tan(uniform(math.radians(settings.shear)))
    zoom = 1 / (1 + uniform(settings.scale))
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift = 2 * settings.shift / SIDE  # the grid's unit is half a picture
    return torch.stack(
        [
            torch.stack([cos, cos * shear - sin, uniform(shift)], dim=1),
            torch.stack([sin, sin * shear + cos, uniform(shift)], dim=1),
        ],
        dim=1,
    )
