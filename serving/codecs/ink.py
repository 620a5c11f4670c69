"""Convert the pixels of a picture to an image as in MNIST.

Light ink on a black background, cropped to the ink, scaled to fit 20×20 with its aspect ratio, and placed so that the
ink's centre of mass is the centre of a 28×28 image (LeCun, Cortes, Burges, *The MNIST database*).

A picture of 28×28 pixels is used unchanged.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from serving.model.tensors import SIDE

Plane = NDArray[np.uint8]
"""`uint8 [H, W]`"""

WORKING_SIDE = 256  # larger pictures are scaled down to this first

_BOX = 20
_NOISY_SIDE = 64  # smaller pictures were drawn, not photographed, and have no noise to remove
_MIN_CONTRAST = 24  # of 255, between ink and background; less is paper, noise or an empty picture
_TRACE = 20  # of 255; weaker ink is blur around the digit


def to_mnist(levels: NDArray[np.uint8]) -> Plane | None:
    """Convert `uint8 [H, W]` or `[H, W, 3]`, at most `WORKING_SIDE` a side, to `uint8 [28, 28]`; None without ink."""
    if levels.shape[:2] == (SIDE, SIDE):
        return np.asarray(Image.fromarray(levels).convert("L"))
    if min(levels.shape[:2]) > _NOISY_SIDE:
        levels = np.asarray(Image.fromarray(levels).filter(ImageFilter.MedianFilter(3)))
    ink = _ink(np.atleast_3d(levels))
    return None if ink is None else _centre(_fit(_crop(ink)))


def _ink(levels: NDArray[np.uint8]) -> Plane | None:
    """Distance of each pixel of `uint8 [H, W, C]` from the background, scaled to 0–255; None without ink.

    The background is the median colour of the picture's edge, so it may be dark or light, grey or coloured; variation
    along the edge is treated as the background's texture.
    """
    height, width, channels = levels.shape
    on_edge = np.ones((height, width), bool)
    on_edge[1:-1, 1:-1] = False
    background = np.median(levels[on_edge].reshape(-1, channels), axis=0)
    distance = np.abs(levels - background.astype(np.int32)).max(axis=2)
    contrast = int(distance.max())
    if contrast < _MIN_CONTRAST:
        return None
    texture = min(2 * np.quantile(distance[on_edge], 0.9), contrast / 2)
    ink: Plane = np.where(distance > texture, distance * 255 // contrast, 0).astype(np.uint8)
    return ink


def _crop(ink: Plane) -> Plane:
    """Crop to the bounding box of every pixel with more than a trace of ink."""
    rows, columns = np.nonzero(ink > _TRACE)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _fit(ink: Plane) -> Plane:
    """Scale the longer side to 20 pixels, the shorter one in proportion, and the strongest ink to 255."""
    height, width = ink.shape
    scale = _BOX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    fitted = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC), np.float32)
    stretched: Plane = (fitted * (255 / max(fitted.max(), 1))).astype(np.uint8)
    return stretched


def _centre(ink: Plane) -> Plane:
    """Place in a 28×28 image, with the centre of mass in the middle as far as the image allows."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (
        min(max(round(SIDE / 2 - _middle(ink.sum(axis=1 - axis))), 0), SIDE - ink.shape[axis])
        for axis in (0, 1)
    )
    image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image


def _middle(weights: NDArray[np.uint64]) -> float:
    """Centre of mass along one axis, in pixels; that of MNIST's digits is pixel 14 of 0–27."""
    return float(np.average(np.arange(len(weights)), weights=weights))
