"""Students trained without some classes, and the effect of bias corrections (the paper's section 3).

A correction is one offset for the logits of the affected classes, as in the paper, or one per class:

- `none`
- `prior`: the mean predicted probability of these classes on the validation digits becomes their share of the
  training digits; no validation labels are used
- `prior of all`: the same for each of the ten classes separately
- `validation`: fewest errors on the labelled validation digits
- `test`: fewest errors on the test digits, as in the paper; not a result but a lower bound for any single offset
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.evaluation.significance import mean_interval
from training.model.network import CLASSES
from training.paper.class_bias import fewest_errors, match_prior


class TransferSet(NamedTuple):
    """The classes missing from a student's transfer set, and the classes whose biases are corrected together."""

    leave_out: list[int]
    moved: list[int]


TRANSFER_SETS = {
    "threeless": TransferSet(leave_out=[3], moved=[3]),
    "seveneight": TransferSet(leave_out=[0, 1, 2, 3, 4, 5, 6, 9], moved=[7, 8]),
}
"""By student. The paper raised the bias of the 3 by 3.5, and lowered those of 7 and 8 by 7.6."""

Offsets = dict[str, Tensor]
"""`float [10]` by correction."""


def find_offsets(logits: Tensor, labels: Tensor, prior: Tensor, moved: Sequence[int]) -> Offsets:
    """Return the corrections from the validation digits: their `logits [N, 10]` and `labels [N]`."""
    return {
        "none": torch.zeros(CLASSES),
        "prior": match_prior(logits, prior, tied=[moved]),
        "prior of all": match_prior(logits, prior, tied=[[digit] for digit in range(CLASSES)]),
        "validation": _one_offset(logits, labels, moved),
    }


def correct(
    logits: Sequence[Tensor], offsets: Sequence[Offsets], labels: Tensor, moved: Sequence[int]
) -> dict[str, Any]:
    """Return the result of every correction, and of `test`, on the test digits; `logits` and `offsets` are per seed.

    Per correction, over seeds: `errors`, those `on_moved` classes, and the mean `offset` of these minus the others'.
    """
    by_correction = {name: [of_seed[name] for of_seed in offsets] for name in offsets[0]}
    by_correction["test"] = [_one_offset(of_seed, labels, moved) for of_seed in logits]
    return {name: _count(logits, found, labels, moved) for name, found in by_correction.items()}


def _one_offset(logits: Tensor, labels: Tensor, moved: Sequence[int]) -> Tensor:
    offsets = torch.zeros(CLASSES)
    offsets[list(moved)] = fewest_errors(logits, labels, moved)
    return offsets


def _count(
    logits: Sequence[Tensor], offsets: Sequence[Tensor], labels: Tensor, moved: Sequence[int]
) -> dict[str, Any]:
    rest = [digit for digit in range(CLASSES) if digit not in moved]
    of_moved = torch.isin(labels, torch.tensor(moved))
    wrong = [(z + b).argmax(dim=1) != labels for z, b in zip(logits, offsets, strict=True)]
    return {
        "errors": over_seeds([int(of_seed.sum()) for of_seed in wrong]),
        "on_moved": over_seeds([int(of_seed[of_moved].sum()) for of_seed in wrong]),
        "offset": over_seeds([round(float(b[list(moved)].mean() - b[rest].mean()), 2) for b in offsets]),
    }


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return the values, their mean, and half the width of its 95 % interval (None for one seed)."""
    centre, half = mean_interval(values)
    return {
        "values": list(values),
        "mean": round(centre, 2),
        "interval_95": None if half is None else round(half, 2),
    }
