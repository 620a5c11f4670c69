"""The images of a log that no model learns from, so that every model can be compared on them.

An image is held out by a hash of its pixels: whatever the log and the model, also when the log has grown, and whether
or not a label is known yet.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.2
"""Share of the images."""


def content_hash(image: NDArray[np.uint8]) -> bytes:
    """Return the SHA-256 of an image's 784 bytes."""
    return hashlib.sha256(image.tobytes()).digest()


def is_held_out(key: bytes) -> bool:
    """Return whether the image with this hash is used for comparison only."""
    return int.from_bytes(key[:8]) < HELD_OUT * 2**64
