"""What a client sends and gets, as bytes: binary tensors, pictures, predictions, and the words of a refusal."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving.client.errors import InvalidImagesError, MalformedAnswerError

_HEADER_LENGTH = "inference-header-content-length"
_KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}


class Send(NamedTuple):
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str] = {}
    content: bytes = b""


class Answer(NamedTuple):
    """A whole response; header names match whatever their case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Timing(NamedTuple):
    """Milliseconds that the service spent where; of all requests together where there were several."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


@dataclass(frozen=True)
class Predictions:
    """The answer to N images."""

    digits: NDArray[np.int64]
    """`[N]`"""
    probabilities: NDArray[np.float32]
    """`[N, 10]`"""
    model: str
    version: str
    timing: Timing

    def __len__(self) -> int:
        return len(self.digits)


def as_images(images: ArrayLike) -> NDArray[np.uint8]:
    """`uint8 [N, 28, 28]`, N ≥ 1; one image `[28, 28]` is taken too. Raises `InvalidImagesError`."""
    found = np.asarray(images)
    array = found[np.newaxis] if found.ndim == 2 else found
    if array.dtype != np.uint8 or array.shape[1:] != (28, 28) or not len(array):
        raise InvalidImagesError(
            f"images are {found.dtype} {list(found.shape)}; "
            "expected uint8 [N, 28, 28], ink 0–255 on background 0"
        )
    return array


def infer_request(model: str, images: NDArray[np.uint8]) -> Send:
    """Ask for probabilities by the Open Inference Protocol, binary both ways."""
    document = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": images.shape,
                "parameters": {"binary_data_size": images.size},
            }
        ],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(document).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(text))}
    return Send("POST", f"/v2/models/{quote(model, safe='')}/infer", headers, text + images.tobytes())


def infer_answer(answer: Answer, images: int) -> Predictions:
    """Read the answer to a request of so many images. Raises `MalformedAnswerError`."""
    try:
        length = int(answer.headers[_HEADER_LENGTH])
        document = json.loads(answer.content[:length])
        scores = np.frombuffer(answer.content, "<f4", offset=length).reshape(images, 10)
        return Predictions(
            scores.argmax(axis=1), scores, document["model_name"], document["model_version"], _timing(answer)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(answer) from error


def picture_request(model: str | None, pictures: Sequence[bytes]) -> Send:
    """Ask about files of PNG or JPEG. Raises `InvalidImagesError` for what is neither."""
    kinds = [
        next((kind for magic, kind in _KINDS.items() if file.startswith(magic)), "") for file in pictures
    ]
    if not all(kinds) or not kinds:
        found = (
            f"picture {kinds.index('')} begins with {pictures[kinds.index('')][:4]!r}" if kinds else "none"
        )
        raise InvalidImagesError(f"found {found}; expected at least one file of PNG or JPEG, as bytes")
    path = f"/predict/{quote(model, safe='')}" if model else "/predict"
    if len(pictures) == 1:
        return Send("POST", path, {"Content-Type": kinds[0]}, pictures[0])
    boundary = secrets.token_hex(16)
    parts = [
        b"--%b\r\nContent-Disposition: form-data; name=file; filename=%d\r\nContent-Type: %b\r\n\r\n%b\r\n"
        % (boundary.encode(), index, kind.encode(), file)
        for index, (kind, file) in enumerate(zip(kinds, pictures, strict=True))
    ]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return Send("POST", path, headers, b"".join(parts) + f"--{boundary}--\r\n".encode())


def picture_answer(answer: Answer, pictures: int) -> Predictions:
    """Read the answer to a request of so many pictures. Raises `MalformedAnswerError`."""
    document = json_document(answer)
    try:
        rows = [one["probabilities"] for one in document["predictions"]]
        scores = np.array(rows, np.float32).reshape(pictures, 10)
        return Predictions(
            scores.argmax(axis=1),
            scores,
            document["model"],
            document["version"],
            Timing(**document["timing"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(answer) from error


def join(parts: Sequence[Predictions]) -> Predictions:
    """One answer of several, in their order. Raises `MalformedAnswerError` when they are not of one model."""
    if len(parts) == 1:
        return parts[0]
    models = {(part.model, part.version) for part in parts}
    if len(models) > 1:
        raise MalformedAnswerError(f"the model changed between requests: {sorted(models)}; ask again")
    return Predictions(
        np.concatenate([part.digits for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        *models.pop(),
        Timing(*map(sum, zip(*(part.timing for part in parts), strict=True))),
    )


def json_document(answer: Answer) -> Any:
    """The JSON of an answer. Raises `MalformedAnswerError`."""
    try:
        return json.loads(answer.content)
    except ValueError as error:
        raise _malformed(answer) from error


def refusal_message(answer: Answer) -> str:
    """The service's own words, in any of its two forms; the bare text of something else in between."""
    try:
        error = json.loads(answer.content)["error"]
        return str(error if isinstance(error, str) else error["message"])
    except (KeyError, TypeError, ValueError):
        return answer.content[:200].decode(errors="replace")


def _timing(answer: Answer) -> Timing:
    """`Server-Timing` as the service writes it."""
    entries = (entry.split(";dur=") for entry in answer.headers["server-timing"].split(", "))
    return Timing(**{f"{name}_ms": float(value) for name, value in entries})


def _malformed(answer: Answer) -> MalformedAnswerError:
    return MalformedAnswerError(
        f"status {answer.status} with {answer.content[:80]!r} is no answer of this service; is the URL its own?"
    )
