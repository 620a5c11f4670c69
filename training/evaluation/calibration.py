"""Does a network know how sure it may be? Proper scores, reliability, and the temperature that mends most of it.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (2017, arXiv:1706.04599).

    temperature = fit_temperature(validation_logits, validation.labels)
    expected_calibration_error(test_logits / temperature, test.labels)

Logits are `float [N, classes]`, labels `int64 [N]`; all is computed in float64.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BINS = 15
"""As in the paper's tables."""
COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures outside are not looked for."""
HALVINGS = 50
"""Of the range of log T, which is 6 wide: float64 has no more."""


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of −ln p(label), in nats."""
    return functional.cross_entropy(logits.double(), labels).item()


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of Σ (p − y)² over the classes, 0 to 2 (Brier 1950)."""
    probabilities = torch.softmax(logits.double(), dim=1)
    wanted = functional.one_hot(labels, logits.shape[1])
    return (probabilities - wanted).square().sum(dim=1).mean().item()


def reliability(logits: Tensor, labels: Tensor, *, bins: int = BINS) -> list[dict[str, Any]]:
    """Return the bars of a reliability diagram: digits by confidence, in bins of equal width.

    Confidence is the probability of the answer. Each bin holds those `above` < confidence ≤ `up_to`, and has the
    number of `digits`, their mean `confidence` and their `accuracy`, both None where there are no digits.
    """
    confidences, answers = torch.softmax(logits.double(), dim=1).max(dim=1)
    right = (answers == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)
    places = torch.bucketize(confidences, edges[1:-1])
    counts = places.bincount(minlength=bins).tolist()
    sums = [places.bincount(weights, minlength=bins).tolist() for weights in (confidences, right)]
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

    Of a well calibrated network it is above 0 all the same: by chance, the more so the fewer the digits.
    """
    bars = [bar for bar in reliability(logits, labels, bins=bins) if bar["digits"]]
    gaps = [bar["digits"] * abs(bar["accuracy"] - bar["confidence"]) for bar in bars]
    return math.fsum(gaps) / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T for which `softmax(logits / T)` has the smallest negative log-likelihood (section 4.2).

    The likelihood is concave in 1/T; its slope is the label's logit less the mean logit under softmax, so T is
    found by bisection, the same every time. It lies in 0.05..20. Where every label has the largest logit there
    is no best T (the smaller the better, without end) and nothing to learn: it stays 1.
    """
    values = logits.double()
    wanted = values.gather(1, labels[:, None]).squeeze(1)
    if torch.equal(wanted, values.amax(dim=1)):
        return 1.0
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        mean = (torch.softmax(values / math.exp(middle), dim=1) * values).sum(dim=1)
        if mean.mean() > wanted.mean():
            low = middle  # too sure of its answers
        else:
            high = middle
    return math.exp((low + high) / 2)
