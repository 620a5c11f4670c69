"""Changes of a model repository while a service runs from it, and what the service then serves."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import onnx
from onnx import numpy_helper

from serving.model.session import Session
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()


def scaled(content: bytes) -> bytes:
    """Return a graph whose first weights are other ones."""
    graph = onnx.load_from_string(content)
    weights = next(one for one in graph.graph.initializer if len(one.dims) == 2)
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    return graph.SerializeToString()


def publish(root: Path, source: Path, version: int, **changes: Any) -> Path:
    """Copy a version of the student to another one, as an export does: whole; return its folder.

    `changes` replace fields of the manifest; `content` replaces the graph, with the hash in the manifest.
    """
    staging, folder = root / ".staging", root / "student" / str(version)
    shutil.copytree(source, staging)
    manifest = json.loads((staging / "manifest.json").read_text()) | {"version": str(version)}
    if content := changes.pop("content", None):
        (staging / "model.onnx").write_bytes(content)
        manifest |= {"sha256": sha256(content).hexdigest()}
    (staging / "manifest.json").write_text(json.dumps(manifest | changes))
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return folder


def set_policy(root: Path, policy: str, name: str = "student") -> None:
    """Replace the version policy of a model."""
    path = root / name / "config.pbtxt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("version_policy")]
    path.write_text("\n".join([*lines, f"version_policy: {{ {policy} }}", ""]))


def served(url: str, **options: Any) -> dict[str, str]:
    """Return the index of a service: the state of each `name/version`, with the reason if there is one."""
    index = httpx.post(f"{url}/v2/repository/index", **options).json()
    return {
        f"{one['name']}/{one['version']}": f"{one['state']} {one.get('reason', '')}".strip() for one in index
    }


def predictions_of(folder: Path) -> Callable[[Any], bool]:
    """Return whether a response to the first test digits has the probabilities of the model in a version's folder."""
    expected = Session(folder / "model.onnx").run(DIGITS[:4]).probabilities

    def matches(answer: httpx.Response) -> bool:
        assert answer.status_code == 200, answer.text
        found = [one["probabilities"] for one in answer.json()["predictions"]]
        return bool(abs(expected - found).max() < 1e-3)

    return matches
