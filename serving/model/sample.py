"""The sample in a manifest: a few digits and the logits that the file computed for them when it was exported.

A service that loads a new version checks that it still computes them, on this machine, with this onnxruntime.
"""

import base64
import binascii
import zlib
from typing import Any

import numpy as np

from serving.model.graph_check import GraphError
from serving.model.repository import Manifest, Sample
from serving.model.session import Session
from serving.model.tensors import CLASSES, SIDE, Images, Scores

MAX_IMAGES = 64
_TOLERANCE = {"fp32": 1e-3, "int8": 0.1}
"""Largest difference of a logit, relative to the image's largest if that is above 1: int8 kernels round differently."""


def make_sample(images: Images, logits: Scores) -> Sample:
    """Return the sample of N ≤ 64 images `uint8 [N, 28, 28]` and their logits `float32 [N, 10]`."""
    content = base64.b64encode(zlib.compress(images.tobytes(), 9)).decode()
    return Sample(images=content, logits=[[round(float(value), 4) for value in row] for row in logits])


def check_sample(manifest: Manifest, session: Session) -> None:
    """Run the sample of a manifest, if it has one. Raises `GraphError`."""
    if manifest.sample is None:
        return
    images, expected = _read(manifest.sample)
    found = session.run(images).logits
    scale = np.maximum(1.0, np.abs(expected).max(axis=1, keepdims=True))
    difference = float((np.abs(found - expected) / scale).max())
    limit = _TOLERANCE[manifest.precision]
    if not difference <= limit:
        raise GraphError(
            f"its logits differ from those of its export by {difference:.2g}, relative to the largest one of the "
            f"image; at most {limit:g} is expected"
        )


def _read(sample: Sample) -> tuple[Images, Scores]:
    """Return images and logits of a sample. Raises `GraphError`."""
    try:
        expected = np.array(sample.logits, np.float32)
    except ValueError:
        raise GraphError("the logits of the sample in its manifest have rows of different lengths") from None
    count = len(sample.logits)
    size = count * SIDE * SIDE
    reader: Any = zlib.decompressobj()
    try:
        content = reader.decompress(base64.b64decode(sample.images, validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise GraphError(f"the sample in its manifest cannot be read: {error}") from None
    if len(content) != size or expected.shape != (count, CLASSES):
        raise GraphError(
            f"the sample in its manifest has {len(content):,} bytes of pixels and logits of the shape "
            f"{expected.shape}; expected {size:,} and ({count}, {CLASSES})"
        )
    return np.frombuffer(content, np.uint8).reshape(count, SIDE, SIDE), expected
