"""Workloads: prepared HTTP requests, and the check of their responses.

A workload is one server, one model and one kind of body. Before anything is timed, the response to each of its requests
is compared with an onnxruntime session.
"""

import http.client
import io
import json
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from serving.client.tensors import LENGTH, pack, unpack
from serving.model.session import open_session
from serving.model.tensors import Images

PROBABILITIES = {"name": "probabilities", "parameters": {"binary_data": True}}
"""The output that a V2 request asks for."""

BodyKind = Literal["json", "png", "json-8", "json-64", "binary", "binary-8", "binary-64"]
"""Encoding of the images, and their number per request (default: one)."""
TOLERANCE = 1e-4
"""Largest difference of a probability: a batch is summed in another order than one image."""
PATIENCE_S = 30


Reader = Callable[[Any], Any]


def _decode_json(headers: HTTPMessage, body: bytes) -> Any:  # noqa: ARG001 - other decoders need the headers
    return json.loads(body)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests for one model of one server, and the decoding of the responses."""

    server: str
    url: str
    model: str
    body: BodyKind
    requests: tuple[bytes, ...]
    """Complete HTTP/1.1 requests, headers and body."""
    groups: tuple[Images, ...]
    """The images of each request, `uint8 [N,28,28]`."""
    read_probabilities: Reader
    """From the decoded response to `[N][10]`."""
    decode: Callable[[HTTPMessage, bytes], Any] = _decode_json
    """From the response's headers and body; the default is JSON."""

    @property
    def images_per_request(self) -> int:
        """N of each group."""
        return len(self.groups[0])

    def __str__(self) -> str:
        return f"{self.server} at {self.url}, {self.model}, {self.body}"


def service_workload(
    url: str, model: str, body: BodyKind = "json", images: Images | None = None, *, server: str = "service"
) -> Workload:
    """Prepare requests to the service at `url` (without a path).

    `POST /predict/{model}` for JSON and PNG, `POST /v2/models/{model}/infer` for binary tensors; `images` are
    those of `benchmarks/load/digits.png` by default.
    """
    digits = load_digits() if images is None else images
    form, _, many = body.partition("-")
    size = int(many or 1)
    groups = tuple(
        np.resize(digits, (max(4, len(digits) // size), size, 28, 28)) if many else digits[:, None]
    )
    if form == "binary":
        return _v2_workload(url, model, body, groups, server=server)
    if form == "png":
        bodies = [_png(group[0]) for group in groups]
    elif many:
        bodies = [_json({"images": group.tolist()}) for group in groups]
    else:
        bodies = [_json({"image": group[0].tolist()}) for group in groups]
    headers = {"Content-Type": "image/png" if form == "png" else "application/json"}
    target = f"{url.rstrip('/')}/predict/{model}"
    return Workload(
        server=server,
        url=target,
        model=model,
        body=body,
        requests=tuple(_request(target, headers, content) for content in bodies),
        groups=groups,
        read_probabilities=lambda answer: [one["probabilities"] for one in answer["predictions"]],
    )


def _v2_workload(
    url: str, model: str, body: BodyKind, groups: tuple[Images, ...], *, server: str
) -> Workload:
    target = f"{url.rstrip('/')}/v2/models/{model}/infer"
    return Workload(
        server=server,
        url=target,
        model=model,
        body=body,
        requests=tuple(_request(target, *pack(group, outputs=[PROBABILITIES])) for group in groups),
        groups=groups,
        read_probabilities=lambda probabilities: probabilities,
        decode=read_binary_probabilities,
    )


def read_binary_probabilities(headers: HTTPMessage, body: bytes) -> NDArray[np.float32]:
    """Return the probabilities `[N, 10]` of a V2 response. Raises `BenchmarkError` for a response without them."""
    try:
        _, tensors = unpack(headers[LENGTH], body)
        return np.frombuffer(tensors["probabilities"], "<f4").reshape(-1, 10)
    except (KeyError, TypeError, ValueError):
        raise BenchmarkError(f"the response has no binary tensor of probabilities: {body[:300]!r}") from None


def json_workload(
    target: str, model: str, bodies: Iterable[bytes], groups: tuple[Images, ...], read: Reader, *, server: str
) -> Workload:
    """Prepare requests to another server: `bodies` to the URL `target`, each with the images of its group."""
    headers = {"Content-Type": "application/json"}
    return Workload(
        server=server,
        url=target,
        model=model,
        body="json",
        requests=tuple(_request(target, headers, body) for body in bodies),
        groups=groups,
        read_probabilities=read,
    )


def check_answers(workload: Workload, model_path: Path) -> float:
    """Send every request once, each on a new connection, and compare the response with a session of the same file.

    Returns the largest difference between two probabilities. Raises `BenchmarkError` for a status other than
    200 or probabilities that are not the model's.
    """
    session = open_session(model_path)
    worst = 0.0
    for request, images in zip(workload.requests, workload.groups, strict=True):
        (expected,) = session.run(["probabilities"], {"image": images})
        status, headers, answer = _send(workload, request)
        if status != 200:
            raise BenchmarkError(f"{workload}: status {status}: {answer[:300].decode(errors='replace')}")
        found = np.array(workload.read_probabilities(workload.decode(headers, answer)), dtype=np.float64)
        difference = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
        if not difference <= TOLERANCE:
            raise BenchmarkError(
                f"{workload}: the predictions are not those of {model_path.name} in the given model repository "
                f"(probabilities differ by {difference:.2g}, shape {found.shape} against {expected.shape}); "
                "--models-dir must name the repository that the service reads"
            )
        worst = max(worst, float(difference))
    return worst


def _send(workload: Workload, request: bytes) -> tuple[int, HTTPMessage, bytes]:
    address = urlsplit(workload.url)
    try:
        with socket.create_connection((str(address.hostname), address.port or 80), PATIENCE_S) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection, method="POST")
            response.begin()
            return response.status, response.headers, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"{workload}: no response: {error}") from error


def _request(url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    address = urlsplit(url)
    lines = {"Host": address.netloc, **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {address.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _png(digit: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(digit).save(file, format="PNG")
    return file.getvalue()
