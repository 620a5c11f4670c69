"""Remains of a neighbouring digit, as a cut through two touching digits leaves them.

In a line of digits, one that touches the next is cut off along a path that crosses little ink (`POST /read`). The path
is not where one digit ends and the other begins: it leaves parts of the neighbour's strokes, and takes some of the own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from training.model.network import SIDE

INK = 96
"""A pixel with more ink belongs to a stroke."""
OVERLAP = 1.5
"""Maximum overlap of two digits, pixels."""
SMOOTHING = 3.0
"""Maximum standard deviation of the Gaussian that smooths the path from row to row, pixels."""
BEFORE, BEHIND = -1.5, 2.0
"""Range of the distance between the path and the middle between both digits, pixels."""


class Neighbours(NamedTuple):
    """The random parameters of the digits that get a neighbour."""

    digits: Tensor
    """`int64 [n]`: their indices."""
    others: Tensor
    """`int64 [n]`: the indices of their neighbours."""
    left: Tensor
    """`bool [n]`: the neighbour is on the left, otherwise on the right."""
    overlap: Tensor
    """`float32 [n]`: of both digits, pixels."""
    smoothing: Tensor
    """`float32 [n]`: standard deviation, pixels."""
    offset: Tensor
    """`float32 [n]`: of the path, towards the neighbour, pixels."""

    @classmethod
    def draw(cls, count: int, share: float, random: torch.Generator | None = None) -> "Neighbours":
        """Draw the neighbours of a `share` of `count` digits, from `random` or torch's global generator."""
        digits = torch.nonzero(torch.rand(count, generator=random) < share).flatten()
        numbers = torch.rand(5, len(digits), generator=random)
        return cls(
            digits,
            (numbers[0] * count).long(),
            numbers[1] < 0.5,
            OVERLAP * numbers[2],
            0.5 + (SMOOTHING - 0.5) * numbers[3],
            BEFORE + (BEHIND - BEFORE) * numbers[4],
        )


def add_neighbours(images: Tensor, drawn: Neighbours) -> Tensor:
    """Return ink `float32 [N, 28, 28]`, with what a cut leaves of the neighbours, in place."""
    places, others, left, overlap, smoothing, offset = (each.to(images.device) for each in drawn)
    own, other = images[places], images[others]
    # A neighbour on the left is one on the right of the mirrored digit.
    own, other = (torch.where(left[:, None, None], each.flip(2), each) for each in (own, other))
    columns = torch.arange(SIDE, device=images.device)
    # Of each row, the number of columns up to the last one with own ink, and the first column with the other's.
    ends = ((own > INK) * (columns + 1)).amax(2)
    starts = SIDE - ((other > INK) * (SIDE - columns)).amax(2)
    both = (ends > 0) & (starts < SIDE)
    shift = (ends - starts).masked_fill(~both, -SIDE).amax(1).float() - overlap
    starts = starts + shift[:, None].round().clamp_min(0).long()
    source = columns - shift.round().clamp_min(0).long()[:, None]
    moved = other.gather(2, source.clamp_min(0)[:, None, :].expand_as(other)) * (source >= 0)[:, None, :]
    path = _middle(ends, starts, smoothing) + offset[:, None]
    cut = torch.maximum(own, moved) * (path[:, :, None] - columns).clamp(0, 1)
    images[places] = torch.where(left[:, None, None], cut.flip(2), cut)
    return images


def _middle(ends: Tensor, starts: Tensor, deviations: Tensor) -> Tensor:
    """Return the column in the middle between two digits by row, `float32 [n, 28]`, smoothed along the rows."""
    before, behind = (ends > 0).float(), (starts < SIDE).float()
    known = torch.maximum(before, behind)
    beside = torch.where(before > 0, ends + 1.0, starts - 1.0)
    middles = torch.where(before * behind > 0, (ends + starts) / 2, beside) * known
    rows = torch.arange(SIDE, device=ends.device)
    kernels = torch.exp(-((rows[:, None] - rows) ** 2) / (2 * deviations[:, None, None] ** 2))
    weights = (kernels @ known[:, :, None]).squeeze(2)
    smooth = (kernels @ middles[:, :, None]).squeeze(2) / weights.clamp_min(1e-6)
    return torch.where(weights > 1e-6, smooth, float(SIDE))
