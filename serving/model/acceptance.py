"""The confidence in a prediction, from the outputs of a graph; `export.acceptance` fits the rule.

Computed here rather than in the graph, and for one image without numpy: after a run, whose weights displace everything
else from the processor's caches, six small nodes or a few numpy calls take as long as a third of a small model.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.model.tensors import Scores

Digits = NDArray[np.int64]
"""`int64 [N]`: the most probable digits."""
Shares = NDArray[np.float64]
"""`float64 [N]`: confidences."""


def most_probable(probabilities: Scores) -> list[int]:
    """Return the most probable digit of each image."""
    if len(probabilities) == 1:
        [row] = probabilities.tolist()
        return [row.index(max(row))]
    digits: list[int] = probabilities.argmax(axis=1).tolist()
    return digits


def confidence_of(
    digits: Sequence[int], logits: Scores, probabilities: Scores, outlier: Scores, power: float
) -> list[float]:
    """Return the share of each digit in softmax([logits, outlier]), to the calibrating power.

    `digits` are the most probable ones; `outlier` is `float32 [N, 1]`, the logit of "no digit".
    """
    if len(digits) == 1:
        digit = digits[0]
        odds = math.exp(min(outlier.item() - logits.item(digit), 80))
        return [(1 / (1 / probabilities.item(digit) + odds)) ** power]
    shares: list[float] = confidences_of(np.asarray(digits), logits, probabilities, outlier, power).tolist()
    return shares


def confidences_of(
    digits: Digits, logits: Scores, probabilities: Scores, outlier: Scores, power: float
) -> Shares:
    """Return the same for many images as an array.

    In double precision, as for one image: an image has the same confidence alone and in a batch.
    """
    rows = np.arange(len(digits))
    differences = np.subtract(outlier[:, 0], logits[rows, digits], dtype=np.float64)
    odds = np.exp(np.minimum(differences, 80))
    shares: Shares = (1 / (np.divide(1, probabilities[rows, digits], dtype=np.float64) + odds)) ** power
    return shares
