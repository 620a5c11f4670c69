"""Two models on the images of a request log: which predictions change, and which of the two is wrong more often.

Equal images count once, so that the images of the exact test are independent. Labels are those of feedback.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from distillery.request_log.distinct import UNLABELLED, Distinct, distinct_images, is_held_out
from distillery.request_log.read import RequestLog
from serving.model.tensors import Images
from training.evaluation.significance import mcnemar

LISTED = 10
"""Of the changes and confusions, the most frequent."""

Digits = NDArray[np.int64]


class Predicted(NamedTuple):
    """What a model predicts for N images."""

    digits: Digits
    accepted: NDArray[np.bool_] | None
    """None for a model without acceptance rule."""


Predict = Callable[[Images], Predicted]


def compare(log: RequestLog, stable: Predict, candidate: Predict, *, held_out: bool) -> dict[str, Any]:
    """Return the changes from `stable` to `candidate` and, on labelled images, the errors of both; JSON.

    With `held_out`, errors are counted on the images that no model learns from.
    """
    found = distinct_images(log.images, log.labels)
    images = np.ascontiguousarray(log.images[found.rows])
    before, after = stable(images), candidate(images)
    known = found.labels != UNLABELLED
    if held_out:
        known &= np.array([is_held_out(key) for key in found.keys], np.bool_)
    return {
        "rows": len(log),
        "images": len(found.keys),
        "labelled": int((found.labels != UNLABELLED).sum()),
        "contradictory": int(found.contradictory.sum()),
        "held_out_only": held_out,
        "changes": _changes(log, found, before, after),
        "accuracy": _accuracy(found.labels[known], before.digits[known], after.digits[known]),
    }


def interval(errors: int, images: int) -> tuple[float, float]:
    """Return the exact 95 % interval of an accuracy (Clopper and Pearson 1934)."""
    limits = scipy.stats.binomtest(images - errors, images).proportion_ci(0.95, method="exact")
    return float(limits.low), float(limits.high)


def _changes(log: RequestLog, found: Distinct, before: Predicted, after: Predicted) -> dict[str, Any]:
    changed = before.digits != after.digits
    pairs = Counter(zip(before.digits[changed].tolist(), after.digits[changed].tolist(), strict=True))
    # Horvitz and Thompson 1952: an image that was logged with probability p stands for 1/p images of the traffic.
    weights = 1 / log.table["rate"].to_numpy().astype(np.float64)
    both = before.accepted is not None and after.accepted is not None
    return {
        "images": int(changed.sum()),
        "share": round(float(changed.mean()), 6),
        "share_of_traffic": round(float(np.average(changed[found.places], weights=weights)), 6),
        "accepted_by_both": int((changed & before.accepted & after.accepted).sum()) if both else None,
        "accepted": [None if one.accepted is None else int(one.accepted.sum()) for one in (before, after)],
        "most_frequent": [
            {"stable": old, "candidate": new, "images": count}
            for (old, new), count in pairs.most_common(LISTED)
        ],
    }


def _accuracy(labels: Digits, before: Digits, after: Digits) -> dict[str, Any] | None:
    """Return errors, intervals, McNemar's exact test and the confusions that became more frequent; None unlabelled."""
    if not len(labels):
        return None
    wrong = {"stable": before != labels, "candidate": after != labels}
    test = mcnemar(torch.from_numpy(wrong["stable"]), torch.from_numpy(wrong["candidate"]))
    confusions = {
        name: Counter(zip(labels[wrong[name]].tolist(), digits[wrong[name]].tolist(), strict=True))
        for name, digits in (("stable", before), ("candidate", after))
    }
    worse = confusions["candidate"] - confusions["stable"]
    errors = {name: int(of_model.sum()) for name, of_model in wrong.items()}
    return {
        "images": len(labels),
        **{
            name: {
                "errors": count,
                "accuracy": round(1 - count / len(labels), 6),
                "interval_95": [round(end, 6) for end in interval(count, len(labels))],
            }
            for name, count in errors.items()
        },
        "only_stable_wrong": test.only_a,
        "only_candidate_wrong": test.only_b,
        "p": test.p,
        "worse_confusions": [
            {
                "label": label,
                "prediction": prediction,
                "stable": confusions["stable"][label, prediction],
                "candidate": confusions["candidate"][label, prediction],
            }
            for (label, prediction), _ in worse.most_common(LISTED)
        ],
    }
