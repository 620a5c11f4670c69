"""Calibration of a network's probabilities: proper scores, reliability, temperature scaling.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (2017, arXiv:1706.04599).

    temperature = fit_temperature(validation_logits, validation.labels)
    expected_calibration_error(test_logits / temperature, test.labels)

Logits are `float [N, classes]`, labels `int64 [N]`; all computations are in float64.
"""

import math
from typing import Any

import scipy  # loads scipy.optimize at its first use
import torch
from torch import Tensor
from torch.nn import functional

BINS = 15
"""As in the paper's tables."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of −ln p(label), in nats."""
    return functional.cross_entropy(logits.double(), labels).item()


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of Σ (p − y)² over the classes, 0 to 2 (Brier 1950)."""
    probabilities = torch.softmax(logits.double(), dim=1)
    targets = functional.one_hot(labels, logits.shape[1])
    return (probabilities - targets).square().sum(dim=1).mean().item()


def reliability(logits: Tensor, labels: Tensor, *, bins: int = BINS) -> list[dict[str, Any]]:
    """Return the bars of a reliability diagram: digits by confidence, in `bins` bins of equal width.

    Confidence is the probability of the predicted class. A bin holds the digits with `above` < confidence ≤ `up_to`;
    it has their number `digits`, their mean `confidence` and their `accuracy`, both None for an empty bin.
    """
    confidences, predicted = torch.softmax(logits.double(), dim=1).max(dim=1)
    correct = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)
    indices = torch.bucketize(confidences, edges[1:-1])
    counts = indices.bincount(minlength=bins).tolist()
    sums = [indices.bincount(weights, minlength=bins).tolist() for weights in (confidences, correct)]
    return [
        {
            "above": above,
            "up_to": up_to,
            "digits": count,
            "confidence": confidence / count if count else None,
            "accuracy": hits / count if count else None,
        }
        for above, up_to, count, confidence, hits in zip(
            edges[:-1].tolist(), edges[1:].tolist(), counts, *sums, strict=True
        )
    ]


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = BINS) -> float:
    """Return Σ |accuracy − confidence| over the bins, weighted by their share of digits, 0 to 1.

    By chance it is above 0 for a calibrated network too, the more so the fewer the digits.
    """
    bars = [bar for bar in reliability(logits, labels, bins=bins) if bar["digits"]]
    gaps = [bar["digits"] * abs(bar["accuracy"] - bar["confidence"]) for bar in bars]
    return math.fsum(gaps) / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T, 0.05 to 20, for which `softmax(logits / T)` has the smallest negative log-likelihood (section 4.2).

    The likelihood is concave in 1/T, and its slope is the mean logit of the label minus the mean logit under softmax;
    Brent's method finds its zero. Without errors no T is optimal (smaller is better without end); the result is then 1.
    """
    values = logits.double()
    of_labels = values.gather(1, labels[:, None]).squeeze(1)
    if torch.equal(of_labels, values.amax(dim=1)):
        return 1.0

    def slope(log_temperature: float) -> float:
        probabilities = torch.softmax(values / math.exp(log_temperature), dim=1)
        return float(of_labels.mean() - (probabilities * values).sum(dim=1).mean())

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    if slope(low) >= 0:  # underconfident at every T in the range
        return MIN_TEMPERATURE
    if slope(high) <= 0:
        return MAX_TEMPERATURE
    return math.exp(scipy.optimize.brentq(slope, low, high, xtol=1e-14))
