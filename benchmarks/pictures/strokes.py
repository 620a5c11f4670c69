"""Digits of MNIST as ink of any size and stroke width, the way a pen would have drawn them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Ink = NDArray[np.float32]
"""Coverage 0–1, `float32 [H, W]`."""


class Place(NamedTuple):
    """Position of a digit on a sheet."""

    height: float
    """Of the digit's bounding box, pixels; its width follows unless it is the longer side."""
    centre: tuple[float, float]
    """Row and column of the middle of the bounding box, pixels."""
    degrees: float = 0.0
    """Rotation, counterclockwise."""


def draw(
    digit: NDArray[np.uint8], place: Place, sheet: tuple[int, int], *, width: float | None = None
) -> Ink:
    """Draw `uint8 [28, 28]` on an empty sheet of (height, width) pixels.

    The outline is the half level of the enlarged digit, with an edge of about two pixels. `width` redraws its centre
    line with a pen of that many pixels. What exceeds the sheet is cut off.
    """
    rows, columns = np.nonzero(digit > 32)
    box = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = place.height / max(box.shape)
    padded = np.pad(box, 2)
    size = [max(1, round(side * scale)) for side in padded.shape]
    levels = Image.fromarray(padded).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    if place.degrees:
        levels = levels.rotate(place.degrees, Image.Resampling.BICUBIC, expand=True)
    ink = np.asarray(levels, np.float32) / 255
    ink = np.clip((ink - 0.5) * max(1.0, scale / 3) + 0.5, 0, 1)
    if width is not None:
        away = ndimage.distance_transform_edt(~centre_line(ink > 0.5))
        ink = np.clip(width / 2 + 0.5 - away, 0, 1).astype(np.float32)
    top, left = (round(place.centre[axis] - ink.shape[axis] / 2) for axis in (0, 1))
    found = np.zeros(sheet, np.float32)
    first = max(top, 0), max(left, 0)
    last = min(top + ink.shape[0], sheet[0]), min(left + ink.shape[1], sheet[1])
    found[first[0] : last[0], first[1] : last[1]] = ink[
        first[0] - top : last[0] - top, first[1] - left : last[1] - left
    ]
    return found


def centre_line(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the skeleton of `bool [H, W]`, one pixel wide (Zhang and Suen 1984, doi:10.1145/357994.358023)."""
    image = np.pad(mask, 1).astype(np.uint8)
    changed = True
    while changed:
        changed = False
        for step in (0, 1):
            north, east, south, west = image[:-2, 1:-1], image[1:-1, 2:], image[2:, 1:-1], image[1:-1, :-2]
            ring = [north, image[:-2, 2:], east, image[2:, 2:], south, image[2:, :-2], west, image[:-2, :-2]]
            neighbours = sum(one.astype(np.int8) for one in ring)
            turns = sum(
                ((one == 0) & (two == 1)).astype(np.int8)
                for one, two in zip(ring, [*ring[1:], ring[0]], strict=True)
            )
            free = (north * east * south if step == 0 else north * east * west) == 0
            free &= (east * south * west if step == 0 else north * south * west) == 0
            remove = (image[1:-1, 1:-1] == 1) & (neighbours >= 2) & (neighbours <= 6) & (turns == 1) & free
            if remove.any():
                image[1:-1, 1:-1][remove] = 0
                changed = True
    return image[1:-1, 1:-1].astype(bool)
