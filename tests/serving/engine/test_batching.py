"""Requests that arrive together share a run and do not affect one another."""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from serving.codecs.base import Prediction
from serving.engine.batching import Batcher, InlineBatcher, OffloadBatcher
from serving.model.tensors import Images


def images(*values: int) -> Images:
    """One image for each value, filled with it."""
    return np.array(values, np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)


def classify(inputs: Sequence[Images]) -> list[Prediction]:
    """A model whose prediction is the first pixel of the image."""
    return [
        Prediction(array[:, 0, 0].astype(np.int64), scores, scores, 0, 0)
        for array in inputs
        for scores in [np.zeros((len(array), 10), np.float32)]
    ]


class Recorder:
    """Runs batches and records their sizes; `gate` delays offloaded runs."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()

    def run(self, inputs: list[Images]) -> list[Prediction]:
        self.batches.append([len(array) for array in inputs])
        return classify(inputs)

    def run_offloaded(self, inputs: list[Images]) -> asyncio.Future[list[Prediction]]:
        async def later() -> list[Prediction]:
            await self.gate.wait()
            return self.run(inputs)

        return asyncio.ensure_future(later())


def submit(batcher: Batcher, one: Images) -> asyncio.Future[Prediction]:
    future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
    batcher.submit(one, future)
    return future


def digits(predictions: Sequence[Prediction]) -> list[list[int]]:
    return [prediction.digits.tolist() for prediction in predictions]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_requests_of_one_loop_iteration_share_a_run() -> None:
    async def test() -> None:
        recorder = Recorder()
        batcher = InlineBatcher(recorder.run, 64)

        async def client(value: int) -> Prediction:
            return await submit(batcher, images(value))

        answers = await asyncio.gather(*(client(value) for value in range(5)))
        assert digits(answers) == [[value] for value in range(5)]
        assert recorder.batches == [[1] * 5]

    run(test())


def test_a_run_exceeds_max_images_only_for_a_single_request() -> None:
    async def test() -> None:
        recorder = Recorder()
        batcher = InlineBatcher(recorder.run, 4)
        sizes = [1, 2, 2, 9, 1]
        answers = await asyncio.gather(*(submit(batcher, images(*range(size))) for size in sizes))
        assert digits(answers) == [list(range(size)) for size in sizes]
        assert recorder.batches == [[1, 2], [2], [9], [1]]

    run(test())


def test_the_event_loop_gets_control_between_two_runs_of_a_backlog() -> None:
    async def test() -> None:
        order: list[str] = []

        def note(inputs: list[Images]) -> list[Prediction]:
            order.append("run")
            return classify(inputs)

        batcher = InlineBatcher(note, 1)
        first, second = submit(batcher, images(1)), submit(batcher, images(2))
        first.add_done_callback(lambda _: order.append("answered"))
        await asyncio.gather(first, second)
        assert order == ["run", "answered", "run"]

    run(test())


@pytest.mark.parametrize("kind", ["inline", "offload"])
def test_a_cancelled_request_is_not_computed(kind: str) -> None:
    async def test() -> None:
        recorder = Recorder()
        recorder.gate.set()
        batcher: Batcher = (
            InlineBatcher(recorder.run, 8) if kind == "inline" else OffloadBatcher(recorder.run_offloaded, 8)
        )
        futures = [submit(batcher, images(value)) for value in range(3)]
        futures[1].cancel()
        assert digits(await asyncio.gather(futures[0], futures[2])) == [[0], [2]]
        assert recorder.batches == [[1, 1]]

    run(test())


@pytest.mark.parametrize("kind", ["inline", "offload"])
def test_a_failed_run_is_reported_to_its_requests_and_the_next_run_succeeds(kind: str) -> None:
    async def test() -> None:
        failures = [RuntimeError("the model failed")]

        def fail_once(inputs: list[Images]) -> list[Prediction]:
            if failures:
                raise failures.pop()
            return classify(inputs)

        async def fail_once_offloaded(inputs: list[Images]) -> list[Prediction]:
            return fail_once(inputs)

        batcher: Batcher = (
            InlineBatcher(fail_once, 8)
            if kind == "inline"
            else OffloadBatcher(lambda inputs: asyncio.ensure_future(fail_once_offloaded(inputs)), 8)
        )
        failed = await asyncio.gather(
            submit(batcher, images(1)), submit(batcher, images(2)), return_exceptions=True
        )
        assert [str(error) for error in failed] == ["the model failed"] * 2
        assert digits([await submit(batcher, images(3))]) == [[3]]

    run(test())


def test_requests_that_arrive_during_an_offloaded_run_form_the_next_batch() -> None:
    async def test() -> None:
        recorder = Recorder()
        batcher = OffloadBatcher(recorder.run_offloaded, 8)
        first = submit(batcher, images(1))
        await asyncio.sleep(0.01)
        rest = [submit(batcher, images(value)) for value in range(2, 5)]
        await asyncio.sleep(0.01)
        assert not recorder.batches
        recorder.gate.set()
        assert digits(await asyncio.gather(first, *rest)) == [[1], [2], [3], [4]]
        assert recorder.batches == [[1], [1, 1, 1]]

    run(test())


def test_a_request_cancelled_during_a_run_does_not_affect_the_others() -> None:
    async def test() -> None:
        recorder = Recorder()
        batcher = OffloadBatcher(recorder.run_offloaded, 8)
        leaver, stayer = submit(batcher, images(1)), submit(batcher, images(2))
        await asyncio.sleep(0.01)
        leaver.cancel()
        recorder.gate.set()
        assert digits([await stayer]) == [[2]]

    run(test())


@pytest.mark.parametrize("kind", ["inline", "offload"])
def test_a_backlog_of_one_model_does_not_delay_another(kind: str) -> None:
    async def test() -> None:
        order: list[str] = []
        loop = asyncio.get_running_loop()

        def noting(model: str, thread: ThreadPoolExecutor) -> Batcher:
            def note(inputs: list[Images]) -> list[Prediction]:
                order.append(model)
                return classify(inputs)

            if kind == "inline":
                return InlineBatcher(note, 1)
            return OffloadBatcher(lambda inputs: loop.run_in_executor(thread, note, inputs), 1)

        with ThreadPoolExecutor(1) as thread:  # shared by all models, as in the service
            busy, calm = noting("busy", thread), noting("calm", thread)
            backlog = [submit(busy, images(1)) for _ in range(50)]
            await backlog[2]
            before = len(order)
            await submit(calm, images(2))
            assert order[before:].index("calm") <= 2
            await asyncio.gather(*backlog)
            assert order.count("busy") == 50

    run(test())


def test_clients_take_turns_where_the_queue_is_fair() -> None:
    class Receiver(asyncio.Future[Prediction]):
        client: str

    async def test() -> None:
        recorder = Recorder()
        recorder.gate.set()
        order: list[str] = []
        batcher = OffloadBatcher(recorder.run_offloaded, 2, fair=True)
        waiting = []
        for client, count in (("flood", 1),) * 5 + (("other", 2), ("third", 1), ("other", 1)):
            receiver = Receiver()
            receiver.client = client
            receiver.add_done_callback(lambda one: order.append(one.client))  # type: ignore[attr-defined]
            batcher.submit(images(*range(count)), receiver)
            waiting.append(receiver)
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert [sum(sizes) for sizes in recorder.batches] == [1, 2, 2, 2, 1]
        assert order[1:] == ["flood", "other", "third", "other", "flood", "flood", "flood"]

    run(test())
