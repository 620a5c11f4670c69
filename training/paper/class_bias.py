"""Bias corrections for a network trained without some classes, which it then predicts too rarely.

Hinton, Vinyals and Dean 2015, section 3: a student that never saw a 3 misclassifies many of them until the bias of
that class is raised; one that saw only 7s and 8s predicts these too often until their biases are lowered.

    offsets = match_prior(validation_logits, prior, tied=[[3]])         no labels needed
    offset = fewest_errors(validation_logits, validation.labels, [3])

Logits are `float [N, C]`; offsets are added to them. The paper chose its own by the test errors.
"""

from collections.abc import Sequence

import scipy  # loads scipy.optimize at its first use
import torch
from torch import Tensor
from torch.nn import functional

MAX_ROUNDS = 500
"""Ten classes need some tens."""
TOLERANCE = 1e-9
"""The iteration stops when no offset changes by more."""
BEYOND = 40.0
"""Nats past every digit's margin: the bracket of the offset. e⁻⁴⁰ is smaller than any share of digits."""


def match_prior(logits: Tensor, prior: Tensor, *, tied: Sequence[Sequence[int]]) -> Tensor:
    """Return offsets `float64 [C]` for which the mean predicted probabilities of the classes equal their `prior`.

    `prior` `[C]` is each class's share of the digits to come; it sums to 1. `tied` classes share one offset and match
    their common share; the other classes keep offset 0. This minimises `mean logsumexp(z + b) − prior · b`, convex in
    the offsets b, by coordinate descent over the groups, so the solution is unique (if all classes move: up to a
    constant, and the offsets get mean 0). If all digits have the same logits z it has a closed form: for one group of
    share p it is `ln(p / (1 − p)) − ln(Σ exp z of the group / Σ exp z of the others)`.
    """
    shares = [prior[list(classes)].sum().item() for classes in tied]
    offsets = torch.zeros(logits.shape[1], dtype=torch.float64)
    for _ in range(MAX_ROUNDS):
        before = offsets.clone()
        for classes, share in zip(tied, shares, strict=True):
            inside, outside = _split(logits.double() + offsets, classes)
            margins = inside.logsumexp(dim=1) - outside.logsumexp(dim=1)
            offsets[list(classes)] += _offset_for(share, margins)
        if sum(map(len, tied)) == len(offsets):
            offsets -= offsets.mean()
        if (offsets - before).abs().max() < TOLERANCE:
            break
    return offsets


def fewest_errors(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    """Return the offset of the logits of `classes` with the fewest misclassified digits.

    A digit's prediction changes once, where the best of `classes` overtakes the best of the others. Between these N
    offsets the number of errors is constant; all intervals are counted. Of several best ones, the middle of the widest
    is returned.
    """
    inside, outside = _split(logits.double(), classes)
    (best_inside, predicted_inside), (best_outside, predicted_outside) = inside.max(dim=1), outside.max(dim=1)
    switches, order = (best_outside - best_inside).sort()
    # Cumulative from the lowest offset, at which no digit is assigned to one of `classes`.
    gains = (predicted_inside == labels).long() - (predicted_outside == labels).long()
    correct = functional.pad(gains[order].cumsum(0), (1, 0))
    edges = torch.cat([switches[:1] - 1, switches, switches[-1:] + 1])
    best = int(torch.where(correct == correct.max(), edges.diff(), -1).argmax())
    return float(edges[best : best + 2].mean())


def _split(logits: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the logits of `classes` and those of the others, both `[N, C]`, −∞ elsewhere."""
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
    chosen[list(classes)] = True
    return logits.masked_fill(~chosen, -torch.inf), logits.masked_fill(chosen, -torch.inf)


def _offset_for(share: float, margins: Tensor) -> float:
    """Return the t with `mean sigmoid(margins + t) = share`; the left side increases with t."""

    def excess(t: float) -> float:
        return float(torch.sigmoid(margins + t).mean()) - share

    low, high = -float(margins.max()) - BEYOND, -float(margins.min()) + BEYOND
    return float(scipy.optimize.brentq(excess, low, high))
