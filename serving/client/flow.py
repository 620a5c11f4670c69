"""What a client does, step by step, whoever does the sending: written once for both clients.

A flow is a generator: it yields a `Send` and is given an `Answer`, `Lost` or `Slow`; it yields a `Wait` and is
given nothing; it returns the result.

A prediction changes nothing in the service, so asking twice is safe even where the first request may have
arrived: that is why a lost connection is tried again although predictions are asked for with POST. A time-out is
not: whoever waited has waited long enough, and a service that is late is not helped by a second request. Nor is a
refusal, but for a 503 that says when to come back.
"""

import random
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from numpy.typing import ArrayLike

from serving.client.errors import FailedError, RefusedError, SlowServiceError, UnreachableError
from serving.client.wire import (
    Answer,
    Predictions,
    Send,
    as_images,
    infer_answer,
    infer_request,
    join,
    json_document,
    picture_answer,
    picture_request,
    refusal_message,
)

_FIRST_BACKOFF_S = 0.1
_MOST_BACKOFF_S = 2.0
_MOST_RETRY_AFTER_S = 10.0


class Wait(NamedTuple):
    """Do nothing for a while."""

    seconds: float


class Lost(NamedTuple):
    """There was no connection, or it broke before the answer was here."""

    reason: str


class Slow(NamedTuple):
    """The answer was not here in time."""

    reason: str


Outcome = Answer | Lost | Slow | None
Result = TypeVar("Result")
Flow = Generator[Send | Wait, Outcome, Result]


class Flows:
    """The flows of one client."""

    def __init__(self, model: str | None, retries: int, max_images: int) -> None:
        self._model = model
        self._retries = retries
        self._max_images = max_images

    def predict(self, images: ArrayLike, model: str | None) -> Flow[Predictions]:
        array = as_images(images)
        name = model or self._model or (yield from self._find_default())
        return (yield from self._in_parts(array, lambda part: infer_request(name, part), infer_answer))

    def predict_pictures(self, pictures: Sequence[bytes], model: str | None) -> Flow[Predictions]:
        name = model or self._model
        return (yield from self._in_parts(pictures, lambda part: picture_request(name, part), picture_answer))

    def models(self) -> Flow[dict[str, dict[str, Any]]]:
        document = json_document((yield from self._ask(Send("GET", "/models"))))
        self._model = self._model or document["default"]
        models = {manifest["name"]: manifest for manifest in document["models"]}
        return {document["default"]: models[document["default"]]} | models

    def ready(self) -> Flow[bool]:
        outcome = yield Send("GET", "/health/ready")
        return isinstance(outcome, Answer) and outcome.status == 200

    def _find_default(self) -> Flow[str]:
        """The service's default model, asked for once."""
        return next(iter((yield from self.models())))

    def _in_parts(
        self, whole: Any, request: Callable[[Any], Send], read: Callable[[Answer, int], Predictions]
    ) -> Flow[Predictions]:
        """Ask about as many as one request may carry at a time, in turn."""
        parts = []
        for start in range(0, max(1, len(whole)), self._max_images):
            part = whole[start : start + self._max_images]
            answer = yield from self._ask(request(part))
            parts.append(read(answer, len(part)))
        return join(parts)

    def _ask(self, request: Send) -> Flow[Answer]:
        """Send until it is answered, as often as is safe and useful. Raises `ClientError`."""
        for attempt in range(self._retries + 1):
            outcome = yield request
            last = attempt == self._retries
            longest = min(_MOST_BACKOFF_S, _FIRST_BACKOFF_S * 2**attempt)
            backoff = random.uniform(longest / 2, longest)  # noqa: S311 - spreads clients, hides nothing
            match outcome:
                case Answer(status=status) if status < 400:
                    return outcome
                case Answer():
                    retry_after = _retry_after(outcome)
                    if retry_after is None or last:
                        kind = FailedError if outcome.status >= 500 else RefusedError
                        raise kind(outcome.status, refusal_message(outcome))
                    yield Wait(retry_after + backoff)
                case Slow(reason):
                    raise SlowServiceError(f"{request.method} {request.path}: {reason}")
                case Lost(reason) if last:
                    raise UnreachableError(
                        f"{request.method} {request.path}, tried {attempt + 1} times: {reason}; is it running?"
                    )
                case _:
                    yield Wait(backoff)
        raise AssertionError  # the last attempt returns or raises


def _retry_after(answer: Answer) -> float | None:
    """Seconds after which the service wants to be asked again, when it says so and they are few."""
    value = answer.headers.get("retry-after", "")
    if answer.status != 503 or not value.isdecimal() or float(value) > _MOST_RETRY_AFTER_S:
        return None
    return float(value)
