"""The bounds of admission, where a real client would have to send hundreds of megabytes to meet them."""

import asyncio
import json
from typing import Any

from starlette.types import Message

from serving.codecs.predict import Predict
from serving.engine.admission import Admission, Bounds
from serving.engine.endpoint import Endpoint
from serving.http.app import Front, Route


class NeverAsked(Endpoint):
    """An endpoint whose requests end before a model is needed."""

    def __init__(self) -> None:
        class Metrics:
            in_flight = 0

            def answered(self, protocol: str, status: int, *, seconds: float | None) -> None: ...

        self.metrics: Any = Metrics()


def test_bodies_that_come_in_pieces_share_a_bounded_memory() -> None:
    async def test() -> None:
        async def never(*_: Any) -> None:
            raise AssertionError("only predictions are asked for")

        front = Front(never, Admission(Bounds(max_held_bytes=1000)))
        front.open({"/predict": Route(Predict(), NeverAsked())})
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "headers": [(b"content-type", b"image/png")],
        }
        answers: list[Message] = []

        async def send(message: Message) -> None:
            answers.append(message)

        def client(pieces: list[int]) -> asyncio.Task[None]:
            async def receive() -> Message:
                if pieces:
                    return {"type": "http.request", "body": bytes(pieces.pop(0)), "more_body": True}
                return await asyncio.Future()  # the rest never comes

            return asyncio.create_task(front(dict(scope), receive, send))

        patient = client([300, 300])
        await asyncio.sleep(0)
        await client([300, 300])
        assert [message.get("status") for message in answers] == [503, None]
        assert json.loads(answers[1]["body"])["error"]["code"] == "overloaded"
        patient.cancel()
        await asyncio.wait((patient,))
        answers.clear()
        again = client([900])  # what the others held is free again
        await asyncio.sleep(0)
        assert not answers
        again.cancel()
        await asyncio.wait((again,))

    asyncio.run(test())
