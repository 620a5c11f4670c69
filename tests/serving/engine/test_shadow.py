"""Shadow traffic: which requests are mirrored, and what is counted of them."""

from pathlib import Path

import pytest

from serving.codecs.base import BodyLimits, Prediction
from serving.engine.lit_api import DigitAPI, ModelSettings, run_batch
from serving.engine.metrics.recorder import RunMetrics
from serving.engine.metrics.series import (
    SHADOW_COMPARISONS,
    SHADOW_DROPPED,
    SHADOW_REFERENCES,
    Metrics,
    Values,
    metrics_table,
)
from serving.engine.shadow import MAX_WAITING, Shadow
from serving.model.repository import ModelEntry, load_repository
from serving.model.session import Session
from serving.model.tensors import Images
from tests.support.service import eventually
from tests.support.training.samples import sample_test

IMAGES = sample_test().images.numpy()


@pytest.fixture
def row() -> Values:
    return Metrics(metrics_table(1, ["rest"], ["/predict"], 64), 1).row(0)


@pytest.fixture
def entry(model_repository: Path) -> ModelEntry:
    return load_repository(model_repository)["student"]


@pytest.fixture
def stable(entry: ModelEntry, row: Values) -> DigitAPI:
    return loaded(entry, row)


@pytest.fixture
def candidate(entry: ModelEntry, row: Values) -> DigitAPI:
    return loaded(entry, row)


def loaded(entry: ModelEntry, row: Values) -> DigitAPI:
    api = DigitAPI(entry, ModelSettings(BodyLimits()))
    api.session = Session(entry.content)
    api.metrics = RunMetrics(row, "0")
    return api


def predicted(api: DigitAPI, images: Images) -> Prediction:
    digits, logits, probabilities, *_ = api.session.run(images)
    return Prediction(digits, logits, probabilities, 0.0, 0.0)


def mirrored(row: Values) -> float:
    return float(row.of(SHADOW_COMPARISONS, slot="0").sum() + row.of(SHADOW_DROPPED))


def end(shadow: Shadow) -> None:
    shadow.close()
    eventually(lambda: not shadow._thread.is_alive())


def test_a_share_of_the_requests_is_mirrored_whatever_their_batches(
    row: Values, stable: DigitAPI, candidate: DigitAPI
) -> None:
    shadow = Shadow(stable, candidate, None, row, "0", 0.25)
    for size in (1, 2, 3, 8) * 100:
        run_batch(stable, [IMAGES[index : index + 1] for index in range(size)])
    end(shadow)
    assert 265 < mirrored(row) < 435  # of 1,400: 350 ± 5 standard deviations
    assert row.of(SHADOW_COMPARISONS, slot="0")[1] == 0  # the same model


def test_every_request_is_mirrored_with_a_share_of_one_until_the_shadow_is_closed(
    row: Values, stable: DigitAPI, candidate: DigitAPI
) -> None:
    shadow = Shadow(stable, candidate, None, row, "0", 1)
    for _ in range(20):
        run_batch(stable, [IMAGES[:2]])
    end(shadow)
    run_batch(stable, [IMAGES[:2]])
    assert mirrored(row) == 40


def test_the_teacher_decides_where_the_versions_differ(
    row: Values, entry: ModelEntry, stable: DigitAPI, candidate: DigitAPI
) -> None:
    whole = predicted(stable, IMAGES[:3])
    wrong = [whole.digits[0], (whole.digits[1] + 1) % 10, (whole.digits[2] + 1) % 10]
    shadow = Shadow(stable, candidate, loaded(entry, row), row, "0", 1)
    shadow.mirror([IMAGES[:3]], whole._replace(digits=wrong))
    end(shadow)
    assert row.of(SHADOW_COMPARISONS, slot="0").tolist() == [1, 2]
    assert row.of(SHADOW_REFERENCES, slot="0").tolist() == [1, 0, 2]


@pytest.mark.parametrize("referee", ["stable", "candidate"])
def test_a_version_is_no_reference_for_itself(
    row: Values, stable: DigitAPI, candidate: DigitAPI, referee: str
) -> None:
    teacher = stable if referee == "stable" else candidate
    shadow = Shadow(stable, candidate, teacher, row, "0", 1)
    run_batch(stable, [IMAGES[:3]])
    end(shadow)
    assert row.of(SHADOW_COMPARISONS, slot="0").tolist() == [3, 0]
    assert row.of(SHADOW_REFERENCES, slot="0").tolist() == [0, 0, 0]


def test_what_the_candidate_cannot_keep_up_with_is_left_out_and_counted(
    row: Values, stable: DigitAPI, candidate: DigitAPI
) -> None:
    whole = predicted(stable, IMAGES[:1])

    class Slow(Session):
        """A candidate that waits until the test lets it run."""

        def __init__(self) -> None:
            self.waits = True

        def run(self, images: Images) -> Prediction:  # type: ignore[override]
            eventually(lambda: not self.waits)
            return predicted(stable, images)

    candidate.session = slow = Slow()
    shadow = Shadow(stable, candidate, None, row, "0", 1)
    for _ in range(MAX_WAITING + 10):
        shadow.mirror([IMAGES[:1]], whole)
    assert float(row.of(SHADOW_DROPPED)) >= 9
    slow.waits = False
    end(shadow)
    assert mirrored(row) == MAX_WAITING + 10
