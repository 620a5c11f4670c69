"""Requests and responses of the service: images and pictures out, predictions in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving.client.errors import InvalidImagesError, InvalidLabelsError, MalformedAnswerError
from serving.client.tensors import LENGTH, pack, unpack
from serving.codecs.pictures.file_types import PICTURES, recognise
from serving.model.tensors import CLASSES, SIDE, Accepted, Confidences, Images, Scores

MAX_LABELS = 256
"""In a request."""

Part = TypeVar("Part", Images, Sequence[bytes])
Scalar = TypeVar("Scalar", bound=np.generic)


class Timing(NamedTuple):
    """Milliseconds spent in the service, by stage; the sum over all requests where there were several."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


class Feedback(NamedTuple):
    """What became of the true digits that were sent."""

    counted: int
    repeated: int
    """That were counted before."""
    rejected: list[str]
    """Messages of the service, for each label that was not counted."""


@dataclass(frozen=True)
class Predictions:
    """The predictions for N images."""

    digits: NDArray[np.int64]
    """`[N]`"""
    probabilities: Scores
    """`[N, 10]`"""
    model: str
    version: str
    timing: Timing
    confidence: Confidences | None = None
    """`[N]`: calibrated probability that the image shows a digit, and the predicted one; None if the model has no
    acceptance rule."""
    accepted: Accepted | None = None
    """`[N]`: whether the confidence reaches the model's threshold."""
    ids: Sequence[tuple[str, int]] = ()
    """`[N]`: the id of each image's request and the index in it, for `feedback`."""

    def __len__(self) -> int:
        return len(self.digits)


def as_images(images: ArrayLike) -> Images:
    """Return `uint8 [N, 28, 28]`, N ≥ 1, from that or from one `[28, 28]`. Raises `InvalidImagesError`."""
    found = np.asarray(images)
    array = found[np.newaxis] if found.ndim == 2 else found
    if array.dtype != np.uint8 or array.shape[1:] != (SIDE, SIDE) or not len(array):
        raise InvalidImagesError(
            f"images are {found.dtype} {list(found.shape)}; "
            "expected uint8 [N, 28, 28], ink 0–255 on background 0"
        )
    return array


def split(inputs: Part, size: int) -> list[Part]:
    """Cut into parts of at most `size`, at least one."""
    return [inputs[start : start + size] for start in range(0, max(1, len(inputs)), size)]


def media_type(file: bytes, index: int) -> str:
    """Return the media type of picture number `index`. Raises `InvalidImagesError` for a format that is not read."""
    kind = recognise(file)
    if kind and kind.name in PICTURES:
        return f"image/{kind.name.lower()}"
    found = kind.name if kind else f"{len(file)} bytes starting with {file[:4]!r}"
    raise InvalidImagesError(
        f"picture {index} is {found}; expected a file of the format {', '.join(PICTURES)}"
    )


def images_request(http: httpx.Client | httpx.AsyncClient, model: str, images: Images) -> httpx.Request:
    """Build an inference request of the Open Inference Protocol, binary in both directions."""
    headers, content = pack(images, parameters={"binary_data_output": True})  # all outputs that the model has
    path = f"/v2/models/{quote(model, safe='')}/infer"
    return http.build_request("POST", path, headers=headers, content=content)


def images_response(response: httpx.Response, count: int) -> Predictions:
    """Read the predictions for `count` images. Raises `MalformedAnswerError`."""
    try:
        document, outputs = unpack(response.headers[LENGTH], response.content)
        entries = (entry.split(";dur=") for entry in response.headers["Server-Timing"].split(", "))
        return _predictions(
            np.frombuffer(outputs["probabilities"], "<f4").reshape(count, CLASSES),
            document["model_name"],
            document["model_version"],
            {f"{stage}_ms": float(milliseconds) for stage, milliseconds in entries},
            np.frombuffer(outputs["confidence"], "<f4", count) if "confidence" in outputs else None,
            np.frombuffer(outputs["accepted"], np.bool_, count) if "accepted" in outputs else None,
            _ids(response, count),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(response) from error


def pictures_request(
    http: httpx.Client | httpx.AsyncClient, model: str | None, pictures: Sequence[bytes]
) -> httpx.Request:
    """Build a prediction request for picture files. Raises `InvalidImagesError` for anything else."""
    kinds = [media_type(file, index) for index, file in enumerate(pictures)]
    if not kinds:
        raise InvalidImagesError("found no picture; expected at least one file, as bytes")
    path = f"/predict/{quote(model, safe='')}" if model else "/predict"
    if len(pictures) == 1:
        return http.build_request("POST", path, headers={"Content-Type": kinds[0]}, content=pictures[0])
    files = [
        ("file", (str(index), file, kind))
        for index, (file, kind) in enumerate(zip(pictures, kinds, strict=True))
    ]
    return http.build_request("POST", path, files=files)


def pictures_response(response: httpx.Response, count: int) -> Predictions:
    """Read the predictions for `count` pictures. Raises `MalformedAnswerError`."""
    try:
        document = json.loads(response.content)
        predictions = document["predictions"]
        scores = np.array([one["probabilities"] for one in predictions], np.float32).reshape(count, CLASSES)
        rule = [[one.get(name) for one in predictions] for name in ("confidence", "accepted")]
        return _predictions(
            scores,
            document["model"],
            document["version"],
            document["timing"],
            None if None in rule[0] else np.array(rule[0], np.float32),
            None if None in rule[1] else np.array(rule[1], np.bool_),
            _ids(response, count),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(response) from error


def feedback_request(
    http: httpx.Client | httpx.AsyncClient, ids: Sequence[tuple[str, int]], digits: Sequence[int | None]
) -> httpx.Request:
    """Build the request that labels these images."""
    labels = [
        {"id": request_id, "index": index, "digit": int(digit)}
        for (request_id, index), digit in zip(ids, digits, strict=True)
        if digit is not None
    ]
    return http.build_request("POST", "/feedback", json={"labels": labels})


def feedback_response(response: httpx.Response) -> Feedback:
    """Read what became of labels. Raises `MalformedAnswerError`."""
    try:
        document = json.loads(response.content)
        rejected = [one["message"] for one in document["rejected"]]
        return Feedback(document["counted"], document["repeated"], rejected)
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(response) from error


def join_feedback(parts: Sequence[Feedback]) -> Feedback:
    """Return the sum of several responses."""
    rejected = [message for part in parts for message in part.rejected]
    return Feedback(sum(part.counted for part in parts), sum(part.repeated for part in parts), rejected)


def check_labels(
    predictions: Predictions, digits: Sequence[int | None]
) -> list[tuple[Sequence[tuple[str, int]], Sequence[int | None]]]:
    """Return ids and digits by request: those with a digit. Raises `InvalidLabelsError`."""
    if len(digits) != len(predictions.ids):
        raise InvalidLabelsError(
            f"found {len(digits)} digits for {len(predictions.ids)} images with a request id; expected one each, or "
            "None"
        )
    for position, digit in enumerate(digits):
        if digit is not None and digit not in range(10):
            raise InvalidLabelsError(
                f"digit {position} is {digit!r}; expected an integer from 0 to 9, or None"
            )
    known = [position for position, digit in enumerate(digits) if digit is not None]
    return [
        ([predictions.ids[one] for one in part], [digits[one] for one in part])
        for start in range(0, len(known), MAX_LABELS)
        if (part := known[start : start + MAX_LABELS])
    ]


def models_response(response: httpx.Response) -> dict[str, dict[str, Any]]:
    """Read the manifests by model name, the default model's first. Raises `MalformedAnswerError`."""
    try:
        document = json.loads(response.content)
        models = {manifest["name"]: manifest for manifest in document["models"]}
        return {document["default"]: models[document["default"]]} | models
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(response) from error


def join(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate in order. Raises `MalformedAnswerError` when they come from different models or versions."""
    if len(parts) == 1:
        return parts[0]
    models = {(part.model, part.version) for part in parts}
    if len(models) > 1:
        raise MalformedAnswerError(f"the model changed between requests: {sorted(models)}; predict again")
    return Predictions(
        np.concatenate([part.digits for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        *models.pop(),
        Timing(*map(sum, zip(*(part.timing for part in parts), strict=True))),
        _joined([part.confidence for part in parts]),
        _joined([part.accepted for part in parts]),
        [one for part in parts for one in part.ids],
    )


def malformed(response: httpx.Response) -> MalformedAnswerError:
    """Return the error for a response that is not one of this service."""
    return MalformedAnswerError(
        f"{response.url}: status {response.status_code} with {response.content[:80]!r} "
        "is not a response of this service; check the URL"
    )


def _predictions(
    scores: Scores,
    model: str,
    version: str,
    timing: dict[str, float],
    confidence: Confidences | None,
    accepted: Accepted | None,
    ids: Sequence[tuple[str, int]],
) -> Predictions:
    digits, durations = scores.argmax(axis=1), Timing(**timing)
    return Predictions(digits, scores, model, version, durations, confidence, accepted, ids)


def _ids(response: httpx.Response, count: int) -> list[tuple[str, int]]:
    """Return the name of each image; of none where a proxy has removed the header."""
    request_id = response.headers.get("X-Request-ID", "")
    return [(request_id, index) for index in range(count)] if request_id else []


def _joined(parts: Sequence[NDArray[Scalar] | None]) -> NDArray[Scalar] | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None
