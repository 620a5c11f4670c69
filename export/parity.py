"""Parity check: onnxruntime's outputs for the bytes that will be served against the PyTorch network's."""

import copy
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from export import ExportError
from export.graph import BATCH, Graph, Logits
from serving.model.repository import Parity
from serving.model.tensors import Images
from training.model.network import Network, normalise

TOLERANCE = 1e-4
"""Largest difference of two fp32 logits, relative to the largest logit of the image where that exceeds 1."""
BATCHES = (1, 2, 7, BATCH)


def network_logits(network: Network, images: Images) -> npt.NDArray[np.float64]:
    """Compute the logits `float64 [N, 10]` of images `uint8 [N, 28, 28]` in PyTorch, in float64."""
    exact = copy.deepcopy(network).double().eval()
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(images), BATCH)
        return torch.cat([exact(normalise(batch).double()) for batch in batches]).numpy()


def measure_parity(found: Logits, expected: npt.NDArray[np.float64]) -> Parity:
    """Compare the graph's logits with the network's, both `[N, 10]`."""
    size = np.maximum(np.abs(expected).max(axis=1, keepdims=True), 1)
    return Parity(
        images=len(found),
        largest_difference=float((np.abs(found - expected) / size).max()),
        disagreements=int((found.argmax(1) != expected.argmax(1)).sum()),
    )


def require_parity(parity: Parity) -> None:
    """Raise `ExportError` if any argmax differs, or any logit by more than `TOLERANCE`."""
    if parity.disagreements or not parity.largest_difference <= TOLERANCE:  # NaN fails too
        raise ExportError(
            f"the exported graph does not compute what its network computes: of {parity.images} images, "
            f"{parity.disagreements} get another digit (allowed: 0), and logits differ by up to "
            f"{parity.largest_difference:.2g} (allowed: {TOLERANCE}); nothing was published"
        )


def require_parity_on_extremes(graph: Graph, network: Network) -> None:
    """Require parity on random, black and white images in batches of 1, 2, 7 and 256. Raises `ExportError`."""
    for images in _extremes():
        require_parity(measure_parity(graph.logits(images), network_logits(network, images)))


def _extremes() -> Iterator[Images]:
    noise = np.random.default_rng(0)
    for batch in BATCHES:
        yield noise.integers(0, 256, (batch, 28, 28), dtype=np.uint8)
        yield np.zeros((batch, 28, 28), np.uint8)
        yield np.full((batch, 28, 28), 255, np.uint8)
