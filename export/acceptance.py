"""The acceptance rule of a model: which of its predictions are to be trusted.

    p = softmax([logits, outlier])        an eleventh class: no digit
    confidence = max(p[:10]) ** power     computed by `serving.model.acceptance`
    accepted = confidence >= threshold

`outlier`, an output of the graph, is a linear unit on the last hidden layer: a logistic regression of images without a
digit against digits, whose offset is the energy logsumexp(logits) (Liu et al. 2020, arXiv:2010.03759; learning from
drawn outliers: Hendrycks et al. 2019, arXiv:1812.04606). It is fitted on training digits. `power` is fitted on
validation digits, and turns p, which allows for images without a digit, into the probability that the prediction for a
digit is correct. The threshold is the lowest one at which the share of errors among accepted validation digits is at
most the stated risk.
"""

from typing import NamedTuple

import numpy as np
import onnx
import scipy  # loads scipy.optimize and scipy.stats at their first use
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.graph import Graph
from export.outliers import Samples
from export.splits import Splits
from serving.model.acceptance import confidence_of, most_probable
from serving.model.repository import OUTLIER, Acceptance
from serving.model.tensors import Images
from training.data.mnist import Digits

RISK = 0.002
"""Largest share of errors among accepted validation digits: 0.1 %, and 0.1 % for digits whose label is wrong.

Northcutt, Athalye, Mueller 2021 (arXiv:2103.14749) find 0.15 % wrong labels in MNIST.
"""
LEVEL = 0.95
"""Confidence level of the bound on that share."""
PENALTY = 1e-4
"""Of the squared weights of the outlier unit, on features of unit variance."""
ITERATIONS = 100


class OutlierUnit(NamedTuple):
    """Weights of the eleventh logit, `float32 [features]`, and its bias."""

    weight: NDArray[np.float32]
    bias: float


class Threshold(NamedTuple):
    """A threshold, and its results on the digits that chose it."""

    value: float
    accepted: int
    errors: int
    bound: float
    """Upper bound on the probability that an accepted digit is an error (Clopper and Pearson 1934)."""


def add_rule(graph: Graph, unit: OutlierUnit, splits: Splits, risk: float) -> tuple[Graph, Acceptance]:
    """Return `graph` with the outlier unit, and what the manifest says of the rule."""
    graph = with_outlier_unit(graph, unit)
    power = fit_power(*_results(graph, splits.validation, power=1))
    rule = choose_threshold(*_results(graph, splits.validation, power), risk)
    test, correct = _results(graph, splits.test, power)
    accepted = test >= rule.value
    return graph, Acceptance(
        power=power,
        threshold=rule.value,
        risk=risk,
        digits=len(splits.validation),
        accepted=rule.accepted,
        errors=rule.errors,
        bound=rule.bound,
        test_accepted=int(accepted.sum()),
        test_errors=int((accepted & ~correct).sum()),
        outliers_accepted={
            kind: round(float((confidence(graph, images, power) >= rule.value).mean()), 4)
            for kind, images in splits.samples.validation.items()
        },
    )


def fit_outlier_unit(graph: Graph, samples: Samples) -> OutlierUnit:
    """Fit the unit for the digits and outliers of `samples` by penalised maximum likelihood (L-BFGS)."""
    hidden = with_features(graph)
    features, energy = [], []
    for images in (samples.digits, samples.outliers):
        logits, *layers = hidden.run(["logits", *_features(graph.model)], images)
        features.append(np.concatenate(layers, axis=1))
        energy.append(scipy.special.logsumexp(logits.astype(np.float64), axis=1))
    x, offset = np.concatenate(features), np.concatenate(energy)
    outlier = np.arange(len(x)) >= len(samples.digits)
    mean, scale = x.mean(axis=0), x.std(axis=0) + np.float32(1e-3) * (x.std() + np.float32(1e-6))
    x = (x - mean) / scale

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight = parameters[:-1]
        score = x @ weight.astype(np.float32) + parameters[-1] - offset
        residual = (scipy.special.expit(score) - outlier) / len(x)
        value = (np.logaddexp(0, score) - outlier * score).mean() + PENALTY * (weight @ weight)
        slope = residual.astype(np.float32) @ x + 2 * PENALTY * weight
        return float(value), np.append(slope, residual.sum())

    start = np.append(np.zeros(x.shape[1]), offset.mean())
    found = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}
    ).x
    weight = (found[:-1] / scale).astype(np.float32)
    return OutlierUnit(weight, float(found[-1] - weight @ mean))


def fit_power(shares: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Return the power of `shares` that maximises the likelihood of `correct`, 0.05 to 5."""
    nats = -np.log(np.maximum(shares, 1e-30))

    def loss(power: float) -> float:
        wrong = -np.log(np.maximum(-np.expm1(-power * nats), 1e-12))  # -log(1 - share ** power)
        return float(np.where(correct, power * nats, wrong).mean())

    return round(float(scipy.optimize.minimize_scalar(loss, bounds=(0.05, 5), method="bounded").x), 6)


def choose_threshold(confidences: NDArray[np.float64], correct: NDArray[np.bool_], risk: float) -> Threshold:
    """Return the lowest threshold of at least 0.5 at which at most a share of `risk` of the accepted are errors.

    It lies halfway between two confidences, so that rounding on another machine does not move a digit across it.
    Nothing is accepted if no threshold has so few errors.
    """
    order = np.argsort(-confidences, kind="stable")
    ranked = confidences[order]
    errors = np.cumsum(~correct[order])
    accepted = np.arange(1, len(ranked) + 1)
    following = np.append(ranked[1:], 0.0)
    allowed = (errors <= risk * accepted) & (ranked > following) & (ranked >= 0.5)
    if not allowed.any():
        return Threshold(1.0, 0, 0, 1.0)
    last = int(np.flatnonzero(allowed)[-1])
    value = round(max((ranked[last] + following[last]) / 2, 0.5), 6)
    bound = scipy.stats.beta.ppf(LEVEL, errors[last] + 1, accepted[last] - errors[last])
    return Threshold(value, int(accepted[last]), int(errors[last]), round(float(bound), 6))


def with_features(graph: Graph) -> Graph:
    """Return a copy of `graph` that also outputs the last hidden layer of each member."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for name in _features(model):
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return Graph(model)


def with_outlier_unit(graph: Graph, unit: OutlierUnit) -> Graph:
    """Return a copy of `graph` with the output `outlier`, `float32 [N, 1]`."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    hidden = _features(model)
    if len(hidden) > 1:
        model.graph.node.append(helper.make_node("Concat", hidden, ["hidden"], axis=1))
        hidden = ["hidden"]
    constants = {"outlier_weight": unit.weight[:, None], "outlier_bias": np.array([unit.bias], np.float32)}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node.append(helper.make_node("Gemm", [*hidden, *constants], [OUTLIER.name]))
    shape: list[str | int | None] = ["batch", *OUTLIER.shape[1:]]
    model.graph.output.append(helper.make_tensor_value_info(OUTLIER.name, onnx.TensorProto.FLOAT, shape))
    onnx.checker.check_model(model, full_check=True)
    return Graph(model)


def confidence(graph: Graph, images: Images, power: float = 1) -> NDArray[np.float64]:
    """Return the confidence `[N]` in the predictions of a graph with the outlier unit."""
    logits, probabilities, outlier = graph.run(["logits", "probabilities", OUTLIER.name], images)
    return np.array(confidence_of(most_probable(probabilities), logits, probabilities, outlier, power))


def _results(graph: Graph, digits: Digits, power: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the confidence in each prediction, `[N]`, and whether it is correct."""
    images = digits.images.numpy()
    return confidence(graph, images, power), graph.logits(images).argmax(axis=1) == digits.labels.numpy()


def _features(model: onnx.ModelProto) -> list[str]:
    """Return the inputs of the layers that compute logits, one for each member: no ReLU follows those."""
    rectified = {node.input[0] for node in model.graph.node if node.op_type == "Relu"}
    return [
        node.input[0]
        for node in model.graph.node
        if node.op_type == "Gemm" and node.output[0] not in rectified
    ]
