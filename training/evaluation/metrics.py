"""What one finished network gains and loses, beyond its number of errors: one JSON-able dict.

    evidence = collect_evidence(predict, test.images, test.labels, test_logits,
                                validation_labels=…, validation_logits=…, teacher_logits=…)

Logits are `float [N, classes]`, labels `int64 [N]`, images `uint8 [N, 28, 28]`. The validation digits are for the
temperature alone; nothing is chosen by the test digits.
"""

from collections.abc import Callable
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


def collect_evidence(
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
    """Return all that is known of a network: `images`, `labels` and `logits` are the test set's.

    - what `score` returns, and `errors_by_class`, by label;
    - `calibration`: the `temperature` that suits the validation digits, and `nll` (nats), `brier`, `ece` and the
      bars of `reliability` on the test digits `before` and `after` the logits are divided by it;
    - `fidelity` to the teacher on the test digits: `agreement` and `kl` (nats), None without `teacher_logits`;
    - `robustness`: see there. It asks the network 35 times for as many as `robustness_digits`, the whole test set
      if None, and costs that much time. Fewer are taken evenly from the whole: its two halves have different writers.
    """
    scored = score(logits, labels)
    count = min(robustness_digits or len(labels), len(labels))
    places = torch.arange(count) * len(labels) // count
    temperature = fit_temperature(validation_logits, validation_labels)
    return scored | {
        "errors_by_class": [sum(row) - row[label] for label, row in enumerate(scored["confusion"])],
        "calibration": {
            "temperature": temperature,
            "before": _calibration(logits, labels),
            "after": _calibration(logits.double() / temperature, labels),
        },
        "fidelity": None
        if teacher_logits is None
        else {"agreement": agreement(teacher_logits, logits), "kl": mean_kl(teacher_logits, logits)},
        "robustness": robustness(predict, images[places], labels[places], seed=seed),
        "robustness_digits": count,
    }


def score(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return errors, accuracy, loss (nats), the confusion matrix and every mistake, the surest one first.

    `confusion[label][answer]` counts digits; a mistake has the digit's place in the set, its label, the answer,
    and the probability the network gave it.
    """
    classes = logits.shape[1]
    probabilities, answers = torch.softmax(logits, dim=1).max(dim=1)
    wrong = torch.nonzero(answers != labels).flatten()
    wrong = wrong[probabilities[wrong].argsort(descending=True, stable=True)]
    confusion = torch.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)
    return {
        "errors": len(wrong),
        "accuracy": 1 - len(wrong) / len(labels),
        "loss": functional.cross_entropy(logits, labels).item(),
        "confusion": confusion.tolist(),
        "mistakes": [
            {
                "index": index,
                "label": int(labels[index]),
                "answer": int(answers[index]),
                "probability": round(float(probabilities[index]), 6),
            }
            for index in wrong.tolist()
        ],
    }


def robustness(predict: Predict, images: Tensor, labels: Tensor, *, seed: int = 0) -> dict[str, list[int]]:
    """Return the number of errors under every corruption, at strengths 1 to 5; every network sees the same."""
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
