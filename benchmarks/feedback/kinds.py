"""Kinds of images that MNIST does not have, made of its digits: what a service may receive."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from serving.model.tensors import SIDE, Images

Change = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.float64]]
"""From one image, `uint8 [28, 28]`, to ink that may exceed 0..255."""
PEN = 4
"""Width of the felt pen's tip, pixels."""
TILT = 30
"""Degrees."""
RULES = 7
"""Distance of ruled lines, pixels."""
INK = 255


class Kind(NamedTuple):
    """A kind of images."""

    description: str
    change: Change

    def draw(self, digits: Images, seed: int) -> Images:
        """Return `digits`, uint8 `[N, 28, 28]`, as images of this kind."""
        random = np.random.default_rng(seed)
        changed = np.stack([self.change(digit, random) for digit in digits])
        return np.round(changed).clip(0, INK).astype(np.uint8)


def _felt(digit: NDArray[np.uint8], _: np.random.Generator) -> NDArray[np.float64]:
    thick: NDArray[np.float64] = ndimage.grey_dilation(digit, (PEN, PEN)).astype(np.float64)
    return thick


def _tilted(digit: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.float64]:
    angle = TILT * random.choice([-1, 1])
    tilted: NDArray[np.float64] = ndimage.rotate(digit.astype(np.float64), angle, reshape=False, order=1)
    return tilted


def _ruled(digit: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.float64]:
    lines = np.arange(SIDE)[:, None] % RULES == random.integers(RULES)
    ruled: NDArray[np.float64] = np.maximum(digit, INK * lines).astype(np.float64)
    return ruled


KINDS = {
    "felt": Kind(f"written with a felt pen {PEN} pixels wide", _felt),
    "tilted": Kind(f"turned by {TILT} degrees either way", _tilted),
    "ruled": Kind(f"on paper with a line every {RULES} pixels", _ruled),
}
