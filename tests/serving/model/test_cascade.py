"""A cascade is loaded with the two models that it was made for, and with no others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.model.repository import RepositoryError, TensorSpec, check_cascade, load_repository
from serving.model.versions import load_snapshot


@pytest.fixture
def repository(cascade_repository: Path, tmp_path: Path) -> Path:
    """A copy that tests may change."""
    return Path(shutil.copytree(cascade_repository, tmp_path / "models"))


def edit(repository: Path, change: Callable[[dict[str, Any]], object], name: str = "cascade") -> None:
    path = repository / name / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def rejected(repository: Path) -> str:
    with pytest.raises(RepositoryError) as caught:
        load_snapshot(repository)
    return str(caught.value)


def test_a_cascade_is_an_entry_without_a_graph(cascade_repository: Path) -> None:
    entry = load_repository(cascade_repository)["cascade"]
    assert entry.content == b""
    assert sorted(path.name for path in entry.path.parent.iterdir()) == ["MODEL_CARD.md", "manifest.json"]
    rule = entry.manifest.cascade
    assert rule
    assert (str(rule.student), str(rule.teacher)) == ("student/1", "teacher/1")
    assert [spec.name for spec in entry.manifest.served_outputs] == [
        *("logits", "probabilities", "confidence", "accepted", "escalated")
    ]


def test_a_member_that_is_missing_is_named_with_what_is_served(repository: Path) -> None:
    shutil.rmtree(repository / "teacher")
    message = rejected(repository)
    assert (
        "cascade/1/manifest.json: the teacher of the cascade, teacher/1, is not served, only student/1"
        in message
    )
    assert "run distillery-export cascade --name cascade again" in message


def test_the_version_of_a_member_is_served_whatever_its_policy(repository: Path) -> None:
    shutil.copytree(repository / "student" / "1", repository / "student" / "2")
    path = repository / "student" / "2" / "manifest.json"
    path.write_text(path.read_text().replace('"version": "1"', '"version": "2"'))
    assert list(load_snapshot(repository).versions["student"]) == ["1", "2"]


def test_what_was_served_of_a_cascade_stays_where_a_reload_finds_another_student(repository: Path) -> None:
    """Between the export of a student and that of its cascade."""
    before = load_snapshot(repository)
    shutil.copyfile(repository / "teacher/1/model.onnx", repository / "student/1/model.onnx")
    teacher = json.loads((repository / "teacher/1/manifest.json").read_text())
    edit(repository, lambda manifest: manifest.update(sha256=teacher["sha256"]), "student")
    found = load_snapshot(repository, previous=before)
    assert found.versions == before.versions
    assert "holds for no other file" in found.rejected["cascade", "1"]
    assert found.rejected["student", "1"] == "the cascade cascade needs the file that is served"
    edit(repository, lambda manifest: manifest["cascade"]["student"].update(sha256=teacher["sha256"]))
    after = load_snapshot(repository, previous=found)
    assert not after.rejected
    assert after.versions["student"]["1"].manifest.sha256 == teacher["sha256"]
    assert after.versions["cascade"] != before.versions["cascade"]


def test_what_was_served_of_a_cascade_stays_where_a_reload_misses_a_model(repository: Path) -> None:
    before = load_snapshot(repository)
    shutil.rmtree(repository / "teacher")
    found = load_snapshot(repository, previous=before)
    assert found.versions == before.versions
    assert "teacher/1, is not served, only student/1" in found.rejected["cascade", "1"]


def test_a_cascade_that_a_reload_breaks_stays_as_it_was(repository: Path) -> None:
    before = load_snapshot(repository)
    edit(repository, lambda manifest: manifest["cascade"]["student"].update(sha256="0" * 64))
    found = load_snapshot(repository, previous=before)
    assert found.versions == before.versions
    assert "holds for no other file" in found.rejected["cascade", "1"]


def test_a_new_version_of_a_cascade_that_is_broken_does_not_replace_the_one_before(repository: Path) -> None:
    before = load_snapshot(repository)
    shutil.copytree(repository / "cascade" / "1", repository / "cascade" / "2")
    path = repository / "cascade" / "2" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"version": "2"}
    manifest["cascade"]["teacher"]["name"] = "cascade"
    path.write_text(json.dumps(manifest))
    found = load_snapshot(repository, previous=before)
    assert found.versions == before.versions
    assert "cascades are not nested" in found.rejected["cascade", "2"]


def test_a_new_cascade_that_is_broken_is_left_out_with_the_reason(repository: Path, tmp_path: Path) -> None:
    shutil.move(repository / "cascade", tmp_path / "cascade")
    before = load_snapshot(repository)
    shutil.move(tmp_path / "cascade", repository / "cascade")
    edit(repository, lambda manifest: manifest["cascade"]["student"].update(sha256="0" * 64))
    found = load_snapshot(repository, previous=before)
    assert list(found.versions) == ["student", "teacher"]
    assert "holds for no other file" in found.rejected["cascade", "1"]


def test_another_version_of_a_member_is_another_model(repository: Path) -> None:
    edit(repository, lambda manifest: manifest["cascade"]["student"].update(version="2"))
    assert "student/2, is not served, only student/1, teacher/1; export student as version 2" in rejected(
        repository
    )


def test_a_member_that_was_exported_again_is_rejected_with_both_hashes(repository: Path) -> None:
    edit(repository, lambda manifest: manifest["cascade"]["student"].update(sha256="0" * 64))
    sha256 = json.loads((repository / "student/1/manifest.json").read_text())["sha256"]
    message = rejected(repository)
    assert f"student/1, has SHA-256 {sha256}, the threshold was chosen for {'0' * 64}" in message


def test_a_cascade_of_itself_is_rejected(repository: Path) -> None:
    edit(repository, lambda manifest: manifest["cascade"]["teacher"].update(name="cascade"))
    assert "the teacher of the cascade, cascade/1, is this cascade: cascades are not nested" in rejected(
        repository
    )


def test_cascades_of_each_other_are_rejected(repository: Path) -> None:
    shutil.copytree(repository / "cascade", repository / "other")
    edit(repository, lambda manifest: manifest.update(name="other"), "other")
    edit(repository, lambda manifest: manifest["cascade"]["teacher"].update(name="other"))
    edit(repository, lambda manifest: manifest["cascade"]["teacher"].update(name="cascade"), "other")
    assert "other/1, is a cascade: cascades are not nested" in rejected(repository)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "high"])
def test_a_threshold_that_is_no_share_is_rejected(repository: Path, threshold: object) -> None:
    edit(repository, lambda manifest: manifest["cascade"].update(threshold=threshold))
    message = rejected(repository)
    assert "cascade.threshold: " in message
    assert f"(found {threshold!r}); export the model again" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acceptance": None}, "was exported without confidence; export teacher again"),
        ({"inputs": (TensorSpec(name="image", datatype="FP32", shape=(-1, 784)),)}, "has the inputs"),
    ],
)
def test_a_member_with_other_inputs_or_outputs_is_rejected(
    cascade_repository: Path, change: dict[str, object], message: str
) -> None:
    """As another version of the exporter may write it; this one's files are checked before."""
    entries = load_repository(cascade_repository)
    models = {(name, "1"): entry.manifest for name, entry in entries.items()}
    check_cascade(entries["cascade"], models)
    models["teacher", "1"] = models["teacher", "1"].model_copy(update=change)
    with pytest.raises(RepositoryError, match=message):
        check_cascade(entries["cascade"], models)


def test_a_cascade_with_other_inputs_is_rejected(repository: Path) -> None:
    edit(repository, lambda manifest: manifest["inputs"][0].update(shape=[-1, 784]))
    assert "inputs and outputs differ from those this service supports" in rejected(repository)
