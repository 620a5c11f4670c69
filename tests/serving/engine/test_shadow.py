"""Shadow traffic: which requests are mirrored, and what is counted of them."""

from pathlib import Path

import numpy as np
import pytest

from serving.codecs.base import Prediction
from serving.engine.metrics.series import (
    SHADOW_COMPARISONS,
    SHADOW_DROPPED,
    SHADOW_REFERENCES,
    Metrics,
    Values,
    metrics_table,
)
from serving.engine.shadow import MAX_WAITING, Shadow
from serving.model.repository import load_repository
from serving.model.session import Session
from serving.model.tensors import Images
from tests.support.service import eventually
from tests.support.training.samples import sample_test

IMAGES = sample_test().images.numpy()


@pytest.fixture
def row() -> Values:
    return Metrics(metrics_table(1, ["rest"], ["/predict"], 64), 1).row(0)


@pytest.fixture(scope="module")
def student(model_repository: Path) -> Session:
    return Session(load_repository(model_repository)["student"].content)


def predicted(session: Session, inputs: list[Images]) -> Prediction:
    digits, logits, probabilities, *_ = session.run(np.concatenate(inputs))
    return Prediction(digits, logits, probabilities, 0.0, 0.0)


def mirrored(row: Values) -> float:
    return float(row.of(SHADOW_COMPARISONS, slot="0").sum() + row.of(SHADOW_DROPPED))


def test_a_share_of_the_requests_is_mirrored_whatever_their_batches(row: Values, student: Session) -> None:
    shadow = Shadow(student, None, row, "0", 0.25)
    for size in (1, 2, 3, 8) * 100:
        inputs = [IMAGES[index : index + 1] for index in range(size)]
        shadow.mirror(inputs, predicted(student, inputs))
    shadow.close()
    eventually(lambda: not shadow._thread.is_alive())
    assert 265 < mirrored(row) < 435  # of 1,400: 350 ± 5 standard deviations
    assert row.of(SHADOW_COMPARISONS, slot="0")[1] == 0  # the same model


def test_every_request_is_mirrored_with_a_share_of_one(row: Values, student: Session) -> None:
    shadow = Shadow(student, None, row, "0", 1)
    for _ in range(20):
        shadow.mirror([IMAGES[:2]], predicted(student, [IMAGES[:2]]))
    shadow.close()
    eventually(lambda: not shadow._thread.is_alive())
    assert mirrored(row) == 40


def test_the_teacher_decides_where_the_versions_differ(row: Values, student: Session) -> None:
    digits = student.run(IMAGES[:3]).digits
    wrong = [digits[0], (digits[1] + 1) % 10, (digits[2] + 1) % 10]
    whole = predicted(student, [IMAGES[:3]])._replace(digits=wrong)
    shadow = Shadow(student, student, row, "0", 1)
    shadow.mirror([IMAGES[:3]], whole)
    shadow.close()
    eventually(lambda: not shadow._thread.is_alive())
    assert row.of(SHADOW_COMPARISONS, slot="0").tolist() == [1, 2]
    assert row.of(SHADOW_REFERENCES, slot="0").tolist() == [1, 0, 2]


def test_what_the_candidate_cannot_keep_up_with_is_left_out_and_counted(
    row: Values, student: Session
) -> None:
    class Slow(Session):
        """A candidate that waits until the test lets it run."""

        def __init__(self) -> None:
            self.waits = True

        def run(self, images: Images) -> Prediction:  # type: ignore[override]
            eventually(lambda: not self.waits)
            return predicted(student, [images])

    candidate = Slow()
    shadow = Shadow(candidate, None, row, "0", 1)
    whole = predicted(student, [IMAGES[:1]])
    for _ in range(MAX_WAITING + 10):
        shadow.mirror([IMAGES[:1]], whole)
    assert float(row.of(SHADOW_DROPPED)) >= 9
    candidate.waits = False
    shadow.close()
    eventually(lambda: not shadow._thread.is_alive())
    assert mirrored(row) == MAX_WAITING + 10
