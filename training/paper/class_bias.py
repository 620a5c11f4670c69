"""Biases for a network that learnt without some classes: it knows them from its teacher, but expects them too rarely.

Hinton, Vinyals and Dean 2015, section 3: a student that never saw a 3 takes many threes for something else, until the
bias of that class is raised; one that saw only 7s and 8s gives these answers too often, until theirs are lowered.

    offsets = match_prior(validation_logits, prior, tied=[[3]])         without a label of the digits it looks at
    offset = fewest_errors(validation_logits, validation.labels, [3])   with them

Logits are `float [N, C]`; offsets are added to them. The paper found its own by the test errors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

ROUNDS = 500
"""At most; ten classes need some tens."""
CLOSE = 1e-9
"""Offsets that move by less have arrived."""
HALVINGS = 60
BEYOND = 40.0
"""Nats past every digit's margin; e⁻⁴⁰ is no share of digits at all."""


def match_prior(logits: Tensor, prior: Tensor, *, tied: Sequence[Sequence[int]]) -> Tensor:
    """Return offsets `float64 [C]` with which the mean predicted probabilities of the classes are their `prior`.

    `prior` `[C]` is each class's share of the digits to come, and sums to 1. Classes that are `tied` move together
    and get their common share; the others do not move. This minimises `mean logsumexp(z + b) − prior · b`, which is
    convex in the offsets b, along one group after the other; so there is one solution (if every class may move: but
    for a constant, and the offsets have mean 0). Where all digits have the same logits z it is known: for one group
    of share p it is `ln(p / (1 − p)) − ln(Σ exp z of the group / Σ exp z of the others)`.
    """
    shares = [prior[list(classes)].sum().item() for classes in tied]
    offsets = torch.zeros(logits.shape[1], dtype=torch.float64)
    for _ in range(ROUNDS):
        before = offsets.clone()
        for classes, share in zip(tied, shares, strict=True):
            inside, outside = _split(logits.double() + offsets, classes)
            margins = inside.logsumexp(dim=1) - outside.logsumexp(dim=1)
            offsets[list(classes)] += _raise_to(share, margins)
        if sum(map(len, tied)) == len(offsets):
            offsets -= offsets.mean()
        if (offsets - before).abs().max() < CLOSE:
            break
    return offsets


def fewest_errors(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    """Return the offset of the logits of `classes` with which the fewest digits are mistaken.

    A digit's answer changes once, where the best of `classes` overtakes the best of the others. Between these N
    places the errors are constant, and all of them are counted; of several best places it is the middle of the widest.
    """
    inside, outside = _split(logits.double(), classes)
    (best_inside, answer_inside), (best_outside, answer_outside) = inside.max(dim=1), outside.max(dim=1)
    turns, order = (best_outside - best_inside).sort()
    # From far below, where no digit is given to one of `classes`, past one turn after the other.
    gains = (answer_inside == labels).long() - (answer_outside == labels).long()
    right = functional.pad(gains[order].cumsum(0), (1, 0))
    edges = torch.cat([turns[:1] - 1, turns, turns[-1:] + 1])
    place = int(torch.where(right == right.max(), edges.diff(), -1).argmax())
    return float(edges[place : place + 2].mean())


def _split(logits: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the logits of `classes` and those of the others, both `[N, C]` with −∞ in the places of the rest."""
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
    chosen[list(classes)] = True
    return logits.masked_fill(~chosen, -torch.inf), logits.masked_fill(chosen, -torch.inf)


def _raise_to(share: float, margins: Tensor) -> float:
    """Return the t with `mean sigmoid(margins + t) = share`: the left side grows with t, so by bisection."""
    low, high = -float(margins.max()) - BEYOND, -float(margins.min()) + BEYOND
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if torch.sigmoid(margins + middle).mean() < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2
