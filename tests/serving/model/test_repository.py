"""An invalid repository is rejected at start; the error names the file and the fix."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.model.repository import RepositoryError, load_repository


@pytest.fixture
def repository(model_repository: Path, tmp_path: Path) -> Path:
    """A copy that tests may change."""
    return Path(shutil.copytree(model_repository, tmp_path / "models"))


def edit(repository: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = repository / "student" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_every_model_is_read(repository: Path) -> None:
    assert list(load_repository(repository)) == ["student", "student-alone", "student-int8", "teacher"]


def test_the_highest_version_is_served(repository: Path) -> None:
    shutil.copytree(repository / "student" / "1", repository / "student" / "10")
    shutil.copytree(repository / "student" / "1", repository / "student" / "9")
    for version in ("9", "10"):
        manifest = repository / "student" / version / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"version": "1"', f'"version": "{version}"'))
    assert load_repository(repository)["student"].manifest.version == "10"


def test_an_unfinished_export_is_ignored(repository: Path) -> None:
    (repository / ".publish-abc" / "half").mkdir(parents=True)
    assert len(load_repository(repository)) == 4


def test_a_changed_graph_is_rejected(repository: Path) -> None:
    with (repository / "student" / "1" / "model.onnx").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(RepositoryError, match=r"student/1/model.onnx has SHA-256 .* export the model again"):
        load_repository(repository)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_missing_file_is_rejected(repository: Path, name: str) -> None:
    (repository / "student" / "1" / name).unlink()
    with pytest.raises(RepositoryError, match=f"student/1/{name} is missing"):
        load_repository(repository)


def test_an_unknown_field_is_rejected(repository: Path) -> None:
    edit(repository, lambda manifest: manifest.update(surprise=1))
    with pytest.raises(RepositoryError, match=r"surprise: Extra inputs are not permitted \(found 1\)"):
        load_repository(repository)


def test_a_field_out_of_range_is_rejected(repository: Path) -> None:
    edit(repository, lambda manifest: manifest.update(test_accuracy=97.5))
    with pytest.raises(RepositoryError, match=r"test_accuracy: .*found 97.5"):
        load_repository(repository)


def test_a_manifest_that_is_not_json_is_rejected(repository: Path) -> None:
    (repository / "student" / "1" / "manifest.json").write_text("{")
    with pytest.raises(RepositoryError, match="Invalid JSON"):
        load_repository(repository)


def test_a_model_copied_under_another_name_is_rejected(repository: Path) -> None:
    shutil.copytree(repository / "student", repository / "other")
    with pytest.raises(RepositoryError, match=r"describes student/1, but is in other/1"):
        load_repository(repository)


def test_unsupported_inputs_are_rejected(repository: Path) -> None:
    edit(repository, lambda manifest: manifest["inputs"][0].update(shape=[-1, 784]))
    with pytest.raises(RepositoryError, match="inputs and outputs differ from those this service supports"):
        load_repository(repository)


def test_a_missing_or_empty_repository_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="make export"):
        load_repository(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match="is empty"):
        load_repository(tmp_path)


def test_a_model_without_a_version_is_rejected(repository: Path) -> None:
    (repository / "new").mkdir()
    with pytest.raises(RepositoryError, match="has no version folder"):
        load_repository(repository)
