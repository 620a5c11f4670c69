"""What is sent: prepared HTTP requests, and the check that their answers are the model's own.

A workload is one server, one model, one kind of body. Nothing is timed before every one of its requests has
been answered as an onnxruntime session answers it here.
"""

import http.client
import io
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.digits import Images, load_digits
from benchmarks.errors import BenchmarkError
from benchmarks.sessions import open_session

BodyKind = Literal["json", "png", "json-64"]
BIG = 64
TOLERANCE = 1e-4
"""Probabilities may differ by so much: a batch is summed in another order than one image."""
PATIENCE_S = 30


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests for one model of one server, and how to read the answers."""

    server: str
    url: str
    model: str
    body: BodyKind
    requests: tuple[bytes, ...]
    """Complete HTTP/1.1 requests, headers and body."""
    groups: tuple[Images, ...]
    """The images of each request, `uint8 [N,28,28]`."""
    read_probabilities: Callable[[Any], Any]
    """From the answer's JSON to `[N][10]`."""

    @property
    def images_per_request(self) -> int:
        """The N of each group."""
        return len(self.groups[0])

    def __str__(self) -> str:
        return f"{self.server} at {self.url}, {self.model}, {self.body}"


def service_workload(
    url: str, model: str, body: BodyKind = "json", images: Images | None = None, *, server: str = "service"
) -> Workload:
    """Prepare requests for `POST /predict/{model}` of the service at `url` (without a path).

    One image a request for "json" and "png", 64 for "json-64"; `images` are those of `benchmarks/digits.png`
    by default.
    """
    digits = load_digits() if images is None else images
    if body == "json-64":
        groups = tuple(np.resize(digits, (max(4, len(digits) // BIG), BIG, 28, 28)))
        bodies = [_json({"images": group.tolist()}) for group in groups]
    else:
        groups = tuple(digits[:, None])
        bodies = [_png(digit) if body == "png" else _json({"image": digit.tolist()}) for digit in digits]
    kind = "image/png" if body == "png" else "application/json"
    target = f"{url.rstrip('/')}/predict/{model}"
    return Workload(
        server=server,
        url=target,
        model=model,
        body=body,
        requests=tuple(_request(target, kind, content) for content in bodies),
        groups=groups,
        read_probabilities=lambda answer: [one["probabilities"] for one in answer["predictions"]],
    )


def first_example_workload(url: str, model: str, images: Images | None = None) -> Workload:
    """Prepare requests for `benchmarks/peers/litserve_first_example`, which takes one image as JSON."""
    digits = load_digits() if images is None else images
    target = f"{url.rstrip('/')}/predict"
    return Workload(
        server="litserve-first-example",
        url=target,
        model=model,
        body="json",
        requests=tuple(_request(target, "application/json", _json({"input": d.tolist()})) for d in digits),
        groups=tuple(digits[:, None]),
        read_probabilities=lambda answer: [answer["output"]],
    )


def check_answers(workload: Workload, model_path: Path) -> float:
    """Send every request once, each on a connection of its own, and compare with a session of the same file.

    Returns the largest difference between two probabilities. Raises `BenchmarkError` for a status other than
    200 or probabilities that are not the model's.
    """
    session = open_session(model_path)
    worst = 0.0
    for request, images in zip(workload.requests, workload.groups, strict=True):
        (expected,) = session.run(["probabilities"], {"image": images})
        status, answer = _send(workload, request)
        if status != 200:
            raise BenchmarkError(f"{workload}: answered {status}: {answer[:300].decode(errors='replace')}")
        found = np.array(workload.read_probabilities(json.loads(answer)), dtype=np.float64)
        difference = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
        if not difference <= TOLERANCE:
            raise BenchmarkError(
                f"{workload}: the answers are not those of {model_path.name} in the model repository given "
                f"(probabilities differ by {difference:.2g}, shape {found.shape} against {expected.shape}); "
                "name with --models-dir the repository that is served"
            )
        worst = max(worst, float(difference))
    return worst


def _send(workload: Workload, request: bytes) -> tuple[int, bytes]:
    address = urlsplit(workload.url)
    try:
        with socket.create_connection((str(address.hostname), address.port or 80), PATIENCE_S) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection, method="POST")
            response.begin()
            return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"{workload}: no answer: {error}") from error


def _request(url: str, content_type: str, body: bytes) -> bytes:
    address = urlsplit(url)
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _png(digit: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(digit).save(file, format="PNG")
    return file.getvalue()
