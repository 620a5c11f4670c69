"""A peer: another system that serves one of our models, as declared in `benchmarks/peers/<name>/peer.toml`.

    title = "bare ASGI + orjson + onnxruntime"
    command = ["python", "server.py", "{model}", "{port}", "{processes}"]
    ready = "/health"
    request = "/predict"
    body = '{"image": {image}}'
    answer = "probabilities"
    packages = ["uvicorn", "orjson"]

`command` runs in the peer's folder, with its virtual environment first in PATH. It and the values of `[environment]`
may contain {model}, {port}, {processes}, {scratch} (a folder for temporary files) and any {..._port} (another free
port). `body` is JSON with {image}, 28 rows of 28 integers, or {pixels}, 784 integers; `answer` is the dotted path to
the 10 probabilities.
"""

import json
import re
import tomllib
from http.client import HTTPMessage
from pathlib import Path
from string import Formatter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from benchmarks.load.workloads import Workload, json_request
from distillery import unknown
from serving.model.tensors import Images

PEERS = Path(__file__).resolve().parents[1] / "peers"
PLACEHOLDERS = {"model", "port", "processes", "scratch"}
"""In command and environment, besides any ..._port."""
_IN_BODY = re.compile(r"\{image\}|\{pixels\}")


class Peer(BaseModel):
    """The declaration of a system: how to start it, send it a request and read its response."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    title: str
    command: list[str] = Field(min_length=1)
    environment: dict[str, str] = {}
    ready: str = Field(pattern="^/")
    """Path that responds with 200 to GET when the system is ready."""
    request: str = Field(pattern="^/")
    body: str
    answer: str
    packages: list[str] = Field(min_length=1)
    """Their versions are kept with the result."""

    @field_validator("body")
    @classmethod
    def _body_is_json_with_an_image(cls, body: str) -> str:
        if len(_IN_BODY.findall(body)) != 1:
            raise ValueError(f"expected {{image}} or {{pixels}} exactly once, found {body!r}")
        json.loads(_IN_BODY.sub("[]", body))
        return body

    @field_validator("command", "environment")
    @classmethod
    def _placeholders_are_known(cls, value: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
        texts = value.values() if isinstance(value, dict) else value
        names = [name for text in texts for _, name, _, _ in Formatter().parse(text) if name]
        if other := [name for name in names if name not in PLACEHOLDERS and not name.endswith("_port")]:
            raise ValueError(f"unknown placeholders {other}; known: {sorted(PLACEHOLDERS)} and any ..._port")
        return value

    @property
    def name(self) -> str:
        """Name in commands and results: the folder's, with hyphens."""
        return self.folder.name.replace("_", "-")

    def workload(self, url: str, model: str, images: Images | None = None) -> Workload:
        """Prepare one request per image (default: those of `load/digits.png`) to the system at `url`."""
        digits = load_digits() if images is None else images
        target = f"{url.rstrip('/')}{self.request}"
        return Workload(
            server=self.name,
            url=target,
            model=model,
            requests=tuple(json_request(target, self._fill_body(digit)) for digit in digits),
            groups=tuple(digits[:, None]),
            read=self._read_answer,
        )

    def _fill_body(self, digit: Images) -> bytes:
        pixels = digit if "{image}" in self.body else digit.ravel()
        return _IN_BODY.sub(json.dumps(pixels.tolist(), separators=(",", ":")), self.body).encode()

    def _read_answer(self, _: HTTPMessage, body: bytes) -> list[Any]:
        """Follow the dotted path: a step is an index in a list, a key in an object."""
        document = json.loads(body)
        for step in self.answer.split("."):
            try:
                document = document[int(step) if isinstance(document, list) else step]
            except (LookupError, TypeError, ValueError):
                raise BenchmarkError(
                    f"{self.name}: no {step!r} of {self.answer!r} in the response {str(document)[:200]}"
                ) from None
        return [document]


def peer_names(folder: Path = PEERS) -> list[str]:
    """Return the names of all peers."""
    return sorted(path.parent.name.replace("_", "-") for path in folder.glob("*/peer.toml"))


def load_peer(name: str, folder: Path = PEERS) -> Peer:
    """Read one declaration. Raises `BenchmarkError` for an unknown name or an invalid file."""
    if name not in peer_names(folder):
        raise BenchmarkError(unknown("peer", name, peer_names(folder)))
    path = folder / name.replace("-", "_") / "peer.toml"
    try:
        return Peer(folder=path.parent, **tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BenchmarkError(f"{path}: {error}") from None
