"""The confidence in a prediction, from the outputs of a graph; `export.acceptance` fits the rule.

Computed here rather than in the graph: for one image, six small nodes would take longer than this arithmetic.
"""

import math

import numpy as np

from serving.model.tensors import Confidences, Scores


def confidence_of(logits: Scores, probabilities: Scores, outlier: Scores, power: float) -> Confidences:
    """Return `float32 [N]`: the largest share of a digit in softmax([logits, outlier]), to the calibrating power.

    `outlier` is `float32 [N, 1]`, the logit of "no digit".
    """
    if len(logits) == 1:  # numpy's calls would take longer than all the rest
        logit, probability = max(logits[0].tolist()), max(probabilities[0].tolist())
        share = 1 / (1 / probability + math.exp(min(outlier.item() - logit, 80)))
        return np.array((share**power,), np.float32)
    odds = np.exp(np.minimum(outlier[:, 0] - logits.max(axis=1), 80))
    confidences: Confidences = (1 / (1 / probabilities.max(axis=1) + odds)) ** np.float32(power)
    return confidences
