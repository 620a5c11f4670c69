"""Agreement with the teacher: one image per interval, off the request path, and only where there is a teacher."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.__main__ import Serve
from serving.codecs.base import BodyLimits
from serving.engine.agreement import Agreement
from serving.engine.lit_api import DigitAPI, ModelSettings, run_batch
from serving.engine.metrics.recorder import RunMetrics
from serving.engine.metrics.series import (
    INFERENCE_SECONDS,
    TEACHER_COMPARISONS,
    Metrics,
    Values,
    metrics_table,
)
from serving.model.repository import load_repository
from serving.service import build
from tests.support.service import eventually
from tests.support.training.samples import sample_test

IMAGES = sample_test().images.numpy()
SLOTS = {"student": "0", "teacher": "1"}


@pytest.fixture
def row() -> Values:
    return Metrics(metrics_table(2, ["rest"], ["/predict"], 64), 1).row(0)


@pytest.fixture
def apis(model_repository: Path, row: Values) -> dict[str, DigitAPI]:
    """Teacher and student, loaded."""
    entries = load_repository(model_repository)
    found = {name: DigitAPI(entries[name], ModelSettings(BodyLimits())) for name in ("teacher", "student")}
    for name, api in found.items():
        api.setup("cpu")
        api.metrics = RunMetrics(row, SLOTS[name])
    return found


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


def compared(row: Values) -> dict[str, float]:
    counts = row.of(TEACHER_COMPARISONS, slot=SLOTS["student"])
    return dict(zip(("agree", "differ"), counts.tolist(), strict=True))


def test_the_digits_of_the_same_image_are_compared(
    apis: dict[str, DigitAPI], row: Values, thread: ThreadPoolExecutor
) -> None:
    teacher = apis["teacher"].session.run(IMAGES[:50]).digits
    student = apis["student"].session.run(IMAGES[:50]).digits
    agreement = Agreement(
        apis["teacher"], apis["student"], row, SLOTS["student"], thread, samples_per_second=1e9
    )
    for index in range(50):
        run_batch(apis["student"], [IMAGES[index : index + 1], IMAGES[:3]])
        agreement.publish()
        thread.submit(lambda: None).result()  # the comparison is done
    expected = sum(one == other for one, other in zip(student, teacher, strict=True))
    assert compared(row) == {"agree": expected, "differ": 50 - expected}
    apis["teacher"].metrics.publish()
    assert row.of(INFERENCE_SECONDS, slot=SLOTS["teacher"]).sum() == 0  # no run of the teacher's own


def test_an_image_is_compared_once_and_not_before_the_interval_is_over(
    apis: dict[str, DigitAPI], row: Values, thread: ThreadPoolExecutor
) -> None:
    agreement = Agreement(
        apis["teacher"], apis["student"], row, SLOTS["student"], thread, samples_per_second=5
    )

    def comparisons() -> float:
        agreement.publish()
        thread.submit(lambda: None).result()
        return sum(compared(row).values())

    assert comparisons() == 0  # nothing has been classified
    run_batch(apis["student"], [IMAGES[:1]])
    started = time.monotonic()
    assert comparisons() == 1
    run_batch(apis["student"], [IMAGES[:1]])
    eventually(lambda: comparisons() == 2)
    assert time.monotonic() - started > 0.2
    time.sleep(0.25)
    assert comparisons() == 2  # of an image that was compared already


def test_a_busy_thread_has_no_comparisons_waiting(
    apis: dict[str, DigitAPI], row: Values, thread: ThreadPoolExecutor
) -> None:
    agreement = Agreement(
        apis["teacher"], apis["student"], row, SLOTS["student"], thread, samples_per_second=1e9
    )
    go_on = threading.Event()
    thread.submit(go_on.wait, 10)
    for _ in range(5):
        run_batch(apis["student"], [IMAGES[:1]])
        agreement.publish()
    go_on.set()
    eventually(lambda: sum(compared(row).values()) == 1)


@pytest.mark.parametrize(
    ("repository", "settings", "models"),
    [
        ("model_repository", {}, 3),
        ("model_repository", {"agreement_samples": 0}, 0),
        ("one_model", {}, 0),
    ],
    ids=["with a teacher", "turned off", "without a teacher"],
)
def test_only_students_of_a_served_teacher_are_compared(
    repository: str, settings: dict[str, float], models: int, request: pytest.FixtureRequest
) -> None:
    service = build(Serve(models_dir=request.getfixturevalue(repository), **settings))
    app = service.server.app

    async def test() -> None:
        async with app.router.lifespan_context(app):
            assert len(app.state.process._agreements) == models

    asyncio.run(test())
