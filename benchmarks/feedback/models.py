"""Models named as NAME/VERSION, from a repository or from a running service."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.feedback.comparison import Predict, Predicted
from benchmarks.load.workloads import PROBABILITIES, read_binary_probabilities
from benchmarks.results.models import FACTS
from distillery import unknown
from serving.client.tensors import pack
from serving.model.repository import NAME, load_model
from serving.model.session import Session
from serving.model.tensors import Images
from training.data.request_log import KEY

BATCH = 256
REFERENCE = re.compile(rf"({NAME.pattern})/([1-9]\d*)")


class Named(NamedTuple):
    """A model to compare."""

    reference: str
    predict: Predict
    facts: dict[str, Any]
    """Of its manifest."""
    learned_from_log: bool


def from_repository(option: str, reference: str, models_dir: Path) -> Named:
    """Open `NAME/VERSION` of a repository. Raises `BenchmarkError` for an unknown one, `RepositoryError`."""
    name, version = _parse(option, reference)
    known = [
        f"{path.parent.name}/{path.name}" for path in sorted(models_dir.glob("*/*")) if path.name.isdecimal()
    ]
    if reference not in known:
        raise BenchmarkError(f"{option}: {models_dir}: {unknown('model', reference, known)}")
    entry = load_model(models_dir / name / version)
    if entry.manifest.cascade:
        raise BenchmarkError(
            f"{option} {reference} is a cascade, which has no graph of its own: compare it in a running service, --url"
        )
    session = Session(entry.path)

    def predict(images: Images) -> Predicted:
        parts = [session.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        digits = np.array([digit for part in parts for digit in part.digits], np.int64)
        if any(part.accepted is None for part in parts):
            return Predicted(digits, None)
        return Predicted(digits, np.array([one for part in parts for one in part.accepted or []], np.bool_))

    facts = entry.manifest.model_dump(include=set(FACTS))
    return Named(reference, predict, facts, KEY in entry.manifest.dataset)


def from_service(option: str, reference: str, client: httpx.Client) -> Named:
    """Use `NAME/VERSION` of a running service, over the Open Inference Protocol. Raises `BenchmarkError`."""
    name, version = _parse(option, reference)
    infer = f"/v2/models/{name}/versions/{version}/infer"

    def send(method: str, target: str, **content: Any) -> httpx.Response:
        try:
            response = client.request(method, target, **content)
        except httpx.HTTPError as error:
            raise BenchmarkError(
                f"{option} {reference}: {client.base_url} does not respond: {error}"
            ) from None
        if response.status_code != 200:
            raise BenchmarkError(
                f"{option} {reference}: {client.base_url} responds with {response.status_code}: "
                f"{response.text[:300]}"
            )
        return response

    def predict(images: Images) -> Predicted:
        parts = []
        for start in range(0, len(images), BATCH):
            headers, body = pack(images[start : start + BATCH], outputs=[PROBABILITIES])
            response = send("POST", infer, content=body, headers=headers)
            parts.append(read_binary_probabilities(response.headers, response.content).argmax(1))
        return Predicted(np.concatenate(parts).astype(np.int64), None)

    manifest = send("GET", f"/models/{name}/versions/{version}").json()
    facts = {fact: manifest[fact] for fact in FACTS if fact in manifest}
    return Named(reference, predict, facts, KEY in manifest.get("dataset", {}))


def _parse(option: str, reference: str) -> tuple[str, str]:
    if not (found := REFERENCE.fullmatch(reference)):
        raise BenchmarkError(f"{option} {reference}: name a model and its version, such as student/2")
    return found[1], found[2]
