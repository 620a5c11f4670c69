"""Versions of a model that benchmarks write."""

from pathlib import Path

import numpy as np

from benchmarks.load.digits import load_digits
from benchmarks.systems.candidates import accepting_all, write_versions
from serving.model.release import read_release
from serving.model.repository import load_model
from serving.model.session import Session
from serving.model.versions import VersionPolicy


def test_a_model_that_accepts_all_predicts_as_before(model_repository: Path) -> None:
    entry = load_model(model_repository / "student" / "1")
    images = np.concatenate([load_digits(), np.full((1, 28, 28), 255, np.uint8)])
    before, after = (Session(one.content).run(images) for one in (entry, accepting_all(entry)))
    assert not all(before.accepted or [])
    assert all(after.accepted or [False])
    assert np.array_equal(before.digits, after.digits)


def test_models_become_the_versions_of_one(model_repository: Path, tmp_path: Path) -> None:
    entries = [
        accepting_all(load_model(model_repository / name / "1")) for name in ("student", "student-alone")
    ]
    write_versions(tmp_path, "model", entries)
    assert VersionPolicy.read(tmp_path / "model").kind == "all"
    release = read_release(tmp_path)
    assert release
    assert release.stable == "model/1"
    for version, entry in zip("12", entries, strict=True):
        assert load_model(tmp_path / "model" / version).content == entry.content
