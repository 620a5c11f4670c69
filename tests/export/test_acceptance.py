"""The acceptance rule: fitted on digits and drawn outliers, its threshold chosen for a stated risk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.acceptance import (
    OutlierUnit,
    choose_threshold,
    confidence,
    fit_outlier_unit,
    fit_power,
    with_features,
    with_outlier_unit,
)
from export.fold import fold
from export.graph import Graph, to_onnx
from export.outliers import KINDS, draw_digits, draw_outliers, to_mnist
from export.splits import Splits
from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.training.networks import used
from training.model.checkpoint import load_checkpoint
from training.recipe.schema import Architecture


@pytest.fixture(scope="module")
def plain(trained: dict[str, Path]) -> Graph:
    """The teacher's graph before it has a rule."""
    return to_onnx(fold(load_checkpoint(trained["teacher"]).network))


def test_the_lowest_threshold_within_the_risk_is_chosen() -> None:
    ranked = np.array([0.99, 0.98, 0.97, 0.96, 0.95, 0.9, 0.8, 0.7, 0.6, 0.55], np.float32)
    correct = np.array([1, 1, 1, 1, 0, 1, 1, 1, 1, 0], bool)
    found = choose_threshold(ranked, correct, risk=0.12)
    assert (found.accepted, found.errors) == (9, 1)  # one of five would be too many, one of nine is not
    assert found.value == pytest.approx(0.575)  # halfway between two digits
    assert choose_threshold(ranked, correct, risk=0.01).value == pytest.approx(0.955)
    assert choose_threshold(ranked, correct, risk=0.3).value == 0.5
    assert choose_threshold(ranked, np.zeros(10, bool), risk=0.3)[:3] == (1.0, 0, 0)


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    ranked, correct = np.linspace(0.9, 0.6, 1000, dtype=np.float32), np.ones(1000, bool)
    assert choose_threshold(ranked, correct, risk=0.001).bound == pytest.approx(
        1 - 0.05 ** (1 / 1000), abs=1e-6
    )


def test_digits_of_one_confidence_are_accepted_together() -> None:
    ranked = np.array([0.9, 0.9, 0.9, 0.8], np.float32)
    found = choose_threshold(ranked, np.array([1, 1, 0, 1], bool), risk=0.1)
    assert (found.value, found.accepted) == (1.0, 0)


@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
def test_the_power_that_generated_the_outcomes_is_found(power: float) -> None:
    random = np.random.default_rng(0)
    shares = random.uniform(0.2, 1, 50_000).astype(np.float32)
    correct = random.random(50_000) < shares**power
    assert fit_power(shares, correct) == pytest.approx(power, rel=0.1)


def test_outliers_are_the_same_for_the_same_seed_and_differ_within_a_kind(splits: Splits) -> None:
    digits = splits.training.images.numpy()
    first, again, other = (draw_outliers(12, digits, seed) for seed in (0, 0, 1))
    assert list(first) == list(KINDS)
    for kind, images in first.items():
        assert (images.dtype, images.shape[1:]) == (np.uint8, (28, 28))
        assert np.array_equal(images, again[kind])
        assert not np.array_equal(images, other[kind])
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) > len(images) // 2
    typed = draw_digits(20, seed=0)
    assert (typed.max(axis=(1, 2)) > 200).all()


def test_drawings_have_the_form_of_mnist() -> None:
    canvas = np.zeros((90, 90), np.uint8)
    canvas[10:70, 40:50] = 255
    image = to_mnist(canvas)
    rows, columns = np.nonzero(image)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 3)
    assert (rows.mean(), columns.mean()) == pytest.approx((13.5, 13.5), abs=1)
    assert not to_mnist(np.zeros((90, 90), np.uint8)).any()


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(),
        Architecture(hidden=[16]),
        Architecture(stages=[[4]], hidden=[12]),
        Architecture(hidden=[8], members=2),
    ],
    ids=str,
)
def test_confidence_is_the_share_of_the_digit_among_eleven_classes(
    architecture: Architecture, splits: Splits
) -> None:
    graph = to_onnx(fold(used(architecture)))
    images = splits.test.images.numpy()
    features = with_features(graph)
    names = [output.name for output in features.model.graph.output]
    logits, _, *hidden = features.run(names, images)
    random = np.random.default_rng(0)
    unit = OutlierUnit(random.normal(0, 0.01, sum(part.shape[1] for part in hidden)).astype(np.float32), -1.0)
    extended = with_outlier_unit(graph, unit)
    outlier = np.concatenate(hidden, axis=1) @ unit.weight + unit.bias
    eleven = torch.from_numpy(np.column_stack([logits, outlier])).softmax(dim=1).numpy()
    expected = eleven[:, :10].max(axis=1) ** 0.4
    np.testing.assert_array_equal(
        extended.logits(images), logits
    )  # the unit leaves the other outputs as they are
    np.testing.assert_allclose(confidence(extended, images, 0.4), expected, rtol=1e-3)
    one = [confidence(extended, image[None], 0.4)[0] for image in images[:20]]
    np.testing.assert_allclose(one, expected[:20], rtol=1e-3)


def test_drawn_outliers_get_less_confidence_than_digits(plain: Graph, splits: Splits) -> None:
    def accepted(unit: OutlierUnit) -> tuple[float, float]:
        """Shares of test digits and of outliers above the confidence that half of the validation digits reach."""
        graph = with_outlier_unit(plain, unit)
        threshold = np.median(confidence(graph, splits.validation.images.numpy()))
        outliers = np.concatenate([*splits.samples.validation.values()])
        digits, others = (
            float((confidence(graph, images) >= threshold).mean())
            for images in (splits.test.images.numpy(), outliers)
        )
        return digits, others

    digits, outliers = accepted(fit_outlier_unit(plain, splits.samples))
    assert digits > 0.3
    assert outliers < 0.15
    none = OutlierUnit(np.zeros(96, np.float32), -1e3)  # the softmax over the digits alone
    assert outliers < accepted(none)[1]


def test_the_manifest_states_the_rule_and_its_results(model_repository: Path, splits: Splits) -> None:
    for name in ("student", "student-int8"):
        entry = load_repository(model_repository)[name]
        rule = entry.manifest.acceptance
        assert rule
        session = Session(entry.path)
        for digits, accepted, errors in (
            (splits.validation, rule.accepted, rule.errors),
            (splits.test, rule.test_accepted, rule.test_errors),
        ):
            found = session.run(digits.images.numpy())
            assert found.confidence is not None
            assert found.accepted is not None
            assert found.accepted == [confidence >= rule.threshold for confidence in found.confidence]
            wrong = found.digits != digits.labels.numpy()
            assert (sum(found.accepted), (found.accepted & wrong).sum()) == (accepted, errors)
        assert rule.errors <= rule.risk * rule.accepted
        assert rule.bound >= rule.errors / rule.accepted
        assert rule.outliers_accepted.keys() == KINDS.keys()
