"""`POST /feedback`: the true digits of images that were classified; `GET /feedback`: the live accuracy that follows.

A client labels its own requests only, and learns nothing about a prediction: the response states how many labels were
counted. Bodies are small, and bounded like those of predictions.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillery import errors
from serving.codecs.errors import (
    FeedbackError,
    InvalidInput,
    InvalidRange,
    MalformedBody,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from serving.codecs.schemas import ErrorAnswer
from serving.engine.admission.api_keys import Access
from serving.engine.feedback import Accuracy, Feedback
from serving.http.bodies import BodyReader
from serving.http.guards import KEY_STATUSES, Guards

PATH = "/feedback"
MAX_LABELS = 256
MAX_BYTES = 64 * 1024
_TOO_LARGE = f"send at most {MAX_LABELS} labels at a time"
_MAX_MESSAGE = 300
_PUBLISHED_SECONDS = 0.25
"""After which all processes have published the requests that they had served."""
_EXAMPLE = 'expected {"id": "<X-Request-ID of the response>", "digit": 7}'


class Label(BaseModel):
    """The true digit of one image."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: str = Field(
        min_length=1, max_length=128, description="`X-Request-ID` of the response with the prediction"
    )
    digit: int = Field(ge=0, le=9, description="the digit that the image shows")
    index: int = Field(0, ge=0, description="number of the image in the request, counted from 0")


class Labels(BaseModel):
    """The true digits of several images."""

    model_config = ConfigDict(extra="forbid", strict=True)
    labels: list[Label] = Field(min_length=1, max_length=MAX_LABELS)


class RejectedLabel(BaseModel):
    """A label of a list that was not counted."""

    position: int = Field(description="of the label in the list, counted from 0")
    code: str
    message: str


class FeedbackAnswer(BaseModel):
    """What became of the labels."""

    counted: int
    repeated: int = Field(description="labels that were counted before, and changed nothing")
    rejected: list[RejectedLabel] = Field(description="labels of a list that were not counted, and why")


class LiveAccuracy(BaseModel):
    """The accuracy of a version on live traffic, by the labels that clients have sent."""

    model: str
    version: str
    labels: int = Field(description="images with a label")
    correct: int
    accuracy: float | None = Field(description="null without labels")
    interval: tuple[float, float] = Field(description="95 % interval of the accuracy (Wilson)")

    @classmethod
    def of(cls, found: Accuracy) -> "LiveAccuracy":
        """Return the document of an accuracy."""
        accuracy = found.correct / found.labels if found.labels else None
        return cls(**found._asdict(), accuracy=accuracy, interval=found.interval())


class FeedbackSummary(BaseModel):
    """The live accuracy of all versions."""

    since: datetime = Field(description="start of the service: all labels since then count")
    expiry_seconds: float = Field(description="how long the id of a request is known")
    requests_per_process: int = Field(description="how many of its latest requests each process knows")
    confidence: float = Field(0.95, description="of the intervals")
    models: list[LiveAccuracy]


def add_feedback_routes(
    app: FastAPI,
    guards: Guards,
    access: Access,
    feedback: Callable[[], Feedback],
    accuracies: Callable[[], list[Accuracy]],
    *,
    expiry: float,
    requests: int,
    bodies: BodyReader,
) -> None:
    """Add the routes to `app`. `feedback` returns that of the process, once it serves."""
    since = datetime.now(UTC)
    statuses = [400, 404, 408, 409, 413, 415, 422, *(KEY_STATUSES if guards.infer else ())]
    responses: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in statuses}
    body = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [{"$ref": f"#/components/schemas/{one}"} for one in ("Label", "Labels")]}
            }
        },
    }

    @app.post(
        PATH,
        tags=["feedback"],
        summary="True digits of images that were classified",
        responses=responses,
        openapi_extra={"requestBody": body},
        **guards.infer,
    )
    async def label(request: Request) -> FeedbackAnswer:
        _check_type(request)
        labels, several = _parse(await bodies.read(request, MAX_BYTES, _TOO_LARGE))
        client = access.client(request.headers.get("x-api-key", "").encode("latin-1"))
        answer = FeedbackAnswer(counted=0, repeated=0, rejected=[])
        if not all(feedback().knows(one.id, client) for one in labels):
            await asyncio.sleep(_PUBLISHED_SECONDS)
        for position, one in enumerate(labels):
            try:
                if feedback().label(one.id, client, one.index, one.digit):
                    answer.counted += 1
                else:
                    answer.repeated += 1
            except (FeedbackError, InvalidRange) as error:
                if not several:
                    raise
                rejected = RejectedLabel(position=position, code=error.code, message=str(error))
                answer.rejected.append(rejected)
        return answer

    metrics_errors: dict[int | str, dict[str, Any]] = (
        {status: {"model": ErrorAnswer} for status in KEY_STATUSES} if guards.metrics else {}
    )

    @app.get(
        PATH,
        tags=["feedback"],
        summary="Live accuracy of each version, by the true digits that clients have sent",
        responses=metrics_errors,
        **guards.metrics,
    )
    async def summary() -> FeedbackSummary:
        models = [LiveAccuracy.of(found) for found in accuracies()]
        return FeedbackSummary(
            since=since, expiry_seconds=expiry, requests_per_process=requests, models=models
        )


def _check_type(request: Request) -> None:
    """Raises `UnsupportedMediaType`, `UnsupportedEncoding`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"Content-Type is {media_type[:80]!r}; expected application/json")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedEncoding(f"Content-Encoding is {encoding[:40]!r}; send the body uncompressed")


def _parse(content: bytes) -> tuple[list[Label], bool]:
    """Return the labels, and whether they came as a list. Raises `MalformedBody`, `InvalidInput`."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}; {_EXAMPLE}") from None
    if not isinstance(document, dict):
        raise InvalidInput(f"the body is a {type(document).__name__}; {_EXAMPLE}")
    several = "labels" in document
    model: type[Label | Labels] = Labels if several else Label
    try:
        parsed = model.model_validate(document)
    except ValidationError as error:
        first, *others = errors(error, model)
        more = f" (and {len(others)} more)" if others else ""
        raise InvalidInput(f"{first[:_MAX_MESSAGE]}{more}; {_EXAMPLE}") from None
    return (parsed.labels, True) if isinstance(parsed, Labels) else ([parsed], False)
