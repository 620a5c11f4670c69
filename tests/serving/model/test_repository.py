"""An invalid repository is rejected at start; the error names the file and the fix."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.model.repository import RepositoryError, load_repository

NOBODY = 65534


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


def test_what_is_not_a_model_is_skipped_and_named_in_one_warning(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Folders of file systems, of version control, of archives, of Kubernetes, and an unfinished export."""
    for folder in (
        "lost+found",
        ".git/refs",
        "__MACOSX/student",
        "System Volume Information",
        ".publish-abc/1",
    ):
        (repository / folder).mkdir(parents=True)
    (repository / "lost+found").chmod(0)  # as ext4 makes it, for root alone
    for file in (".DS_Store", "README.md", "teacher.onnx"):
        (repository / file).write_text("")
    (repository / "notes").symlink_to("README.md")
    assert list(load_repository(repository)) == ["student", "student-alone", "student-int8", "teacher"]
    (warning,) = caplog.messages
    assert "skipped .DS_Store, .git, .publish-abc, README.md, System Volume Information" in warning
    assert warning.endswith(
        "__MACOSX, lost+found, notes, 1 more: not a model, whose path is NAME/VERSION/model.onnx"
    )


def test_a_repository_without_strays_causes_no_warning(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_repository(repository)
    assert not caplog.messages


def test_models_behind_links_are_read(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Kubernetes mounts a volume of projected files, and git-sync a checkout."""
    volume = tmp_path / "volume"
    (volume / "..2026_11_26").mkdir(parents=True)
    (volume / "..data").symlink_to("..2026_11_26")
    (volume / "..2026_11_26" / "student").symlink_to(repository / "student")
    (volume / "student").symlink_to("..data/student")
    version = volume / "teacher"
    version.mkdir()
    (version / "1").symlink_to(repository / "teacher" / "1")
    (tmp_path / "current").symlink_to("volume")
    assert list(load_repository(tmp_path / "current")) == ["student", "teacher"]
    assert "skipped ..2026_11_26, ..data:" in caplog.text


def test_a_link_to_nowhere_is_a_broken_model(repository: Path) -> None:
    (repository / "fast").symlink_to("../elsewhere/fast")
    with pytest.raises(RepositoryError, match=r"fast is a link to \.\./elsewhere/fast, which does not exist"):
        load_repository(repository)


def test_a_model_with_an_invalid_name_is_a_broken_model(repository: Path) -> None:
    (repository / "student").rename(repository / "Student")
    with pytest.raises(RepositoryError, match="describes student/1, but is in Student/1"):
        load_repository(repository)


@pytest.fixture
def public_repository(model_repository: Path) -> Iterator[Path]:
    """A copy that other users can read, unlike pytest's folders."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(model_repository / "student", Path(folder) / "models/student")).parent


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Continue as a user whom permissions restrict, if this is root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "path", ["..", ".", "student", "student/1", "student/1/manifest.json", "student/1/model.onnx"]
)
def test_what_a_user_may_not_read_is_named_with_the_fix(public_repository: Path, path: str) -> None:
    """As models exported with umask 077 and mounted for another user."""
    place = (public_repository / path).resolve()  # the path may lead through a folder that is closed below
    mode = place.stat().st_mode
    place.chmod(0)
    with as_ordinary_user(), pytest.raises(RepositoryError) as caught:
        load_repository(public_repository)
    place.chmod(mode)
    assert re.fullmatch(
        rf"{public_repository}\S* is not readable for user \d+: chmod -R a\+rX {public_repository}\S*, "
        r"and a\+x on the folders above it",
        str(caught.value),
    )


def test_folders_for_root_alone_are_skipped(public_repository: Path) -> None:
    (public_repository / "lost+found").mkdir(mode=0)
    with as_ordinary_user():
        assert list(load_repository(public_repository)) == ["student"]


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
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(RepositoryError, match=r"contains no model, only lost\+found; `make export`"):
        load_repository(tmp_path)


@pytest.mark.parametrize("path", ["student", "student/1"])
def test_a_model_in_place_of_the_repository_is_rejected(repository: Path, path: str) -> None:
    with pytest.raises(
        RepositoryError, match=f"{path} is a model or a version of one: name the folder with models"
    ):
        load_repository(repository / path)


def test_a_model_without_a_version_is_rejected(repository: Path) -> None:
    (repository / "new").mkdir()
    with pytest.raises(RepositoryError, match="has no version folder"):
        load_repository(repository)
