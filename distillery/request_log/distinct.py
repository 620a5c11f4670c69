"""The distinct images of a log, and those of them that no model learns from, so that models can be compared on them.

An image is held out by a hash of its pixels: whatever the log and the model, also when the log has grown, and whether
or not a label is known yet.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.2
"""Share of the images."""
UNLABELLED = -1


class Distinct(NamedTuple):
    """The M distinct images of a log, in the order of their hashes."""

    keys: list[bytes]
    """The hash of each image."""
    rows: NDArray[np.int64]
    """The row of the log that has the image, the first if there are several."""
    labels: NDArray[np.int64]
    """`UNLABELLED` without feedback, and where several labels of equal images differ."""
    contradictory: NDArray[np.bool_]
    """Whether they differ."""
    places: NDArray[np.int64]
    """For each of the N rows of the log, the index of its image among these."""


def content_hash(image: NDArray[np.uint8]) -> bytes:
    """Return the SHA-256 of an image's 784 bytes."""
    return hashlib.sha256(image.tobytes()).digest()


def is_held_out(key: bytes) -> bool:
    """Return whether the image with this hash is used for comparison only."""
    return int.from_bytes(key[:8]) < HELD_OUT * 2**64


def distinct_images(images: NDArray[np.uint8], labels: NDArray[np.int8]) -> Distinct:
    """Return the distinct ones of `images`, `uint8 [N, 28, 28]`, with `labels`, `int8 [N]`."""
    hashes = [content_hash(image) for image in images]
    row_of: dict[bytes, int] = {}
    labels_of: dict[bytes, set[int]] = {}
    for row, (key, label) in enumerate(zip(hashes, labels.tolist(), strict=True)):
        row_of.setdefault(key, row)
        labels_of.setdefault(key, set()).update({label} - {UNLABELLED})
    keys = sorted(row_of)
    place_of = {key: place for place, key in enumerate(keys)}
    return Distinct(
        keys,
        np.array([row_of[key] for key in keys], np.int64),
        np.array([min(labels_of[key]) if len(labels_of[key]) == 1 else UNLABELLED for key in keys], np.int64),
        np.array([len(labels_of[key]) > 1 for key in keys], np.bool_),
        np.array([place_of[key] for key in hashes], np.int64),
    )
