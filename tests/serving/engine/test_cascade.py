"""A cascade of two real models: which images the teacher gets, in which runs, and what becomes of the rest."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serving.codecs.base import BodyLimits, Prediction
from serving.engine.batching import OffloadBatcher
from serving.engine.cascade import CascadeExecutor
from serving.engine.executors import InProcess
from serving.engine.lit_api import DigitAPI, ModelSettings, run_batch
from serving.engine.metrics.recorder import RunMetrics
from serving.engine.metrics.series import Metrics, metrics_table
from serving.model.repository import load_repository
from serving.model.tensors import Images
from tests.support.cascade import middle_threshold
from tests.support.training.samples import sample_test

IMAGES = sample_test().images.numpy()


@pytest.fixture(scope="module")
def apis(cascade_repository: Path) -> dict[str, DigitAPI]:
    """Student and teacher, loaded, and a cascade that escalates half of the images."""
    row = Metrics(metrics_table(2, ["rest"], ["/predict"], 256), 1).row(0)
    entries = load_repository(cascade_repository)
    student, teacher = (
        DigitAPI(entries[name], ModelSettings(BodyLimits())) for name in ("student", "teacher")
    )
    for slot, api in enumerate((student, teacher)):
        api.setup("cpu")
        api.metrics = RunMetrics(row, str(slot))
    manifest = entries["cascade"].manifest
    assert manifest.cascade
    threshold = middle_threshold(student.session.run(IMAGES))
    rule = manifest.cascade.model_copy(update={"threshold": threshold})
    entry = entries["cascade"].model_copy(update={"manifest": manifest.model_copy(update={"cascade": rule})})
    cascade = DigitAPI(entry, ModelSettings(BodyLimits()))
    return {"student": student, "teacher": teacher, "cascade": cascade}


class Recorded:
    """A model's executor that records what it is given: images per request, and per run."""

    def __init__(self, api: DigitAPI, thread: ThreadPoolExecutor, *, fair: bool = False) -> None:
        self.api = api
        self.requests: list[Images] = []
        self.runs: list[int] = []
        self.clients: list[str | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self._batcher = OffloadBatcher(self._start, 64, fair=fair)
        self._own = InProcess(api, thread, fair=fair)
        self.seconds, self.longest_run = self._own.seconds, self._batcher.longest_run
        self.runs_inline = self._own.runs_inline
        self.queued = self._batcher.queued

    def submit(self, images: Images, waiter: object) -> None:
        self.requests.append(images)
        self.clients.append(getattr(waiter, "client", None))
        self._batcher.submit(images, waiter)  # type: ignore[arg-type]

    def _start(self, inputs: list[Images]) -> asyncio.Future[list[Prediction]]:
        async def run() -> list[Prediction]:
            await self.gate.wait()
            if self.error:
                raise self.error
            self.runs.append(sum(map(len, inputs)))
            return run_batch(self.api, inputs)

        return asyncio.ensure_future(run())


class Client:
    """A request of a client, as a batcher sees it."""

    def __init__(self, client: str | None = None) -> None:
        self.client = client
        self.future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.done, self.set_result = self.future.done, self.future.set_result
        self.set_exception = self.future.set_exception


Test = Callable[[CascadeExecutor, Recorded, Recorded], Awaitable[None]]


def run(apis: dict[str, DigitAPI], test: Test, *, fair: bool = False) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as thread:
            student, teacher = (Recorded(apis[name], thread, fair=fair) for name in ("student", "teacher"))
            await test(CascadeExecutor(apis["cascade"], student, teacher), student, teacher)

    asyncio.run(asyncio.wait_for(main(), 20))


async def predict(cascade: CascadeExecutor, images: Images, client: str | None = None) -> Prediction:
    one = Client(client)
    cascade.submit(images, one)
    return await one.future


def split(apis: dict[str, DigitAPI]) -> tuple[Images, Images]:
    """Return the digits that the student is sure of, and the others, by the rule of the manifest."""
    rule = apis["cascade"].entry.manifest.cascade
    assert rule
    kept = apis["student"].session.run(IMAGES).probabilities.max(axis=1) >= rule.threshold
    return IMAGES[kept], IMAGES[~kept]


def test_each_image_has_the_prediction_of_the_model_that_the_rule_names(apis: dict[str, DigitAPI]) -> None:
    rule = apis["cascade"].entry.manifest.cascade
    assert rule
    student, teacher = (apis[name].session.run(IMAGES) for name in ("student", "teacher"))

    async def test(cascade: CascadeExecutor, *_: Recorded) -> None:
        found = await predict(cascade, IMAGES)
        assert found.escalated
        assert found.escalated == (student.probabilities.max(axis=1) < rule.threshold).tolist()
        assert {True, False} == set(found.escalated)
        for index, escalated in enumerate(found.escalated):
            expected = teacher if escalated else student
            assert found.digits[index] == expected.digits[index]
            assert found.confidence[index] == pytest.approx(expected.confidence[index], abs=2e-6)  # type: ignore[index]
            assert found.accepted[index] == expected.accepted[index]  # type: ignore[index]
            np.testing.assert_allclose(found.logits[index], expected.logits[index], atol=1e-4)
            np.testing.assert_allclose(found.probabilities[index], expected.probabilities[index], atol=1e-5)
            assert int(found.probabilities[index].argmax()) == found.digits[index]

    run(apis, test)


def test_the_teacher_runs_the_escalated_images_only_those_of_several_requests_together(
    apis: dict[str, DigitAPI],
) -> None:
    sure, unsure = split(apis)

    async def test(cascade: CascadeExecutor, student: Recorded, teacher: Recorded) -> None:
        requests = [np.stack([sure[i], unsure[i], sure[i + 1]]) for i in range(5)]
        found = await asyncio.gather(*(predict(cascade, images) for images in requests))
        assert student.runs == [15]
        assert teacher.runs == [5]
        assert [one.escalated for one in found] == [[False, True, False]] * 5
        for asked, image in zip(teacher.requests, unsure, strict=False):
            assert np.array_equal(asked, image[None])

    run(apis, test)


def test_a_request_that_is_not_escalated_does_not_wait_for_the_teacher(apis: dict[str, DigitAPI]) -> None:
    sure, unsure = split(apis)

    async def test(cascade: CascadeExecutor, _: Recorded, teacher: Recorded) -> None:
        teacher.gate.clear()
        escalated = asyncio.create_task(predict(cascade, unsure[:1]))
        assert (await predict(cascade, sure[:2])).escalated == [False, False]
        await asyncio.sleep(0.01)
        assert not escalated.done()
        teacher.gate.set()
        assert (await escalated).escalated == [True]

    run(apis, test)


@pytest.mark.parametrize("failing", ["student", "teacher"])
def test_an_error_of_either_run_ends_the_request(apis: dict[str, DigitAPI], failing: str) -> None:
    sure, unsure = split(apis)

    async def test(cascade: CascadeExecutor, student: Recorded, teacher: Recorded) -> None:
        {"student": student, "teacher": teacher}[failing].error = RuntimeError("out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            await predict(cascade, unsure[:2])
        if failing == "teacher":
            assert (await predict(cascade, sure[:1])).escalated == [False]

    run(apis, test)


def test_a_request_that_ends_between_the_two_runs_is_not_run_again(apis: dict[str, DigitAPI]) -> None:
    """Its deadline passed, or its client hung up."""
    _, unsure = split(apis)

    async def test(cascade: CascadeExecutor, student: Recorded, teacher: Recorded) -> None:
        teacher.gate.clear()
        first = asyncio.create_task(predict(cascade, unsure[:1]))
        await asyncio.sleep(0.05)
        gone = Client()
        cascade.submit(unsure[1:3], gone)
        await asyncio.sleep(0.05)
        assert [len(images) for images in teacher.requests] == [1, 2]
        gone.future.cancel()
        teacher.gate.set()
        await first
        await asyncio.sleep(0.01)
        assert student.runs == [1, 2]
        assert teacher.runs == [1]
        assert teacher.queued() == 0

    run(apis, test)


def test_the_times_are_those_of_both_runs_and_the_wait_between_them(apis: dict[str, DigitAPI]) -> None:
    _, unsure = split(apis)

    async def test(cascade: CascadeExecutor, _: Recorded, teacher: Recorded) -> None:
        teacher.gate.clear()
        begun = asyncio.get_running_loop().time()
        request = asyncio.create_task(predict(cascade, unsure[:4]))
        await asyncio.sleep(0.2)
        teacher.gate.set()
        found = await request
        ended = asyncio.get_running_loop().time()
        assert begun + 0.19 < found.started < found.finished < ended

    run(apis, test)


def test_clients_take_turns_in_the_teachers_queue(apis: dict[str, DigitAPI]) -> None:
    _, unsure = split(apis)

    async def test(cascade: CascadeExecutor, student: Recorded, teacher: Recorded) -> None:
        await asyncio.gather(*(predict(cascade, unsure[:1], client) for client in ("a", "a", "b")))
        assert student.clients == ["a", "a", "b"]
        assert teacher.clients == ["a", "b", "a"]

    run(apis, test, fair=True)


def test_the_expected_duration_follows_the_escalated_share(apis: dict[str, DigitAPI]) -> None:
    sure, unsure = split(apis)
    rule = apis["cascade"].entry.manifest.cascade
    assert rule

    async def test(cascade: CascadeExecutor, student: Recorded, teacher: Recorded) -> None:
        share = rule.guarantee.escalated_share
        assert cascade.seconds(10) == pytest.approx(student.seconds(10) + share * 10 * teacher.seconds(1))
        before = cascade.seconds(1)
        for _ in range(100):
            await predict(cascade, unsure[:20])
        everything = student.seconds(1) + teacher.seconds(1)
        assert before < cascade.seconds(1) <= everything
        assert cascade.seconds(1) > before + 0.8 * (everything - before)
        for _ in range(400):
            await predict(cascade, sure[:20])
        assert cascade.seconds(1) < before

    run(apis, test)


def test_a_short_request_is_inline_only_if_both_runs_are(apis: dict[str, DigitAPI]) -> None:
    async def test(cascade: CascadeExecutor, student: Recorded, teacher: Recorded) -> None:
        for count in (1, 8, 64, 256, 4096):
            assert cascade.runs_inline(count) == (student.runs_inline(count) and teacher.runs_inline(count))

    run(apis, test)


def test_the_latest_run_is_kept_for_the_comparison_with_the_teacher(apis: dict[str, DigitAPI]) -> None:
    async def test(cascade: CascadeExecutor, *_: Recorded) -> None:
        apis["cascade"].latest_run = None
        found = await predict(cascade, IMAGES[:3])
        latest = apis["cascade"].latest_run
        assert latest
        assert np.array_equal(latest[0], IMAGES[:3])
        assert latest[1] is found

    run(apis, test)
