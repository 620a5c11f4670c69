"""Versions of a model in a repository: good ones, and those that a service must reject, each for another reason."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import onnx

from serving.model.release import Release, write_release
from serving.model.repository import MANIFEST_FILE, MODEL_FILE, THRESHOLD, Manifest, ModelEntry
from serving.model.sample import make_sample
from serving.model.session import Session
from serving.model.tensors import Images
from serving.model.versions import CONFIG_FILE, VersionPolicy


def place(root: Path, name: str, version: str, entry: ModelEntry, images: Images) -> Path:
    """Write a model as another version of `name`, with a sample of its outputs for `images`; return its folder."""
    logits = np.asarray(Session(entry.content).run(images).logits, np.float32)
    changes = {"name": name, "version": version, "sample": make_sample(images, logits)}
    return write_version(root, entry.manifest.model_copy(update=changes), entry.content)


def accepting_all(entry: ModelEntry) -> ModelEntry:
    """Return a model that accepts every prediction: the same graph with an acceptance threshold of 0."""
    if entry.manifest.acceptance is None:
        return entry
    graph = onnx.load_from_string(entry.content)
    for one in graph.metadata_props:
        if one.key == THRESHOLD:
            one.value = "0"
    content = graph.SerializeToString()
    changes = {
        "sha256": sha256(content).hexdigest(),
        "size_bytes": len(content),
        "acceptance": entry.manifest.acceptance.model_copy(update={"threshold": 0.0}),
    }
    manifest = entry.manifest.model_copy(update=changes)
    return entry.model_copy(update={"content": content, "manifest": manifest})


def write_versions(root: Path, name: str, entries: Sequence[ModelEntry]) -> None:
    """Write a repository with these models as the versions 1, 2, … of one, all served; the first one is stable."""
    for number, entry in enumerate(entries, 1):
        changes = {"name": name, "version": str(number)}
        write_version(root, entry.manifest.model_copy(update=changes), entry.content)
    (root / name / CONFIG_FILE).write_text(VersionPolicy("all").text())
    write_release(root, Release(stable=f"{name}/1"))


def write_version(root: Path, manifest: Manifest, content: bytes, **changes: Any) -> Path:
    """Write a version, whole; `changes` are those of the manifest."""
    folder = root / manifest.name / manifest.version
    staging = root / f".{manifest.name}-{manifest.version}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    (staging / MODEL_FILE).write_bytes(content)
    (staging / MANIFEST_FILE).write_text(json.dumps(manifest.model_dump(mode="json") | changes))
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    staging.rename(folder)
    return folder


def _wrong_hash(folder: Path) -> None:
    path = folder / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def _unknown_operator(folder: Path) -> None:
    graph = onnx.load(folder / MODEL_FILE)
    graph.graph.node[0].op_type = "Unheard"
    _replace(folder, graph.SerializeToString())


def _wrong_sample(folder: Path) -> None:
    """Other weights, with their hash: only the outputs show it."""
    graph = onnx.load(folder / MODEL_FILE)
    weights = next(one for one in graph.graph.initializer if len(one.dims) == 2)
    values = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weights.name))
    _replace(folder, graph.SerializeToString())


def _unreadable_manifest(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text()[:100])


def _replace(folder: Path, content: bytes) -> None:
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text()) | {"sha256": sha256(content).hexdigest()}
    (folder / MODEL_FILE).write_bytes(content)
    path.write_text(json.dumps(manifest))


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "wrong hash": _wrong_hash,
    "unknown operator": _unknown_operator,
    "other weights, with their hash": _wrong_sample,
    "unreadable manifest": _unreadable_manifest,
    "crash of its trial": lambda _: None,
}
"""By what is wrong; the last one is a good version, whose trial `crashing_trial` ends."""
CRASH = "crash of its trial"


class CrashingTrial:
    """Ends the next process that a service starts with SIGSEGV, as a harmful graph would."""

    def __init__(self, service: int) -> None:
        """`service` is the id of its first process."""
        self.crashed = False
        self._children = Path(f"/proc/{service}/task/{service}/children")
        self._known = self._present()
        self._stopped = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> "CrashingTrial":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _present(self) -> set[str]:
        return set(self._children.read_text().split())

    def _watch(self) -> None:
        while not self._stopped.is_set():
            for pid in self._present() - self._known:
                os.kill(int(pid), signal.SIGSEGV)
                self.crashed = True
                return
            time.sleep(0.0005)
