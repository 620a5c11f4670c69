"""Does the file answer as the network does? Asked of onnxruntime itself, on the bytes that will be served."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from export.errors import ExportError
from serving.model.repository import Parity
from training.model.network import Network, normalise

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Largest difference of two fp32 logits, relative to the largest logit of the image where that exceeds 1."""
BATCHES = (1, 2, 7, 256)


def open_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """A CPU session of a file or of a serialised graph, for measuring answers, not speed."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may be training here
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answer(session: onnxruntime.InferenceSession, images: Images) -> Logits:
    """Logits `float32 [N, 10]` of `uint8 [N, 28, 28]`, in batches."""
    batches = [images[i : i + 256] for i in range(0, len(images), 256)]
    return np.concatenate([session.run(["logits"], {"image": batch})[0] for batch in batches])


def measure_parity(network: Network, path: Path, images: Images) -> Parity:
    """Compare the file at `path` with `network`, computed in float64, on `uint8 [N, 28, 28]` images."""
    return _compare(copy.deepcopy(network).double().eval(), open_session(path), images)


def require_parity(network: Network, path: Path, digits: Images) -> Parity:
    """`measure_parity` of an fp32 file on `digits`, and on random, black and white images in several batches.

    Raises `ExportError` when the argmax of any image differs, or any logit by more than `TOLERANCE`.
    """
    exact, session = copy.deepcopy(network).double().eval(), open_session(path)
    for images in (*_hostile_images(), digits):
        parity = _compare(exact, session, images)
        if parity.disagreements or not parity.largest_difference <= TOLERANCE:  # NaN is a difference too
            raise ExportError(
                f"the exported graph does not answer as its network: over {len(images)} images "
                f"{parity.disagreements} digits differ (allowed: 0) and logits differ by up to "
                f"{parity.largest_difference:.2g} (allowed: {TOLERANCE}); nothing was published"
            )
    return parity


def _hostile_images() -> Iterator[Images]:
    noise = np.random.default_rng(0)
    for batch in BATCHES:
        yield noise.integers(0, 256, (batch, 28, 28), dtype=np.uint8)
        yield np.zeros((batch, 28, 28), np.uint8)
        yield np.full((batch, 28, 28), 255, np.uint8)


def _compare(network: Network, session: onnxruntime.InferenceSession, images: Images) -> Parity:
    found = answer(session, images)
    with (
        torch.inference_mode()
    ):  # in batches: the maps of a convolutional network take 100 kB and more an image
        batches = torch.split(torch.from_numpy(images), BATCHES[-1])
        wanted = torch.cat([network(normalise(batch).double()) for batch in batches]).numpy()
    size = np.maximum(np.abs(wanted).max(axis=1, keepdims=True), 1)
    return Parity(
        images=len(images),
        largest_difference=float((np.abs(found - wanted) / size).max()),
        disagreements=int((found.argmax(1) != wanted.argmax(1)).sum()),
    )
