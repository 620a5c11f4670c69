"""Metrics of a network on held-out digits, as one JSON-serialisable dict.

    metrics = all_metrics(predict, test.images, test.labels, test_logits,
                          validation_labels=…, validation_logits=…, teacher_logits=…)

Logits are `float [N, classes]`, labels `int64 [N]`, images `uint8 [N, 28, 28]`. The validation digits determine the
temperature only; nothing is chosen on the test digits.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.evaluation.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from training.evaluation.corruptions import CORRUPTIONS, corrupt
from training.evaluation.fidelity import agreement, mean_kl

Predict = Callable[[Tensor], Tensor]
"""From images to logits, in evaluation mode and without gradients."""


def all_metrics(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    *,
    validation_labels: Tensor,
    validation_logits: Tensor,
    teacher_logits: Tensor | None = None,
    robustness_digits: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all metrics of a network; `images`, `labels` and `logits` are those of the test set.

    - `error_metrics`, and `errors_by_class`, by label;
    - `calibration`: the `temperature` fitted on the validation digits, and `nll` (nats), `brier`, `ece` and the bars of
      `reliability` on the test digits, `before` and `after` the logits are divided by it;
    - `fidelity` to the teacher on the test digits: `agreement` and `kl` (nats); None without `teacher_logits`;
    - `robustness`: see there. It runs the network 35 times on `robustness_digits` test digits, all if None; fewer are
      taken evenly from the whole set, as its two halves have different writers.
    """
    errors = error_metrics(logits, labels)
    count = min(robustness_digits or len(labels), len(labels))
    indices = torch.arange(count) * len(labels) // count
    temperature = fit_temperature(validation_logits, validation_labels)
    return errors | {
        "errors_by_class": [sum(row) - row[label] for label, row in enumerate(errors["confusion"])],
        "calibration": {
            "temperature": temperature,
            "before": _calibration(logits, labels),
            "after": _calibration(logits.double() / temperature, labels),
        },
        "fidelity": None
        if teacher_logits is None
        else {"agreement": agreement(teacher_logits, logits), "kl": mean_kl(teacher_logits, logits)},
        "robustness": robustness(predict, images[indices], labels[indices], seed=seed),
        "robustness_digits": count,
    }


def error_metrics(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return `errors`, `accuracy`, `loss` (nats), the `confusion` matrix and the `misclassified` digits.

    `confusion[label][prediction]` counts digits. A misclassified digit has its `index` in the set, its `label`, the
    `prediction` and the `probability` that the network gave it; the most confident come first.
    """
    classes = logits.shape[1]
    probabilities, predicted = torch.softmax(logits, dim=1).max(dim=1)
    wrong = torch.nonzero(predicted != labels).flatten()
    wrong = wrong[probabilities[wrong].argsort(descending=True, stable=True)]
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return {
        "errors": len(wrong),
        "accuracy": 1 - len(wrong) / len(labels),
        "loss": functional.cross_entropy(logits, labels).item(),
        "confusion": confusion.tolist(),
        "misclassified": [
            {
                "index": index,
                "label": int(labels[index]),
                "prediction": int(predicted[index]),
                "probability": round(float(probabilities[index]), 6),
            }
            for index in wrong.tolist()
        ],
    }


def error_mask(metrics: Mapping[str, Any]) -> Tensor:
    """Return `bool [N]` of `error_metrics`: True for the misclassified digits."""
    mask = torch.zeros(sum(map(sum, metrics["confusion"])), dtype=torch.bool)
    mask[[digit["index"] for digit in metrics["misclassified"]]] = True
    return mask


def robustness(predict: Predict, images: Tensor, labels: Tensor, *, seed: int = 0) -> dict[str, list[int]]:
    """Return the number of errors for every corruption at strengths 1 to 5; `seed` determines the corrupted digits."""
    return {
        name: [
            int((predict(corrupt(images, name, strength, seed)).argmax(dim=1) != labels).sum())
            for strength, _ in enumerate(corruption.amounts, start=1)
        ]
        for name, corruption in CORRUPTIONS.items()
    }


def _calibration(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    return {
        "nll": negative_log_likelihood(logits, labels),
        "brier": brier_score(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "reliability": reliability(logits, labels),
    }
