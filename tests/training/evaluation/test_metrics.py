"""Metrics of a network: a linear one, fitted to real digits."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.training.samples import sample_test, sample_training
from training.evaluation.calibration import fit_temperature, negative_log_likelihood
from training.evaluation.corruptions import CORRUPTIONS, corrupt
from training.evaluation.metrics import all_metrics, error_metrics, robustness

TEACHER_SCALE = 3.0
"""The teacher's logits are the student's, scaled: same predictions, higher confidence."""


class Linear:
    """Least squares to the labels; ink of 0 to 1, and a constant."""

    def __init__(self) -> None:
        digits, self.validation = sample_training()
        self.test = sample_test()
        x = self.inputs(digits.images)
        targets = x.T @ functional.one_hot(digits.labels).double()
        self.weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1], dtype=torch.float64), targets)

    def __call__(self, images: Tensor) -> Tensor:
        return 10 * (self.inputs(images) @ self.weights).float()

    def inputs(self, images: Tensor) -> Tensor:
        ink = images.flatten(1).double() / 255
        return torch.cat([ink, torch.ones(len(ink), 1, dtype=torch.float64)], dim=1)


@pytest.fixture(scope="module")
def network() -> Linear:
    return Linear()


@pytest.fixture(scope="module")
def metrics(network: Linear) -> dict[str, Any]:
    logits = network(network.test.images)
    return all_metrics(
        network,
        network.test.images,
        network.test.labels,
        logits,
        validation_labels=network.validation.labels,
        validation_logits=network(network.validation.images),
        teacher_logits=TEACHER_SCALE * logits,
    )


def test_error_metrics_equal_hand_computed_values() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    scored = error_metrics(logits, torch.tensor([0, 0, 0, 0]))
    # ln(1 + e⁻²), ln 2, ln(1 + e), ln(1 + e³)
    assert scored["loss"] == pytest.approx((0.126928 + 0.693147 + 1.313262 + 3.048587) / 4, abs=1e-6)
    assert (scored["errors"], scored["accuracy"], scored["confusion"]) == (2, 0.5, [[2, 2], [0, 0]])
    # The most confident first: e³ / (1 + e³), e / (1 + e).
    assert scored["misclassified"] == [
        {"index": 3, "label": 0, "prediction": 1, "probability": 0.952574},
        {"index": 2, "label": 0, "prediction": 1, "probability": 0.731059},
    ]


def test_counts_agree_and_are_json_serialisable(metrics: dict[str, Any]) -> None:
    assert json.loads(json.dumps(metrics)) == metrics
    errors = metrics["errors"]
    assert 0 < errors < 100
    assert sum(metrics["errors_by_class"]) == len(metrics["misclassified"]) == errors
    assert metrics["accuracy"] == pytest.approx(1 - errors / 200)
    for label, row in enumerate(metrics["confusion"]):
        assert (sum(row), 20 - row[label]) == (20, metrics["errors_by_class"][label])
    for state in ("before", "after"):
        assert sum(bar["digits"] for bar in metrics["calibration"][state]["reliability"]) == 200


def test_the_validation_digits_set_the_temperature(network: Linear, metrics: dict[str, Any]) -> None:
    calibration = metrics["calibration"]
    validation = network(network.validation.images)
    assert calibration["temperature"] == fit_temperature(validation, network.validation.labels)
    logits = network(network.test.images).double()
    assert calibration["before"]["nll"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert calibration["after"]["nll"] == negative_log_likelihood(
        logits / calibration["temperature"], network.test.labels
    )
    assert calibration["after"]["nll"] < calibration["before"]["nll"]
    assert calibration["after"]["ece"] < calibration["before"]["ece"]


def test_fidelity_is_to_the_teacher(network: Linear, metrics: dict[str, Any]) -> None:
    assert metrics["fidelity"]["agreement"] == 1
    logits = network(network.test.images).double()
    p, q = (TEACHER_SCALE * logits).log_softmax(dim=1), logits.log_softmax(dim=1)
    assert metrics["fidelity"]["kl"] == pytest.approx((p.exp() * (p - q)).sum(dim=1).mean().item(), rel=1e-5)


def test_a_network_without_a_teacher_has_no_fidelity(network: Linear) -> None:
    metrics = all_metrics(
        network,
        network.test.images,
        network.test.labels,
        network(network.test.images),
        validation_labels=network.validation.labels,
        validation_logits=network(network.validation.images),
    )
    assert metrics["fidelity"] is None


def test_robustness_counts_errors_on_the_corrupted_digits(network: Linear, metrics: dict[str, Any]) -> None:
    table = metrics["robustness"]
    assert {name: len(errors) for name, errors in table.items()} == dict.fromkeys(CORRUPTIONS, 5)
    predicted = network(corrupt(network.test.images, "occlusion", 4, 0)).argmax(dim=1)
    assert table["occlusion"][3] == int((predicted != network.test.labels).sum())
    assert all(metrics["errors"] < errors[4] for errors in table.values())
    again = robustness(network, network.test.images, network.test.labels)
    other = robustness(network, network.test.images, network.test.labels, seed=1)
    assert again == table != other
