"""Another system that answers with one of our models, as `benchmarks/peers/<name>/peer.toml` declares it.

    title = "bare ASGI + orjson + onnxruntime"
    command = ["python", "server.py", "{model}", "{port}", "{processes}"]
    ready = "/health"
    request = "/predict"
    body = '{"image": {image}}'
    answer = "probabilities"
    packages = ["uvicorn", "orjson"]

`command` runs in the folder, with the programs of the system's own environment found first. It and the values of
`[environment]` may name {model}, {port}, {processes}, {scratch} (a folder for its files) and any {..._port}
(another free port). `body` is JSON with {image}, 28 rows of 28 integers, or {pixels}, 784 of them; `answer` is the
dotted path to the 10 probabilities.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import Images, load_digits
from benchmarks.load.workloads import Workload, json_workload

PEERS = Path(__file__).resolve().parents[1] / "peers"
FILES = ("README.md", "peer.toml", "requirements.txt", "server.py")
"""What every folder has, and nothing else."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_GIVEN = {"model", "port", "processes", "scratch"}


class Peer(BaseModel):
    """What there is to know of a system to run it, ask it and name it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    title: str
    command: list[str] = Field(min_length=1)
    environment: dict[str, str] = {}
    ready: str = Field(pattern="^/")
    """Answers 200 to GET when the system does."""
    request: str = Field(pattern="^/")
    body: str
    answer: str
    packages: list[str] = Field(min_length=1)
    """Whose versions are kept with the result."""

    @field_validator("body")
    @classmethod
    def _body_is_json_with_an_image(cls, body: str) -> str:
        if len(_IN_BODY.findall(body)) != 1:
            raise ValueError("a body has {image} or {pixels}, once")
        json.loads(_IN_BODY.sub("[]", body))
        return body

    @field_validator("command", "environment")
    @classmethod
    def _placeholders_are_known(cls, value: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
        unknown = [name for name in _names_in(value) if name not in _GIVEN and not name.endswith("_port")]
        if unknown:
            raise ValueError(f"unknown placeholders {unknown}; there are {sorted(_GIVEN)} and any ..._port")
        return value

    @property
    def name(self) -> str:
        """As commands and results spell it: the folder's name with hyphens."""
        return self.folder.name.replace("_", "-")

    @property
    def placeholders(self) -> list[str]:
        """What command and environment want to be told."""
        return _names_in(self.command) + _names_in(self.environment)

    def filled_command(self, values: Mapping[str, str]) -> list[str]:
        """Return the command with the placeholders' values."""
        return [_fill(argument, values) for argument in self.command]

    def filled_environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the environment with the placeholders' values."""
        return {name: _fill(value, values) for name, value in self.environment.items()}

    def workload(self, url: str, model: str, images: Images | None = None) -> Workload:
        """Prepare requests of one image each to the system at `url`, those of `load/digits.png` by default."""
        digits = load_digits() if images is None else images
        bodies = [self._fill_body(digit) for digit in digits]
        target = f"{url.rstrip('/')}{self.request}"
        return json_workload(
            target, model, bodies, tuple(digits[:, None]), self._read_answer, server=self.name
        )

    def _fill_body(self, digit: Images) -> bytes:
        shown = digit if "{image}" in self.body else digit.ravel()
        return _IN_BODY.sub(json.dumps(shown.tolist(), separators=(",", ":")), self.body).encode()

    def _read_answer(self, document: Any) -> list[Any]:
        """Follow the dotted path: numbers are places in a list, anything else a key."""
        for step in self.answer.split("."):
            try:
                document = document[int(step) if isinstance(document, list) else step]
            except (LookupError, TypeError, ValueError):
                raise BenchmarkError(
                    f"{self.name} answered {str(document)[:200]}, where there is no {step!r} of {self.answer!r}"
                ) from None
        return [document]


_IN_BODY = re.compile(r"\{image\}|\{pixels\}")


def _names_in(value: Sequence[str] | Mapping[str, str]) -> list[str]:
    texts = value.values() if isinstance(value, Mapping) else value
    return [name for text in texts for name in _PLACEHOLDER.findall(text)]


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def peer_names(folder: Path = PEERS) -> list[str]:
    """Return the names of all systems, as `load_peer` takes them."""
    return sorted(path.parent.name.replace("_", "-") for path in folder.glob("*/peer.toml"))


def load_peer(name: str, folder: Path = PEERS) -> Peer:
    """Read one declaration. Raises `BenchmarkError` for an unknown name or a file that does not fit."""
    if name not in peer_names(folder):
        raise BenchmarkError(f"there is no peer {name!r}, there are {', '.join(peer_names(folder))}")
    path = folder / name.replace("-", "_") / "peer.toml"
    try:
        return Peer(folder=path.parent, **tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BenchmarkError(f"{path}: {error}") from None
