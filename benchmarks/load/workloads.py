"""Workloads: prepared HTTP requests, and the check of their responses.

A workload is one server, one model and one kind of body. Before anything is timed, the response to each of its requests
is compared with an onnxruntime session.
"""

import http.client
import io
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from serving.client.tensors import LENGTH, pack, unpack
from serving.model.session import open_session
from serving.model.tensors import Images, Scores

PROBABILITIES = {"name": "probabilities", "parameters": {"binary_data": True}}
"""The output that a V2 request asks for."""

BodyKind = Literal["json", "png", "json-8", "json-64", "binary", "binary-8", "binary-64"]
"""Encoding of the images, and their number per request (default: one)."""
TOLERANCE = 1e-4
"""Largest difference of a probability: a batch is summed in another order than one image."""
PATIENCE_S = 30

Reader = Callable[[HTTPMessage, bytes], ArrayLike]
"""From the headers and the body of a response to probabilities `[N, 10]`."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests for one model of one server, and how to read the responses."""

    server: str
    url: str
    model: str
    body: BodyKind = "json"
    requests: tuple[bytes, ...]
    """Complete HTTP/1.1 requests, headers and body."""
    groups: tuple[Images, ...]
    """The images of each request, `uint8 [N,28,28]`."""
    read: Reader

    @property
    def images_per_request(self) -> int:
        """N of each group."""
        return len(self.groups[0])

    def __str__(self) -> str:
        return f"{self.server} at {self.url}, {self.model}, {self.body}"


def service_workload(
    url: str,
    model: str,
    body: BodyKind = "json",
    images: Images | None = None,
    *,
    server: str = "service",
    headers: Mapping[str, str] | None = None,
) -> Workload:
    """Prepare requests to the service at `url` (without a path).

    `POST /predict/{model}` for JSON and PNG, `POST /v2/models/{model}/infer` for binary tensors; `images` are
    those of `benchmarks/load/digits.png` by default. `headers` are added to those of the body.
    """
    digits = load_digits() if images is None else images
    form, _, many = body.partition("-")
    size = int(many or 1)
    groups = tuple(
        np.resize(digits, (max(4, len(digits) // size), size, 28, 28)) if many else digits[:, None]
    )
    target = f"{url.rstrip('/')}/predict/{model}"
    read: Reader = _read_predictions
    if form == "binary":
        target, read = f"{url.rstrip('/')}/v2/models/{model}/infer", read_binary_probabilities
        contents = [pack(group, outputs=[PROBABILITIES]) for group in groups]
    elif form == "png":
        contents = [({"Content-Type": "image/png"}, _png(group[0])) for group in groups]
    else:
        documents = [{"images": group.tolist()} if many else {"image": group[0].tolist()} for group in groups]
        contents = [({"Content-Type": "application/json"}, _json(document)) for document in documents]
    requests = [request(target, {**own, **(headers or {})}, content) for own, content in contents]
    return Workload(
        server=server, url=target, model=model, body=body, requests=tuple(requests), groups=groups, read=read
    )


def request(url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a complete POST request."""
    address = urlsplit(url)
    lines = {"Host": address.netloc, **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {address.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def json_request(url: str, body: bytes) -> bytes:
    """Return a complete POST request with a JSON body."""
    return request(url, {"Content-Type": "application/json"}, body)


def _read_predictions(_: HTTPMessage, body: bytes) -> ArrayLike:
    probabilities: ArrayLike = [one["probabilities"] for one in json.loads(body)["predictions"]]
    return probabilities


def read_binary_probabilities(headers: HTTPMessage | Mapping[str, str], body: bytes) -> NDArray[np.float32]:
    """Return the probabilities `[N, 10]` of a V2 response. Raises `BenchmarkError` for a response without them."""
    try:
        _, tensors = unpack(headers[LENGTH], body)
        return np.frombuffer(tensors["probabilities"], "<f4").reshape(-1, 10)
    except (KeyError, TypeError, ValueError):
        raise BenchmarkError(f"the response has no binary tensor of probabilities: {body[:300]!r}") from None


def check_answers(workload: Workload, model: Path | Callable[[Images], Scores]) -> float:
    """Send every request once, each on a new connection, and compare the response with a session of the same file.

    Instead of a file, `model` may be what computes the probabilities `[N, 10]` of images. Returns the largest
    difference between two probabilities. Raises `BenchmarkError` for a status other than 200 or probabilities that are
    not the model's.
    """
    infer, name = (model, workload.model) if callable(model) else (_session_of(model), model.name)
    worst = 0.0
    for prepared, images in zip(workload.requests, workload.groups, strict=True):
        expected = infer(images)
        status, headers, answer = _send(workload, prepared)
        if status != 200:
            raise BenchmarkError(f"{workload}: status {status}: {answer[:300].decode(errors='replace')}")
        found = np.array(workload.read(headers, answer), dtype=np.float64)
        difference = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
        if not difference <= TOLERANCE:
            raise BenchmarkError(
                f"{workload}: the predictions are not those of {name} in the given model repository "
                f"(probabilities differ by {difference:.2g}, shape {found.shape} against {expected.shape}); "
                "--models-dir must name the repository that the service reads"
            )
        worst = max(worst, float(difference))
    return worst


def _session_of(path: Path) -> Callable[[Images], Scores]:
    session = open_session(path)

    def infer(images: Images) -> Scores:
        probabilities: Scores = session.run(["probabilities"], {"image": images})[0]
        return probabilities

    return infer


def _send(workload: Workload, prepared: bytes) -> tuple[int, HTTPMessage, bytes]:
    address = urlsplit(workload.url)
    try:
        with socket.create_connection((str(address.hostname), address.port or 80), PATIENCE_S) as connection:
            connection.sendall(prepared)
            response = http.client.HTTPResponse(connection, method="POST")
            response.begin()
            return response.status, response.headers, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"{workload}: no response: {error}") from error


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _png(digit: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(digit).save(file, format="PNG")
    return file.getvalue()
